"""What large data cost: MixtureSCVI beside SCVI on many cells in memory, and an atlas of cells that stays on disk.

    OMP_NUM_THREADS=2 python benchmarks/cells_scale.py speed [cells] [rounds]
    OMP_NUM_THREADS=2 python benchmarks/cells_scale.py atlas [cells]

Cells are simulated, 2,000 genes each: negative binomial counts whose log rates are linear in ten latents, two kinds of
cells by the sign of the first, log-normal library sizes; about one count in five is not zero.

`speed`: 50,000 cells as a sparse matrix in memory, everything at scvi-tools' defaults (90 % to train on, batches of
128). In one process, SCVI and mixtures of 2, 4 and 8 take turns, three rounds of each of these:

- epoch: one more epoch of training, from Lightning's first batch to its last, validation left out;
- embedding: `get_latent_representation()` of all cells;
- differential expression: `differential_expression` of the two kinds, at its defaults.

The ratio of each round is to SCVI's time of that round; the median ratio is told, with the smallest and largest. So is
that of processor time, which on one thread (OMP_NUM_THREADS=1) hardly depends on what else the machine does.
Peak memory is that of one training of one epoch, in a process of its own for each model, from its start: what Linux
calls VmHWM, which includes Python, torch and the cells.

`atlas`: 200,000 cells are written to an .h5ad file block by block and left there. Four processes then do what `mixvae
sc` does with `--backed`: train a mixture of 4 for one epoch, checksums and validation included; embed all cells into a
copy of the file, without responsibilities and with them; and score 400 cells by `get_marginal_ll` at 1,000 refined
draws. Each tells its seconds and VmHWM.
"""

import json
import logging
import statistics
import subprocess
import sys
import time
import warnings
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import scvi
import torch
from anndata import AnnData
from lightning.pytorch import Callback
from scipy.sparse import csr_matrix, vstack
from scvi.model import SCVI

from mixvae.single_cell import MixtureSCVI
from mixvae.single_cell.atlas import read_cells
from mixvae.single_cell.runs import Settings, embed, load, train

CELLS, ATLAS, GENES, LATENTS, BLOCK = 50_000, 200_000, 2_000, 10, 5_000
ROUNDS, SCORED, DRAWS = 3, 400, 1_000
CASES = {"SCVI": 0} | {f"S = {s}": s for s in (2, 4, 8)}
QUIET = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}


def simulated(cells):
    """Blocks of counts, and the kinds of their cells."""
    rng = np.random.default_rng(0)
    base, loadings = rng.normal(-2.2, 1.2, GENES), rng.normal(0.0, 0.35, (LATENTS, GENES))
    for start in range(0, cells, BLOCK):
        rows = min(BLOCK, cells - start)
        z, library = rng.normal(size=(rows, LATENTS)), rng.normal(0.0, 0.3, (rows, 1))
        counts = rng.poisson(rng.gamma(2.0, np.exp(base + z @ loadings + library) / 2)).astype(np.float32)
        counts[:, 0] += counts.sum(1) == 0  # no cell is empty
        yield csr_matrix(counts), np.where(z[:, 0] > 0, "a", "b")


def in_memory(cells):
    """Cells as a sparse matrix in memory."""
    blocks, kinds = zip(*simulated(cells), strict=True)
    return AnnData(vstack(blocks, "csr"), pd.DataFrame({"kind": np.concatenate(kinds)}, index=_names("cell", cells)))


def on_disk(cells, path):
    """Cells written to a file block by block."""
    kinds = []
    with h5py.File(path, "w") as file:
        for counts, kind in simulated(cells):
            if kinds:
                written: Any = anndata.io.sparse_dataset(file["X"])
                written.append(counts)
            else:
                anndata.io.write_elem(file, "X", counts)
            kinds.append(kind)
        obs = pd.DataFrame({"kind": np.concatenate(kinds)}, index=_names("cell", cells))
        anndata.io.write_elem(file, "obs", obs)
        anndata.io.write_elem(file, "var", pd.DataFrame(index=_names("gene", GENES)))
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})


def _names(what, count):
    return [f"{what}{i}" for i in range(count)]


def clocks():
    """Seconds by the clock and of the processor."""
    return np.array([time.perf_counter(), time.process_time()])


class Watch(Callback):
    """Seconds of the last epoch."""

    def on_train_epoch_start(self, trainer, pl_module):
        self.start = clocks()

    def on_train_epoch_end(self, trainer, pl_module):
        self.seconds = clocks() - self.start


def made(cells, components):
    """An untrained model; SCVI for no components."""
    cls, options = (MixtureSCVI, {"n_components": components}) if components else (SCVI, {})
    cls.setup_anndata(cells)
    scvi.settings.seed = 0
    return cls(cells, **options)


def epoch(model):
    """Seconds of one more epoch."""
    watch = Watch()
    model.train(1, callbacks=[watch], **QUIET)
    return watch.seconds


def timed(call):
    """A function that returns the seconds of a call."""

    def measure(model):
        start = clocks()
        call(model)
        return clocks() - start

    return measure


WORK = {
    "epoch": epoch,
    "embedding": timed(lambda model: model.get_latent_representation()),
    "differential expression": timed(
        lambda model: model.differential_expression(groupby="kind", group1="a", group2="b", silent=True)
    ),
}


def speed(cells=CELLS, rounds=ROUNDS):
    """Seconds and memory of models in turn, as a table of ratios to SCVI's."""
    data = in_memory(cells)
    counts: Any = data.X
    share = counts.nnz / np.prod(data.shape)
    print(f"{cells} × {GENES}, {100 * share:.0f} % not zero; {torch.get_num_threads()} threads, {rounds} rounds")
    print("| work | model | s | of SCVI's | processor, s | of SCVI's |\n|---|---|--:|--:|--:|--:|", flush=True)
    models = {name: made(data, components) for name, components in CASES.items()}
    for work, measure in WORK.items():
        seconds = [{name: measure(model) for name, model in models.items()} for _ in range(rounds)]
        for name in CASES:
            columns = []
            for clock in (0, 1):
                ratios = sorted(r[name][clock] / r["SCVI"][clock] for r in seconds)
                columns += [
                    f"{statistics.median(r[name][clock] for r in seconds):.2f}",
                    f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})",
                ]
            print(f"| {work} | {name} | {' | '.join(columns)} |", flush=True)
    del models
    with TemporaryDirectory() as folder:
        path = Path(folder, "cells.h5ad")
        AnnData(data.X, data.obs[["kind"]]).write_h5ad(path)
        peaks = {name: alone("memory", path, components)["peak"] for name, components in CASES.items()}
    for name, peak in peaks.items():
        print(f"| peak memory, GB | {name} | {peak / 1e9:.2f} | {peak / peaks['SCVI']:.2f} | | |", flush=True)


def atlas(cells=ATLAS):
    """Seconds and memory of what is done with cells on disk."""
    with TemporaryDirectory(dir=".") as folder:
        path, run = Path(folder, "atlas.h5ad"), Path(folder, "run")
        on_disk(cells, path)
        print(f"{cells} × {GENES}, {path.stat().st_size / 1e9:.2f} GB on disk; {torch.get_num_threads()} threads")
        print("| work | s | peak memory, GB |\n|---|--:|--:|", flush=True)
        for work in ("train", "embed", "responsibilities", "score"):
            done = alone(work, path, run)
            print(f"| {work} | {done['seconds']:.0f} | {done['peak'] / 1e9:.2f} |", flush=True)


def alone(work, *words):
    """What a process of its own measured."""
    command = [sys.executable, __file__, work, *map(str, words)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def memory(path, components):
    """Train for an epoch."""
    epoch(made(anndata.read_h5ad(path), int(components)))


def score(path, run):
    """Score some of the cells of a file, from its first to its last."""
    cells = read_cells([path], backed=True)
    chosen = np.linspace(0, cells.n_obs - 1, min(SCORED, cells.n_obs)).astype(int)
    load(run, cells).get_marginal_ll(indices=chosen, n_mc_samples=DRAWS)


def embedded(path, run, **options):
    """Write a copy of the cells with their embedding."""
    embed(run, path, Path(path).with_name("embedded.h5ad"), backed=True, **options)


ALONE = {
    "memory": memory,
    "train": lambda path, run: train(path, run, Settings(epochs=1), backed=True),
    "embed": partial(embedded, responsibilities=False),
    "responsibilities": embedded,
    "score": score,
}


def report(work, words):
    """Do something and print its seconds and this process's peak memory."""
    start = time.perf_counter()
    ALONE[work](*words)
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    print(json.dumps({"seconds": time.perf_counter() - start, "peak": 1024 * int(line.split()[1])}))


def main():
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    scvi.settings.verbosity = logging.ERROR
    work, *words = sys.argv[1:] or ["speed"]
    if work in ALONE:
        report(work, words)
    else:
        {"speed": speed, "atlas": atlas}[work](*map(int, words))


if __name__ == "__main__":
    main()
