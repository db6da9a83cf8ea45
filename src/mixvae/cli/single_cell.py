"""The commands for single cells, `mixvae sc train` and `mixvae sc embed`: nothing but arguments and calls."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from mixvae.cli.output import names, progress_bar, show, target

KEYS = ("model", "S", "seeds")
"""What names a row of the study."""


def _import() -> None:
    """Import scvi-tools, or say how to install it; silence what it says about itself."""
    import logging
    import warnings

    try:
        import mixvae.single_cell.runs  # noqa: F401  (and Fabric, which would set the level of its logger later)
    except ImportError as error:
        raise ValueError(str(error)) from None
    import scvi

    scvi.settings.verbosity = logging.ERROR
    for name in ("lightning.pytorch", "lightning.fabric", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")


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
    """Train MixtureSCVI on the cells of an .h5ad file; give the same command again to resume a killed run.

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
        epochs: most epochs; chosen by the number of cells by default.
        patience: epochs without a better validation ELBO after which training stops.
        seed: seed of weights, split and draws.
        out: run directory; runs/FILE-S… by default.
    """
    _import()
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
    with progress_bar("training") as (advance, _):
        runs.train(file, run, settings, lambda epoch, last, _: advance(epoch, last))
    last = open_run(run).metrics[-1]
    show(
        f"{run}: {last['epoch']} epochs; validation ELBO {last['validation']:.1f} nats per cell\n"
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
    _import()
    from mixvae.single_cell import runs

    adata = runs.embed(run, file, path)
    show(f"wrote {path}: {adata.n_obs} cells, obsm[{runs.LATENT_KEY!r}] and obsm['X_mixvae_responsibilities']")


def study(
    out: str = "runs/cortex",
    seeds: int = 3,
    more_seeds: int = 6,
    integration_seeds: int = 3,
    models: str = "",
    epochs: int = 400,
    warmup: int = 100,
    patience: int = 45,
    draws: int = 1000,
    batch: int = 128,
    cells: int | None = None,
) -> None:
    """Run the paper's single-cell experiment on CORTEX and print its tables; resumes where it was.

    Takes hours on two cores; every model is a run directory in OUT, and its results land there as they come.

    Args:
        out: folder of the runs.
        seeds: seeds of every model.
        more_seeds: seeds of SCVI and of mixtures of one and three.
        integration_seeds: seeds of the comparison on data with batches; 0 leaves it out.
        models: only these models, separated by commas, such as scvi-S1-seed0,mixture-S2-seed0.
        epochs: most epochs.
        warmup: epochs of KL warm-up.
        patience: epochs without a better validation ELBO after which training stops.
        draws: draws per held-out cell, over all components.
        batch: cells per step.
        cells: take the first N PBMC cells instead of CORTEX, for a trial.
    """
    _import()
    from mixvae.single_cell import study as experiment

    listed = experiment.chosen(names(models)) if models else experiment.jobs(seeds, more_seeds)
    data = None if cells is None else experiment.trial(cells)
    with progress_bar("training") as (advance, _):
        done: list[str] = []

        def finished(job: Any, result: Any) -> None:
            del result
            done.append(job.name)
            advance(len(done), len(listed))

        results = experiment.run(
            out, listed, epochs=epochs, warmup=warmup, patience=patience, draws=draws, batch=batch, data=data,
            progress=finished,
        )  # fmt: skip
        integration = experiment.integrate(out, seeds=integration_seeds, data=data)
    rows = list(experiment.table(results))
    gains = [{k.removesuffix("_gain"): v for k, v in r.items() if k.endswith("_gain") or k in KEYS} for r in rows]
    _show_rows("mean ± standard error over seeds", [{k: v for k, v in r.items() if "_gain" not in k} for r in rows])
    _show_rows("gain over SCVI of the same seed", gains)
    if integration:
        _show_rows("integration of two batches", experiment.integration_table(integration))
    if results[0].identity.legacy:
        show(f"note: {out} holds legacy results, with no record of the data that they were made from")


def _show_rows(title: str, rows: list[dict[str, Any]]) -> None:
    """Print rows whose values are means with standard errors."""
    from rich.table import Table

    columns = list(dict.fromkeys(key for row in rows for key in row))
    table = Table(*columns, title=title)
    for row in rows:
        cells = [row.get(column, "") for column in columns]
        table.add_row(*(f"{c[0]:.3f} ± {c[1]:.3f}" if isinstance(c, tuple) else str(c) for c in cells))
    show(table)


SINGLE_CELL = {"sc-train": train, "sc-embed": embed, "sc-study": study}
