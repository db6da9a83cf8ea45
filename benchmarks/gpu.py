"""Training steps on a GPU: eager, compiled and with CUDA graphs, in float32, TF32 and bfloat16; time and peak memory.

    make gpu                        (or python benchmarks/gpu.py [--presets vamp flow] [--ways bf16] [--device cpu])

Prints what it measured, and nothing where there is no CUDA device. The paper's presets at S = 4 and batch 100, the
one-hot encoder with A = 400, and S = 1 … 16 separate encoders one after another against one `bmm` per layer. A time is
the median of some rounds, each of which runs the ways in turn and waits for the device only at its end.
"""

import argparse
import time
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from mixvae import config
from mixvae.bounds import elbo
from mixvae.gradients import reparameterised
from mixvae.model import unread
from mixvae.networks import GatedEncoder
from mixvae.training._objective import Inputs, Objective

BATCH, COMPONENTS, GREY, COLOUR = 100, 4, (1, 28, 28), (3, 32, 32)
PRESETS = {"vae": ("vanilla", GREY, ["--model.components=1"])} | {
    name: (name, COLOUR if name.startswith("cifar") else GREY, [f"--model.components={COMPONENTS}"])
    for name in (
        "vanilla", "vamp", "flow", "two_level", "two_level_vamp", "conv", "conv_vamp", "composite", "cifar10",
        "cifar10_pixelcnn",
    )
} | {"one_hot": ("one_hot", GREY, [])}  # fmt: skip
"""Preset, shape and flags of every row."""
WAYS = {
    "float32": ("none", "highest", None),
    "TF32": ("none", "high", None),
    "bf16": ("none", "high", torch.bfloat16),
    "compiled": ("default", "high", None),
    "compiled, bf16": ("default", "high", torch.bfloat16),
    "CUDA graphs": ("reduce-overhead", "high", None),
    "CUDA graphs, bf16": ("reduce-overhead", "high", torch.bfloat16),
}
"""How a step is compiled, the precision of matrix products, and of autocast."""


class Device:
    """A device that can be waited for.

    Args:
        name: as torch names it.
    """

    def __init__(self, name):
        self.name, self.is_cuda = name, name.startswith("cuda")

    def wait(self):
        if self.is_cuda:
            torch.cuda.synchronize()

    def forget_peak(self):
        if self.is_cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak(self):
        """Most memory taken since, in MB."""
        return torch.cuda.max_memory_allocated() / 1e6 if self.is_cuda else float("nan")

    def milliseconds(self, step, calls):
        """Time of a step, among so many that are queued together."""
        self.wait()
        start = time.perf_counter()
        for _ in range(calls):
            step()
        self.wait()
        return 1e3 * (time.perf_counter() - start) / calls


def training_step(name, way, device):
    """A step of a preset's training in one way."""
    preset, shape, flags = PRESETS[name]
    compile, _, half = WAYS[way]
    torch.manual_seed(0)
    wanted = config.read(preset, flags)
    examples = (torch.rand(1000, *shape) < 0.3).float()
    model = config.build(wanted.model, shape, examples).to(device.name)
    x = examples[:BATCH].to(device.name)
    with torch.no_grad():
        q = model.posterior(x[:1])
    active = None
    if wanted.training.active is not None:
        active = torch.arange(wanted.training.active, device=device.name)
    drawn = q.batch_shape[0] if active is None else len(active)
    score_all = wanted.training.scored == "all"
    bound = Objective(
        model, elbo, reparameterised, score_all=score_all, compile=compile, whole=BATCH, device=device.name
    )
    optimizer = torch.optim.Adam(model.parameters(), 5e-4, fused=True)
    generator = torch.Generator(device.name)

    def step():
        noise = torch.randn(1, drawn, BATCH, q.event_shape[0], device=device.name, generator=generator)
        with unread(model), torch.autocast(device.name, half) if half else nullcontext():
            loss = -bound(Inputs(x, noise, active)) / BATCH
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def presets(device, rounds, calls, chosen, ways):
    """Print a table of all presets and ways."""
    print("\n| preset | " + " | ".join(f"{way}: ms, MB" for way in ways) + " |\n|---|" + "--:|" * len(ways))
    for name in chosen:
        cells = []
        for way in ways:
            _, matmul, _ = WAYS[way]
            torch.set_float32_matmul_precision(matmul)
            torch.backends.cudnn.allow_tf32 = matmul != "highest"
            torch.compiler.reset()
            device.forget_peak()
            try:
                step = training_step(name, way, device)
                for _ in range(5):
                    step()
                times = [device.milliseconds(step, calls) for _ in range(rounds)]
                cells.append(f"{np.median(times):.2f}, {device.peak():.0f}")
            except Exception as error:  # what does not work is said, and the rest is measured
                cells.append(f"{type(error).__name__}: {str(error).splitlines()[0][:60]}")
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
    torch.set_float32_matmul_precision("highest")


class Batched(nn.Module):
    """S gated encoders as one `bmm` per layer.

    Args:
        encoders: the encoders.
    """

    def __init__(self, encoders):
        super().__init__()
        stacks = zip(*([*(layer.linear for layer in encoder.trunk), encoder.head] for encoder in encoders), strict=True)
        layers = [(torch.stack([one.weight.T for one in s]), torch.stack([one.bias for one in s])) for s in stacks]
        self.weights = nn.ParameterList(weight.detach().clone() for weight, _ in layers)
        self.biases = nn.ParameterList(bias.detach().clone()[:, None] for _, bias in layers)

    def forward(self, x):
        h = x.flatten(1).expand(len(self.weights[0]), -1, -1)
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            h = F.glu(torch.baddbmm(bias, h, weight), -1)
        return torch.baddbmm(self.biases[-1], h, self.weights[-1])


class Looped(nn.Module):
    """S gated encoders one after another.

    Args:
        encoders: the encoders.
    """

    def __init__(self, encoders):
        super().__init__()
        self.encoders = nn.ModuleList(encoders)

    def forward(self, x):
        each: Any = self.encoders
        return torch.stack([encoder.head(encoder.trunk(x.flatten(1))) for encoder in each])


def encoders(device, rounds, calls, sizes):
    """Print forward and backward pass of separate encoders, looped and batched."""
    print("\n| S | looped ms | one bmm per layer ms | looped ÷ bmm |\n|--:|--:|--:|--:|")
    x = torch.rand(BATCH, *GREY, device=device.name)
    for size in sizes:
        looped = Looped([GatedEncoder(GREY, 40) for _ in range(size)]).to(device.name)
        batched = Batched(looped.encoders).to(device.name)
        torch.testing.assert_close(looped(x), batched(x), atol=1e-3, rtol=1e-3)

        def step(network):
            network.zero_grad()
            network(x).square().sum().backward()

        pairs = []
        for _ in range(rounds + 1):
            pairs.append([device.milliseconds(lambda n=network: step(n), calls) for network in (looped, batched)])
        one, other = np.array(pairs[1:]).T
        print(f"| {size} | {np.median(one):.3f} | {np.median(other):.3f} | {np.median(one / other):.2f} |", flush=True)


def main():
    """Measure, or say that there is nothing to measure on."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to try the script itself")
    parser.add_argument("--quick", action="store_true", help="few rounds")
    parser.add_argument("--presets", nargs="*", choices=PRESETS, default=list(PRESETS), help="which; all by default")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="which; all by default")
    parser.add_argument("--encoders", nargs="*", type=int, default=[1, 2, 4, 8, 16], help="how many, one after another")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("gpu: no CUDA device here, so nothing was measured")
        return
    device = Device(options.device)
    name = torch.cuda.get_device_name() if device.is_cuda else "cpu"
    print(f"{name}, torch {torch.__version__}, CUDA {torch.version.cuda}; batch {BATCH}, S = {COMPONENTS}")
    rounds, calls = (2, 2) if options.quick else (15, 20)
    if options.encoders:
        encoders(device, rounds, calls, options.encoders)
    if options.presets:
        presets(device, rounds, calls, options.presets, options.ways)


if __name__ == "__main__":
    main()
