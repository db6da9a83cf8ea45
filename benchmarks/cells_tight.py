"""How tight likelihoods of cells are: scvi-tools' own, the pooled bound, and refined proposals, at equal draws.

    OMP_NUM_THREADS=2 python benchmarks/cells_tight.py runs

SCVI and a mixture of three on CORTEX, seed 0, 200 epochs; training takes about ten minutes and is skipped where the
folder holds it. The 405 held-out cells are scored at 1000 draws each, seed 0.
"""

import math
import statistics
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import scvi
import torch
from scvi.model import SCVI

from mixvae.evaluation import Estimate, standard_error, unreliable_k
from mixvae.reproduce.cells.names import MIXTURE, SCVI_NAME
from mixvae.reproduce.cells.results import Job
from mixvae.reproduce.cells.study import Plan, split
from mixvae.single_cell import MixtureSCVI, bounds, cortex
from mixvae.single_cell.recipes import Training
from mixvae.single_cell.runs import finished, take_weights

JOBS = (Job(SCVI_NAME, 1, 0), Job(MIXTURE, 3, 0))
DRAWS, EPOCHS = 1000, 200
SETTINGS = Plan(epochs=EPOCHS, total_draws=DRAWS)


def model_of(out, job, cells, parts):
    """A model of the study, trained if the folder lacks it."""
    scvi.settings.seed = job.seed
    cls, options = (SCVI, {}) if job.kind == SCVI_NAME else (MixtureSCVI, {"n_components": job.components})
    cls.setup_anndata(cells)
    model = cls(cells, **options)
    training = Training(EPOCHS, SETTINGS.patience, SETTINGS.warmup, SETTINGS.batch, job.seed, parts, "cpu")
    take_weights(model, finished(out / job.name, model, training, "CORTEX"))
    return model


def theirs(model, held_out):
    """NLL by the module's `marginal_ll`, scvi-tools' own for SCVI, and the seconds that took."""
    torch.manual_seed(0)
    start = time.perf_counter()
    log_px = SCVI.get_marginal_ll(model, indices=held_out, n_mc_samples=DRAWS, return_mean=False)
    return -float(np.mean(np.asarray(log_px, dtype=float))), time.perf_counter() - start


def row(name, estimate: Estimate, seconds):
    """A row of the table."""
    k, summary = estimate.pareto_k, estimate.summary()
    unreliable, above = (100 * (k > limit).mean() for limit in (unreliable_k(estimate.total_draws), 0.7))
    error = math.sqrt((estimate.log_px_mc_se**2).sum()) / len(k)
    return (
        f"| {name} | {summary['nll']:.2f} | {error:.3f} | {estimate.bias.mean():.4f} | {unreliable:.1f} % | "
        f"{above:.1f} % | {statistics.median(estimate.ess):.0f} | {seconds:.0f} |"
    )


def main():
    warnings.simplefilter("ignore")
    scvi.settings.verbosity = 40
    out, cells = Path(sys.argv[1]), cortex()
    parts = split(cells.n_obs)
    print(f"{DRAWS} draws for each of {len(parts[2])} cells, seed 0, {torch.get_num_threads()} threads")
    print("| model, draws from | NLL | MC error | bias | k̂ unreliable | k̂ > 0.7 | median effective draws | s |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|")
    found = []
    for job in JOBS:
        model = model_of(out, job, cells, parts)
        name = f"{job.kind}, S = {job.components}"
        nll, seconds = theirs(model, parts[2])
        print(f"| {name}, marginal_ll | {nll:.2f} | | | | | | {seconds:.0f} |", flush=True)
        for proposal in ("posterior", "refined"):
            start = time.perf_counter()
            estimate = bounds(model, indices=parts[2], n_mc_samples=DRAWS, proposal=proposal)
            print(row(f"{name}, {proposal}", estimate, time.perf_counter() - start), flush=True)
        found.append(estimate)
        print(estimate.proposal_notes, file=sys.stderr)
    scvi_model, mixture = found
    for name in ("pooled", "log_px", "elbo", "kl_posterior"):
        gains = getattr(mixture, name) - getattr(scvi_model, name)
        print(f"gain of S = 3 in {name}: {gains.mean():.2f} ± {standard_error(gains):.2f} (over cells)")


if __name__ == "__main__":
    main()
