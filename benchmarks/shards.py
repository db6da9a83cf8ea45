"""What an evaluation costs with one worker and with two, and what 10,000 images with 5000 draws each would.

    OMP_NUM_THREADS=1 python benchmarks/shards.py [digits|fashion_mnist] [EXAMPLES] [OUT.json]

A mixture of four encoders (gated 300-300, latent 40, one epoch of at most 2000 examples) is evaluated on the first
EXAMPLES test images, 256 by default, with 5000 refined draws each: by one process, then by two at once, whose shards
are merged and compared with the whole. Seconds are those within the processes, without their start, which does not
grow with the examples. Processor seconds, those of the busiest worker, hardly depend on what else the machine does. The
cost of 10,000 images is that of EXAMPLES times 10,000 / EXAMPLES: measured on a fraction.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from mixvae import runs
from mixvae.config import read

DRAWS, MANY = 5000, 10_000
TRAIN = ["--data.limit=2000", "--model.components=4", "--training.epochs=1"]


def work(run, examples, number, of):
    """Evaluate one part in this process, the whole if there is only one; returns seconds and processor seconds."""
    opened = runs.open_run(run)
    for name in ("data", "model"):
        getattr(opened, name)  # read before the clock starts
    begun, used = time.perf_counter(), time.process_time()
    if of == 1:
        runs.evaluate(opened, DRAWS, examples=examples)
    else:
        runs.evaluate_shard(opened, number, of, DRAWS, examples=examples)
    return time.perf_counter() - begun, time.process_time() - used


def seconds(run, examples, workers):
    """Seconds of the slowest, and processor seconds of the busiest, of some workers that run at once."""
    command = [sys.executable, __file__, "work", str(run), str(examples)]
    parts = [[*command, str(number), str(workers)] for number in range(1, workers + 1)]
    started = [subprocess.Popen(part, stdout=subprocess.PIPE, text=True) for part in parts]
    said = [worker.communicate()[0] for worker in started]
    assert not any(worker.returncode for worker in started), "a worker failed"
    return [max(column) for column in zip(*map(json.loads, said), strict=True)]


def main(name="digits", examples="256", out=None):
    number = int(examples)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        runs.train(read("vanilla", [f"--data.name={name}", *TRAIN]), run)
        one, one_used = seconds(run, number, 1)
        whole = runs.evaluate(run, DRAWS, examples=number)
        for path in whole_files(run):
            path.unlink()
        two, two_used = seconds(run, number, 2)
        begun = time.perf_counter()
        merged = runs.merge_shards(run, DRAWS, examples=number)
        merging = time.perf_counter() - begun
    assert all(np.array_equal(merged.bounds[key], values) for key, values in whole.bounds.items()), "they differ"
    result = {
        "data": name, "examples": number, "draws": DRAWS, "one_worker_seconds": one, "two_workers_seconds": two,
        "speedup": one / two, "merge_seconds": merging, "milliseconds_per_image": 1000 * one / number,
        "one_worker_processor_seconds": one_used, "two_workers_processor_seconds": two_used,
        "processor_speedup": one_used / two_used,
        "hours_of_10000_images": one * MANY / number / 3600,
        "hours_of_10000_images_by_two": two * MANY / number / 3600,
    }  # fmt: skip
    print(json.dumps(result, indent=2))
    if out is not None:
        Path(out).write_text(json.dumps(result, indent=2) + "\n")


def whole_files(run):
    """Files of a stored evaluation."""
    return [path for path in (run / "evaluations").iterdir() if path.is_file()]


if __name__ == "__main__":
    if sys.argv[1:2] == ["work"]:
        print(json.dumps(work(sys.argv[2], *map(int, sys.argv[3:]))))
    else:
        main(*sys.argv[1:])
