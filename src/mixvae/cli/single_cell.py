"""The commands for single cells, `mixvae sc train` and `mixvae sc embed`: just arguments and calls."""

from __future__ import annotations

import io
import shlex
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Literal

from mixvae._tables import counted
from mixvae.cli.output import folder, names, quiet, show, target
from mixvae.progress import Terminal


def _check_installed() -> None:
    """Import scvi-tools, or say how to install it."""
    try:
        import mixvae.single_cell.runs  # noqa: F401
    except ImportError as error:
        raise ValueError(str(error)) from None


def train(
    files: str | list[str],
    components: int = 4,
    batch_key: str | None = None,
    labels_key: str | None = None,
    layer: str | None = None,
    categorical_covariates: str = "",
    continuous_covariates: str = "",
    latent: int = 10,
    likelihood: Literal["zinb", "nb", "poisson", "normal"] = "zinb",
    epochs: int | None = None,
    patience: int = 45,
    seed: int = 0,
    accelerator: str = "auto",
    devices: int | None = None,
    nodes: int | None = None,
    out: str | None = None,
    *,
    backed: bool = False,
) -> None:
    """Train MixtureSCVI on the cells of a file or folder; the same command again resumes a killed run.

    Args:
        files: files with the raw counts: .h5ad, .loom, 10x .h5, 10x matrix.mtx, or a folder of files of one kind.
        components: number of encoders S.
        batch_key: column of obs with the batch.
        labels_key: column of obs with labels.
        layer: layer of the raw counts; X by default.
        categorical_covariates: columns of obs with further categories, separated by commas.
        continuous_covariates: columns of obs with numbers, separated by commas.
        latent: latent size.
        likelihood: distribution of the counts.
        epochs: maximum number of epochs; by default it depends on the number of cells.
        patience: epochs without a better validation ELBO after which training stops.
        seed: seed of weights, split and draws.
        accelerator: auto, cpu, cuda, gpu, mps or tpu, as in Lightning.
        devices: devices on each node, which share every batch; by default one, or one per process of torchrun or srun.
        nodes: number of nodes; by default the number on which torchrun or srun started processes, else one.
        out: run directory; runs/FILE-S… by default.
        backed: leave the counts, the X of .h5ad files, on disk if they do not fit into memory.
    """
    _check_installed()
    from mixvae.runs import open_run
    from mixvae.single_cell import runs
    from mixvae.training import launch

    settings = runs.Settings(
        components,
        batch_key,
        labels_key,
        layer,
        tuple(names(categorical_covariates)),
        tuple(names(continuous_covariates)),
        latent,
        likelihood,
        epochs,
        patience,
        seed,
    )
    given = _listed(files)
    run = folder(Path("runs") / f"{_name(given)}-S{components}" if out is None else _named(out))
    with quiet(), redirect_stdout(io.StringIO()), Terminal() as progress:  # scvi-tools prints what it raises
        fabric = launch(accelerator, devices, nodes=nodes)
        runs.train(given, run, settings, progress, backed=backed, fabric=fabric)
    if not fabric.is_global_zero:
        return
    last = open_run(run).metrics[-1]
    show(
        f"{run}: {counted(last['epoch'], 'epoch')}; validation ELBO {last['validation']:.1f} nats per cell\n"
        f"next: mixvae sc embed {shlex.join([str(run), *given])}{' --backed' * backed}"
    )


def embed(
    run: str,
    files: str | list[str],
    out: str | None = None,
    *,
    backed: bool = False,
    responsibilities: bool = True,
) -> None:
    """Write a copy of the cells, an .h5ad file, with latents and responsibilities in obsm.

    Args:
        run: the run directory.
        files: cells with the genes of the run, in any order, possibly with others; as `mixvae sc train` takes them.
        out: the .h5ad file to write; FILE-embedded.h5ad by default.
        backed: leave the counts, the X of .h5ad files, on disk if they do not fit into memory.
        responsibilities: write the responsibilities of the components too, which takes many times as long as the
            latents.
    """
    given = _listed(files)
    if Path(run).is_file():
        raise ValueError(
            f"{run} is a file, not a run: mixvae sc embed takes the run first, and then the files of cells"
        )
    path = target(f"{_name(given)}-embedded.h5ad" if out is None else _named(out), ".h5ad")
    _check_installed()
    from mixvae.single_cell import runs

    with quiet():
        adata = runs.embed(run, given, path, backed=backed, responsibilities=responsibilities)
    keys = [runs.LATENT_KEY, *[runs.OBSM_KEY] * responsibilities]
    show(f"wrote {path}: {adata.n_obs} cells, {' and '.join(f'obsm[{key!r}]' for key in keys)}")


def _listed(files: str | list[str]) -> list[str]:
    return [files] if isinstance(files, str) else files


def _named(out: str) -> str:
    if not out:
        raise ValueError("--out must be the name of a folder or file; got an empty one")
    return out


def _name(files: Sequence[str]) -> str:
    """Stem of the names of results: the first file, and how many more there are."""
    return Path(files[0]).stem + (f"+{len(files) - 1}" if len(files) > 1 else "")


SINGLE_CELL = {"sc-train": train, "sc-embed": embed}
