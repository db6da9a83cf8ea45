"""Operations of a training step of the models with a PixelCNN, counted: what 28×28 pixels at the paper's sizes take.

    python benchmarks/operations.py

Nothing is computed: tensors have shapes and no values. Counted are products and convolutions of the forward and
backward pass of a batch of 100 at four draws per step, a multiplication and an addition as two operations.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from mixvae import config, unread
from mixvae.bounds import elbo, log_weights
from mixvae.reproduce import EXPERIMENTS
from mixvae.reproduce.findings import Changes
from mixvae.reproduce.trainings import Trainings

BATCH, EXAMPLES = 100, 50_000
SHAPES = {"small": (1, 14, 14), "paper": (1, 28, 28)}


def operations(cell: config.Config, shape: tuple[int, ...]) -> float:
    """Operations of one step, in 10⁹."""
    model = config.build(cell.model, shape, torch.rand(1000, *shape)).to("meta").train()
    x = torch.empty(BATCH, *shape, device="meta")
    with FlopCounterMode(display=False) as counter, unread(model):
        terms = model(x, cell.training.draws_per_component)
        elbo(log_weights(terms), terms.weight).mean().backward()
    return counter.get_total_flops() / 1e9


def study(scale: str) -> Trainings:
    """The experiment at a scale, with one seed."""
    plan = EXPERIMENTS["pixelcnn"].scales[scale].changed(Changes(seeds=[0]))
    assert isinstance(plan, Trainings)
    return plan


def main() -> None:
    """Print a table."""
    print(
        "| model | S | draws per step | 14×14: GFLOP per step | 28×28: GFLOP per step | PFLOP per epoch of 50,000 |\n"
        "|---|--:|--:|--:|--:|--:|"
    )
    plans = {scale: study(scale) for scale in SHAPES}
    cells = {scale: list(plan.grid(Path("runs")).cells.values()) for scale, plan in plans.items()}
    for variant, small, large in zip(plans["paper"].variants, cells["small"], cells["paper"], strict=True):
        little, much = operations(small, SHAPES["small"]), operations(large, SHAPES["paper"])
        epoch = much * EXAMPLES / BATCH / 1e6
        row = [variant.model, variant.size, large.draws_per_step, f"{little:.0f}", f"{much:.0f}", f"{epoch:.2f}"]
        print(f"| {' | '.join(map(str, row))} |")


if __name__ == "__main__":
    main()
