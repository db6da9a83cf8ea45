"""The commands for single cells, `mixvae sc train` and `mixvae sc embed`: just arguments and calls."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from mixvae._tables import counted
from mixvae.cli.output import names, quiet, show, target
from mixvae.progress import Terminal


def _check_installed() -> None:
    """Import scvi-tools, or say how to install it."""
    try:
        import mixvae.single_cell.runs  # noqa: F401
    except ImportError as error:
        raise ValueError(str(error)) from None


def train(
    file: str,
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
    out: str | None = None,
) -> None:
    """Train MixtureSCVI on the cells of an .h5ad file; the same command again resumes a killed run.

    Args:
        file: the .h5ad file, with raw counts.
        components: number of encoders S.
        batch_key: column of obs with the batch.
        labels_key: column of obs with labels.
        layer: layer of the raw counts; X by default.
        categorical_covariates: columns of obs with further categories, separated by commas.
        continuous_covariates: columns of obs with numbers, separated by commas.
        latent: latent size.
        likelihood: distribution of the counts.
        epochs: most epochs; by default chosen by the number of cells.
        patience: epochs without a better validation ELBO after which training stops.
        seed: seed of weights, split and draws.
        out: run directory; runs/FILE-S… by default.
    """
    _check_installed()
    from mixvae.runs import open_run
    from mixvae.single_cell import runs

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
    run = Path(out or Path("runs") / f"{Path(file).stem}-S{components}")
    with quiet(), Terminal() as progress:
        runs.train(file, run, settings, progress)
    last = open_run(run).metrics[-1]
    show(
        f"{run}: {counted(last['epoch'], 'epoch')}; validation ELBO {last['validation']:.1f} nats per cell\n"
        f"next: mixvae sc embed {run} {file}"
    )


def embed(run: str, file: str, out: str | None = None) -> None:
    """Write a copy of an .h5ad file with latents and responsibilities in obsm.

    Args:
        run: the run directory.
        file: an .h5ad file with the genes of the run.
        out: the .h5ad file to write; FILE-embedded.h5ad by default.
    """
    path = target(out or f"{Path(file).stem}-embedded.h5ad", ".h5ad")
    _check_installed()
    from mixvae.single_cell import runs

    with quiet():
        adata = runs.embed(run, file, path)
    show(f"wrote {path}: {adata.n_obs} cells, obsm[{runs.LATENT_KEY!r}] and obsm['X_mixvae_responsibilities']")


SINGLE_CELL = {"sc-train": train, "sc-embed": embed}
