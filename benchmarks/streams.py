"""What it costs to train on data that are not held in memory: epochs of a DataLoader and of PNG files, as ratios.

    OMP_NUM_THREADS=2 python benchmarks/streams.py loader [OUT.json]
    OMP_NUM_THREADS=2 python benchmarks/streams.py images [OUT.json]
    OMP_NUM_THREADS=2 python benchmarks/streams.py memory

`loader` and `images`: mixtures with the paper's encoders (28×28, latent 40, gated 300-300, batch 100) on the first
10,000 images of FashionMNIST. Each round trains two epochs on our own data set, in memory, and then two on its rival,
of which the second ones are compared: a shuffled DataLoader over in-memory tensors (S = 1 and 4), or a folder of PNG
files that two workers read (S = 4). The median of the rounds' ratios and their range are printed. Reading all files
once at the beginning, for their checksum, is not part of an epoch; it is printed beside them.

`memory`: the most memory that loading a `.npy` file of 410 MB takes, held and streamed, each in a process of its own,
beside that of importing mixvae. What is mapped of the file counts, though the system may have it back.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

from mixvae import MixtureVAE, MLPDecoder, SeparateEncoders, StandardNormal, fit, load_dataset
from mixvae.datasets import as_dataset
from mixvae.networks import GatedEncoder

SHAPE, LATENT, EXAMPLES, ROUNDS, EPOCHS = (1, 28, 28), 40, 10_000, 7, 2


def model(components):
    posterior = SeparateEncoders(lambda: GatedEncoder(SHAPE, LATENT), components)
    return MixtureVAE(posterior, StandardNormal(LATENT), MLPDecoder(LATENT, SHAPE))


def epoch_seconds(data, components):
    """Seconds of the second epoch: the first one warms up."""
    rows = fit(model(components), data, epochs=EPOCHS)
    return rows[-1]["seconds"] - rows[-2]["seconds"]


def compare(own, rival, components):
    pairs = [(epoch_seconds(own, components), epoch_seconds(rival, components)) for _ in range(ROUNDS)]
    ratios = [rival / own for own, rival in pairs]
    return {
        "ratio": float(np.median(ratios)), "lowest": min(ratios), "highest": max(ratios),
        "own_seconds": float(np.median([own for own, _ in pairs])),
    }  # fmt: skip


def loader(out=None):
    data, pixels = images_of()
    grey = pixels.float() / data.train.levels
    held = as_dataset((grey, data.validation), binarize="stochastic")
    loaded = DataLoader(TensorDataset(grey), batch_size=100, shuffle=True)
    rival = as_dataset((loaded, data.validation), binarize="stochastic")
    rows = {f"DataLoader over tensors, S = {components}": compare(held, rival, components) for components in (1, 4)}
    tell(rows, out)


def images(out=None):
    _, pixels = images_of()
    with tempfile.TemporaryDirectory() as folder:
        for part in ("train", "validation", "test"):
            (Path(folder) / part).mkdir()
            count = EXAMPLES if part == "train" else 100
            for i, image in enumerate(pixels[:count, 0].numpy()):
                Image.fromarray(image).save(Path(folder) / part / f"{i:05}.png")
        started = time.monotonic()
        streamed = load_dataset(folder, stream=True, workers=2)
        streamed.sha256()
        read = time.monotonic() - started
        row = compare(load_dataset(folder), streamed, 4) | {"reading_once": read}
    tell({"PNG files by two workers, S = 4": row}, out)


def images_of():
    """The data set, and its training images as bytes."""
    data = load_dataset("fashion_mnist", limit=EXAMPLES, limit_validation=100)
    return data, torch.cat(list(data.train.raw()))


def tell(rows, out):
    for name, row in rows.items():
        more = f"; read once in {row['reading_once']:.1f} s" if "reading_once" in row else ""
        spread = f"{row['lowest']:.2f} to {row['highest']:.2f}"
        print(
            f"{name}, {torch.get_num_threads()} threads: {row['ratio']:.2f} ({spread}), {row['own_seconds']:.1f} s an "
            f"epoch in memory{more}"
        )
    if out is not None:
        Path(out).write_text(json.dumps(rows, indent=1) + "\n")


LOADS = {
    "importing mixvae": "",
    "held in memory": "load_dataset({path!r}).sha256()",
    "streamed": "load_dataset({path!r}, stream=True).sha256()",
}
READING = """
import time
from mixvae import load_dataset
started = time.monotonic()
{load}
print(time.monotonic() - started, open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
"""


def memory():
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/images.npy"
        images = np.lib.format.open_memmap(path, "w+", np.uint8, (523_000, *SHAPE[1:]))
        random = np.random.default_rng(0)
        for start in range(0, len(images), 1000):
            images[start : start + 1000] = random.integers(0, 256, (1000, *SHAPE[1:]), dtype=np.uint8)
        images.flush()
        del images
        print(f"a file of {Path(path).stat().st_size / 1e6:.0f} MB")
        for name, load in LOADS.items():
            script = READING.format(load=load.format(path=path))
            read = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
            seconds, peak = map(float, read.stdout.split())  # VmHWM: ru_maxrss would be that of the parent
            print(f"{name}: at most {peak / 1024:.0f} MiB, {seconds:.1f} s")


if __name__ == "__main__":
    {"loader": loader, "images": images, "memory": memory}[sys.argv[1]](*sys.argv[2:])
