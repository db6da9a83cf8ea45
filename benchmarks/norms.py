"""Which normalisation for the PixelCNN decoder? Trains each on the digits and prints validation bounds.

Run it by `python benchmarks/norms.py`; docs/performance.md has what it gave.
"""

import sys
import time
from functools import partial

import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from mixvae import MixtureVAE, PixelCNNDecoder, SeparateEncoders, StandardNormal, datasets, fit
from mixvae.networks import GatedConvEncoder

LAYERS = ((32, 3, 1), (32, 3, 2), (16, 3, 2))


def without(decoder: PixelCNNDecoder) -> None:
    """Take the norms out."""
    decoder.network.norms = nn.ModuleList(nn.Identity() for _ in decoder.network.norms)


def by_weight(decoder: PixelCNNDecoder) -> None:
    """Normalise weights instead of activations."""
    without(decoder)
    for layer in [decoder.network.image, decoder.network.context, *decoder.network.hidden]:
        weight_norm(layer, "weight")


def main(epochs: int) -> None:
    """Train every variant from two seeds."""
    data = datasets.load_dataset("digits")
    for name, change in (("causal norm", lambda d: None), ("weight norm", by_weight), ("no norm", without)):
        for seed in (0, 1):
            torch.manual_seed(seed)
            decoder = PixelCNNDecoder(16, data.shape, layers=8, width=32)
            change(decoder)
            posterior = SeparateEncoders(lambda: GatedConvEncoder(data.shape, 16, LAYERS), 1)
            start = time.perf_counter()
            rows = fit(
                MixtureVAE(posterior, StandardNormal(16), decoder), data, epochs=epochs, seed=seed,
                optimizer=partial(torch.optim.Adam, lr=1e-3, fused=True), warmup=5,
            )  # fmt: skip
            best = max(row["validation"] for row in rows)
            tenth = rows[len(rows) // 3]["validation"]
            print(
                f"{name}, seed {seed}: best validation {best:.2f} nats, after a third {tenth:.2f}; "
                f"{(time.perf_counter() - start) / epochs:.2f} s/epoch",
                flush=True,
            )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 60)
