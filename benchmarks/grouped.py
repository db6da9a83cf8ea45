"""Convolutional encoders of S components: one after another, or as one convolution of S groups.

    python benchmarks/grouped.py

Times forward and backward pass of the paper's gated convolutions, in milliseconds, best of five.
"""

import time

import torch
import torch.nn.functional as F
from torch import nn

from mixvae.networks._conv import PAPER_LAYERS, GatedConvTrunk
from mixvae.training import keep_freed_memory

COMPONENTS = 4


class Grouped(nn.Module):
    """The layers of S encoders, each layer as one convolution whose groups are the components."""

    def __init__(self):
        super().__init__()
        inputs = [1, *(channels for channels, _, _ in PAPER_LAYERS)]
        self.convs = nn.ModuleList(
            nn.Conv2d(
                i if first else i * COMPONENTS, 2 * o * COMPONENTS, kernel, stride, kernel // 2,
                groups=1 if first else COMPONENTS,
            )
            for first, i, (o, kernel, stride) in zip([True] + [False] * 4, inputs, PAPER_LAYERS, strict=False)
        )  # fmt: skip

    def forward(self, x):
        for conv in self.convs:
            h = conv(x)
            x = F.glu(h.unflatten(1, (COMPONENTS, -1)), 2).flatten(1, 2)
        return x


def best_ms(networks, x):
    """Forward and backward pass of all networks on x."""
    seconds = []
    for _ in range(6):
        start = time.perf_counter()
        torch.stack([network(x).sum() for network in networks]).sum().backward()
        seconds.append(time.perf_counter() - start)
    return 1e3 * min(seconds[1:])


def main():
    keep_freed_memory()
    looped = [GatedConvTrunk((1, 28, 28)) for _ in range(COMPONENTS)]
    grouped, channels_last = Grouped(), Grouped().to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    print("| images | looped | grouped | grouped, channels last |\n|--:|--:|--:|--:|")
    for n in (100, 500):
        x = torch.rand(n, 1, 28, 28, requires_grad=True)
        times = [best_ms(networks, x) for networks in (looped, [grouped], [channels_last])]
        print(f"| {n} | " + " | ".join(f"{ms:.0f}" for ms in times) + " |", flush=True)


if __name__ == "__main__":
    main()
