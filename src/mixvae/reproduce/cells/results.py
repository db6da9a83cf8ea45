"""Results of the single-cell experiments: stored with what they were made from, compared seed by seed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from anndata import AnnData

from mixvae._tables import Row
from mixvae.evaluation import Evaluation, Identity, mismatch, paired_gain
from mixvae.files import canonical, checksum, read_json

SCVI_NAME, RIVAL, FROZEN, MIXTURE, UNNORMALISED = "scvi", "samples", "frozen", "mixture", "nobatchnorm"
BOUNDS = ("elbo", "miselbo", "pooled")
LEGACY_BATCH = 128
"""Cells per step in results that do not record it."""


@dataclass(frozen=True)
class Job:
    """One model to train: a kind, a number of components, a seed."""

    kind: str
    components: int
    seed: int

    @property
    def name(self) -> str:
        """Name of its run directory."""
        return f"{self.kind}-S{self.components}-seed{self.seed}"


def labels_sha256(adata: AnnData, keys: Sequence[str]) -> str:
    """Checksum of the cells' labels."""
    return checksum(canonical({key: list(map(str, adata.obs[key])) for key in keys}))


def legacy(folder: Path, listed: Sequence[Job], check: Callable[[Path, Mapping[str, Any]], None]) -> list[Any] | None:
    """Results of a folder from before results had an identity, one JSON file per model; None if there are none.

    Args:
        folder: the folder.
        listed: the requested models.
        check: raises an error if a result is not the requested one.

    Raises:
        ValueError: some requested models are missing: such results pair with each other only.
    """
    kinds = (SCVI_NAME, FROZEN, MIXTURE, UNNORMALISED)
    there = {path.stem for kind in kinds for path in folder.glob(f"{kind}-S*-seed*.json")}
    if not there:
        return None
    if runs := sorted(folder.glob("*-S*-seed*/run.json")):
        raise ValueError(
            f"{folder} holds legacy results, with no record of their data, and runs, such as {runs[0].parent.name}: "
            "legacy results pair with each other only; move one of the two to another folder"
        )
    if missing := [job.name for job in listed if job.name not in there]:
        raise ValueError(
            f"{folder} holds legacy results, without a record of their data, of {len(there)} models but not of "
            f"{missing[0]}: legacy results pair with each other only; choose another folder"
        )
    results = []
    for job in listed:
        path = folder / f"{job.name}.json"
        content = read_json(path)
        try:
            check(path, content)
            if {name: content[name] for name in asdict(job)} != asdict(job):
                raise ValueError(f"{path} is not of the model that its name says")
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is no result of this experiment: {error!r}; restore it from a copy") from None
        results.append(content)
    return results


def agree(path: Path, recorded: Mapping[str, Any], requested: Mapping[str, Any]) -> None:
    """Check that a legacy result was made with the requested settings.

    Raises:
        ValueError: it was not; the message names the first setting that differs.
    """
    for name, value in requested.items():
        held = recorded.get(name, LEGACY_BATCH if name == "batch" else None)
        if held != value:
            raise ValueError(
                f"{path} was made with something else: {name} is {held}, not {value}; ask for the same, or choose "
                "another folder"
            )


def legacy_evaluation(content: Mapping[str, Any]) -> Evaluation:
    """A legacy result as an evaluation: of its data only the number of held-out cells is known."""
    own = content["estimate"]
    if not all(isinstance(value, int | float) for value in content["pooled"]):
        raise TypeError("pooled holds something other than numbers")
    pooled = np.array(content["pooled"], dtype=float)
    each = own["draws_per_component"]
    identity = Identity(None, "test", len(pooled), None, own["components"], each, own["seed"], legacy=True)
    job = {name: content[name] for name in ("kind", "components", "seed")}
    rest = {name: content[name] for name in ("epochs", "seconds", "settings", "representation")}
    return Evaluation(
        identity, {"pooled": pooled}, {**own, "total_draws": own["draws"], **rest, "job": job, "legacy": True}
    )


def table(results: Sequence[Evaluation]) -> Iterator[Row]:
    """One row per model and S: means over seeds, each with its standard error, and the paired gain over SCVI.

    Raises:
        ValueError: the results are not all of the same cells, or lack SCVI, the baseline of all comparisons.
    """
    by_key: dict[tuple[str, int], dict[int, _Scored]] = {}
    for result in results:
        if reason := mismatch(result.identity, results[0].identity):
            raise ValueError(f"one table needs the same cells; these results are of {reason}")
        job = result["job"]
        for name, scores in result["representation"].items():
            key = (name.rstrip("12345"), int(name[-1]) if name[-1].isdigit() else job["components"])
            values, bounds = dict(scores), None
            if not name.startswith(RIVAL):
                bounds = result
                values |= {"elbo": result["elbo"], "miselbo": -result["nll_miselbo"], "pooled": -result["nll_pooled"]}
                values |= {"effective": result["effective_components"], "epochs": float(result["epochs"])}
            by_key.setdefault(key, {})[job["seed"]] = _Scored(values, bounds)
    if (SCVI_NAME, 1) not in by_key:
        raise ValueError(f"gains are over SCVI of the same seed, which is missing: add {Job(SCVI_NAME, 1, 0).name}")
    baseline = by_key[SCVI_NAME, 1]
    for key, by_seed in sorted(by_key.items()):
        row: Row = {"model": key[0], "S": key[1], "seeds": len(by_seed)}
        for metric in next(iter(by_seed.values())).values:
            row[metric] = mean_and_error([scored.values[metric] for scored in by_seed.values()])
            paired = [scored.gain(baseline[seed], metric) for seed, scored in by_seed.items() if seed in baseline]
            row[f"{metric}_gain"] = mean_and_error(paired)
        yield row


@dataclass(frozen=True)
class _Scored:
    """Scores of one model, or of samples of it; for a model also the bounds of every cell."""

    values: Mapping[str, float]
    bounds: Evaluation | None

    def gain(self, old: _Scored, metric: str) -> float:
        """Gain over another model: paired by cell if the metric is a bound."""
        if self.bounds is not None and old.bounds is not None and metric in BOUNDS:
            if metric in self.bounds.bounds and metric in old.bounds.bounds:  # legacy results hold only one
                return paired_gain(self.bounds, old.bounds, metric, quiet=True).mean
        return self.values[metric] - old.values[metric]


def integration_table(results: Sequence[Mapping[str, Any]]) -> list[Row]:
    """One row per model and S: every score's mean over seeds with its standard error."""
    by_key: dict[tuple[str, int], list[dict[str, float]]] = {}
    for result in results:
        by_key.setdefault((result["kind"], result["components"]), []).append(result["scores"])
    return [
        {"model": kind, "S": s, "seeds": len(rows)} | {k: mean_and_error([r[k] for r in rows]) for k in rows[0]}
        for (kind, s), rows in by_key.items()
    ]


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean over seeds and its standard error."""
    if not values:
        return math.nan, math.nan
    spread = float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return float(np.mean(values)), spread
