"""How tight are refined likelihoods, what do they cost, and are their errors honest?

    python benchmarks/tight.py table [NAME …]     bias, k̂ and cost of one pass, side by side with the posterior's
    python benchmarks/tight.py check [NAME …]     annealed importance sampling and bidirectional Monte Carlo
    python benchmarks/tight.py coverage           how often the interval of an NLL covers it

The models are trained first, into runs/tight (FashionMNIST from its files; see `mixvae.load_dataset`).
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mixvae import MixtureVAE, MLPDecoder, SeparateEncoders, StandardNormal, evaluate
from mixvae.config import read
from mixvae.decoders import Decoder, GaussianLikelihood
from mixvae.evaluation import Estimate, _sums, unreliable_k
from mixvae.joint import ModelJoint
from mixvae.networks import GatedEncoder
from mixvae.priors import GaussianMixturePrior
from mixvae.progress import Terminal
from mixvae.runs import Run, check, train
from mixvae.runs._examples import part_of, prepared

FOLDER = Path("runs/tight")
SHORT = ["--training.epochs=60", "--training.warmup=20", "--data.name=digits", "--model.components=2"]
VAMP = ["--model.prior.class_path=VampPrior", "--model.prior.pseudo_inputs=50"]
FASHION = ["--data.name=fashion_mnist", "--training.epochs=12", "--training.warmup=4"]
MODELS: dict[str, tuple[str, list[str]]] = {
    **{f"digits-S{s}": ("digits", [f"--model.components={s}"]) for s in (1, 2, 4)},
    "digits-vamp": ("digits", ["--model.components=2", *VAMP]),
    "digits-two_level": ("two_level", SHORT),
    "digits-flow": ("flow", SHORT),
    "digits-one_hot": ("one_hot", [*SHORT[:3], "--model.components=20"]),
    "digits-composite": ("composite", ["--training.epochs=10", "--training.warmup=5", *SHORT[2:]]),
    **{f"fashion-S{s}": ("vanilla", [*FASHION, f"--model.components={s}"]) for s in (1, 2, 4)},
}
DRAWS = 500
NAMES = ("log_px", "bias", "log_px_mc_se")
MEANS = 60
"""Means of many examples."""


def run_of(name: str) -> Run:
    """The trained run, trained now if it is not there."""
    preset, flags = MODELS[name]
    with Terminal() as progress:
        return train(read(preset, flags), FOLDER / name, resume=True, progress=progress)


def observations(run: Run, examples: int) -> torch.Tensor:
    """Test examples, and training ones where the test split is too small."""
    x = prepared(run, part_of(run, "test"))
    if len(x) < examples:
        x = torch.cat([x, prepared(run, part_of(run, "train", examples - len(x)))])
    return x[:examples]


def timed(function: Callable[[], Any]) -> tuple[Any, float]:
    """Result and seconds."""
    start = time.perf_counter()
    return function(), time.perf_counter() - start


def table(names: list[str], examples: int) -> None:
    """Refined and amortised figures of every model, and the ratio of their costs, pair by pair."""
    print(f"{examples} examples, {DRAWS} draws, seed 0, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print("model, nll refined (bias; mc_se; unreliable; k̂ > 0.7; draws effective; change from half the draws)")
    for name in names:
        run = run_of(name)
        x = observations(run, 100 if "composite" in name else examples)
        evaluate(run.model, x[:64], 32)  # warm up
        plain, plain_s = timed(lambda run=run, x=x: evaluate(run.model, x, DRAWS, proposal="posterior"))
        both, both_s = timed(lambda run=run, x=x: evaluate(run.model, x, DRAWS))
        half = evaluate(run.model, x, DRAWS // 2, seed=1)
        for kind, made in (("posterior", plain), ("refined", both)):
            k = made.pareto_k
            row = {
                "model": name,
                "proposal": kind,
                "examples": len(x),
                "nll": round(float(-made.log_px.mean()), 4),
                "mc_se": round(float(np.sqrt((made.log_px_mc_se**2).sum()) / len(x)), 4),
                "bias": round(float(made.bias.mean()), 5),
                "unreliable": round(float((k > unreliable_k(made.total_draws)).mean()), 4),
                "above_0.7": round(float((k > 0.7).mean()), 4),
                "ess": round(float(made.ess.mean()), 1),
            }
            if kind == "refined":
                row["change_from_half"] = round(float((half.log_px - made.log_px).mean()), 4)
                row["cost_ratio"] = round(both_s / plain_s, 2)
                row["seconds"] = round(both_s, 1)
                row["notes"] = dict(made.proposal_notes)
            else:
                row["seconds"] = round(plain_s, 1)
            print(json.dumps(row), flush=True)


def annealed(names: list[str], examples: int, temperatures: int) -> None:
    """Refined figures beside annealed ones."""
    for name in names:
        run = run_of(name)
        with Terminal() as progress:
            result, seconds = timed(
                lambda run=run, progress=progress: check(
                    run, examples, DRAWS, temperatures=temperatures, progress=progress
                )
            )
        print(f"{name} ({seconds:.0f} s)\n{result!r}", flush=True)


class Constant(nn.Module):
    """An encoder that says the same of every example: as poor a posterior as can be."""

    def __init__(self, latent: int, log_var: float):
        super().__init__()
        self.mean, self.log_var = nn.Parameter(0.3 * torch.randn(latent)), nn.Parameter(torch.full((latent,), log_var))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and log-variance."""
        return self.mean.expand(len(x), -1), self.log_var.expand(len(x), -1)


def linear(latent: int, log_var: float) -> tuple[MixtureVAE, torch.Tensor]:
    """A linear Gaussian model of 8 values behind a constant posterior."""
    torch.manual_seed(latent)
    posterior = SeparateEncoders(lambda: Constant(latent, log_var), 2)
    decoder = Decoder(nn.Linear(latent, 8), GaussianLikelihood((8,)))
    return _with_data(MixtureVAE(posterior, StandardNormal(latent), decoder))


def binary(prior: Callable[[], nn.Module], wide: float) -> tuple[MixtureVAE, torch.Tensor]:
    """A binary model with large weights, whose posteriors are skewed, behind an untrained encoder."""
    torch.manual_seed(1)
    posterior = SeparateEncoders(lambda: GatedEncoder((12,), 2, (8,)), 3, [3.0, 2.0, 1.0])
    model = MixtureVAE(posterior, prior(), MLPDecoder(2, (12,), (16,)))
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter.mul_(wide)
    return _with_data(model)


def _with_data(model: MixtureVAE, examples: int = 60) -> tuple[MixtureVAE, torch.Tensor]:
    model = model.double().eval()
    with torch.no_grad():
        return model, model.decoder(model.prior().sample((examples,))).sample().double()


CHOSEN: dict[str, Callable[[], tuple[MixtureVAE, torch.Tensor]]] = {
    "linear, D = 2, narrow posterior": lambda: linear(2, -3.0),
    "linear, D = 8, narrow posterior": lambda: linear(8, -2.0),
    "binary, normal prior": lambda: binary(lambda: StandardNormal(2), 2.0),
    "binary, steep decoder": lambda: binary(lambda: StandardNormal(2), 4.0),
    "binary, mixture prior": lambda: binary(lambda: GaussianMixturePrior(2, 4), 2.0),
}
"""Models chosen before anything was measured."""


@torch.no_grad()
def truth_of(model: MixtureVAE, x: torch.Tensor) -> np.ndarray:
    """Exact log p(x): in closed form for linear models, by a grid of 641² points for two latents."""
    network = model.decoder.network
    if isinstance(network, nn.Linear):
        noise = model.decoder(torch.zeros(1, network.in_features).double()).base_dist.variance[0]
        covariance = network.weight @ network.weight.T + torch.diag(noise)
        return torch.distributions.MultivariateNormal(network.bias, covariance).log_prob(x).numpy()
    axis = torch.linspace(-8, 8, 641, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    joint = ModelJoint(model, x)
    parts = [joint.log_prob(z[:, None].expand(-1, len(x), -1)).logsumexp(0) for z in grid.split(4096)]
    return (torch.stack(parts).logsumexp(0) + 2 * math.log(axis[1] - axis[0])).numpy()


def coverage(repetitions: int, draws: int, many: int) -> None:
    """How often nll − bias ± 1.96 se covers the exact value, per example and for means of examples.

    Every evaluation of an example has noise of its own; means are of disjoint groups of evaluations.
    """
    print(f"{draws} draws; 60 examples, again and again; {repetitions} means of 300, {MEANS} means of {many:,}")
    for name, make in CHOSEN.items():
        model, x = make()
        truth = truth_of(model, x)
        for proposal, most in (("posterior", 300 * repetitions), ("refined", max(300 * repetitions, MEANS * many))):
            made = _repeated(model, x, range(repetitions), draws, proposal)
            with _without_k():
                more = _repeated(model, x, range(repetitions, -(-most // len(x))), draws, proposal)
            log_px, bias, error = (np.concatenate([getattr(part, name) for part in (made, more)]) for name in NAMES)
            miss = log_px + bias - np.tile(truth, len(log_px) // len(x))
            inside, reliable = np.abs(miss) <= 1.96 * error, made.pareto_k <= unreliable_k(made.total_draws)
            row: dict[str, Any] = {"model": name, "proposal": proposal, "evaluations": len(miss)}
            row["unreliable"] = round(float((~reliable).mean()), 4)
            row["per_example"] = round(float(inside.mean()), 4)
            first = inside[: len(reliable)]
            row["where_reliable"] = round(float(first[reliable].mean()), 4) if reliable.any() else None
            row["mean_of_300"] = _of_means(miss, error, 300, repetitions)
            if proposal == "refined":
                row[f"mean_of_{many}"] = _of_means(miss, error, many, MEANS)
            print(json.dumps(row), flush=True)


def _repeated(model: MixtureVAE, x: torch.Tensor, times: range, draws: int, proposal: Any) -> Estimate:
    """Independent evaluations of the same examples: the number of an example keys its noise."""
    numbers = np.arange(times.start * len(x), times.stop * len(x))
    return evaluate(model, x.repeat(len(times), 1), draws, proposal=proposal, examples=numbers, chunk=8192)


def _of_means(miss: np.ndarray, error: np.ndarray, examples: int, means: int) -> float:
    """How often the interval of a mean of so many evaluations covers its exact value."""
    misses = miss[: examples * means].reshape(means, examples).mean(1)
    errors = np.sqrt((error[: examples * means].reshape(means, examples) ** 2).sum(1)) / examples
    return round(float((np.abs(misses) <= 1.96 * errors).mean()), 4)


@contextmanager
def _without_k() -> Iterator[None]:
    """Leave Pareto k̂ out, which takes most of the time and no part in an interval."""
    right = _sums.pareto_ks
    _sums.pareto_ks = lambda largest, draws: np.full(largest.shape[1], math.nan)
    try:
        yield
    finally:
        _sums.pareto_ks = right


def main() -> None:
    """Run one of the three."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("table", "check", "coverage"))
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--examples", type=int, help="1000 for the table, 50 for the check")
    parser.add_argument("--temperatures", type=int, default=1000)
    parser.add_argument("--repetitions", type=int, default=300)
    parser.add_argument("--draws", type=int, default=100, help="of the coverage")
    parser.add_argument("--many", type=int, default=10_000, help="examples in the largest means of the coverage")
    given = parser.parse_args()
    if unknown := [name for name in given.names if name not in MODELS]:
        parser.error(f"there is no model {unknown[0]!r}: choose among {', '.join(MODELS)}")
    if given.what == "table":
        table(given.names or list(MODELS), given.examples or 1000)
    elif given.what == "check":
        annealed(given.names or ["digits-S1", "fashion-S4"], given.examples or 50, given.temperatures)
    else:
        coverage(given.repetitions, given.draws, given.many)


if __name__ == "__main__":
    main()
