"""Results of the single-cell experiments: stored with what they were made from, compared between trainings."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from anndata import AnnData

from mixvae._tables import Row
from mixvae.evaluation import Evaluation, Gain, Identity, mismatch, paired_gain
from mixvae.files import canonical, checksum, read_json
from mixvae.reports import Trained, between_trainings, student, trust, within_seeds
from mixvae.reproduce.cells.names import BASELINE, DERIVED, FROZEN, KINDS, MIXTURE, RIVAL, SCVI_NAME, named_by_draws
from mixvae.reproduce.clock import least
from mixvae.reproduce.contrasts import Key
from mixvae.reproduce.measured import worst

LEGACY_BATCH = 128
"""Cells per step in results that do not record it."""


@dataclass(frozen=True)
class Job:
    """One model to train: a kind, a number of components, a seed, and draws from each component per step."""

    kind: str
    components: int
    seed: int
    draws: int = 1

    @property
    def name(self) -> str:
        """Name of its run directory."""
        drawn = "" if self.draws == 1 else f"-L{self.draws}"
        return f"{self.kind}-S{self.components}{drawn}-seed{self.seed}"

    @property
    def described(self) -> dict[str, Any]:
        """The job as JSON, in the older form if there is a single draw per step."""
        return asdict(self) if self.draws > 1 else {k: v for k, v in asdict(self).items() if k != "draws"}

    @property
    def key(self) -> Key:
        """Its name in tables: its kind, with its draws if there are several, and its number of components."""
        return named_by_draws(self.kind, self.draws), self.components


def with_scvi(sizes: Sequence[int], seeds: Sequence[int]) -> list[Job]:
    """SCVI and mixtures of these sizes, with every seed."""
    return [job for seed in seeds for job in (Job(SCVI_NAME, 1, seed), *(Job(MIXTURE, s, seed) for s in sizes))]


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
    there = {path.stem for kind in KINDS for path in folder.glob(f"{kind}-S*-seed*.json")}
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
            if {name: content[name] for name in job.described} != job.described:
                raise ValueError(f"{path} is not of the model that its name says")
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is not a result of this experiment: {error!r}; restore it from a copy") from None
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


def table(results: Sequence[Evaluation]) -> list[Row]:
    """One row per model and S: means over trainings, and gains over SCVI, each with the margin of its 95 % interval.

    Samples of SCVI's encoder side by side come from SCVI's own trainings, and so do frozen decoders: their gains over
    it are paired, and they do not count as further trainings.

    Raises:
        ValueError: the results are not all of the same cells, or lack SCVI, the baseline of all comparisons.
    """
    scored = _scored(results)
    made = by_model(results)
    rows: dict[Key, Row] = {}
    for key in sorted(scored):
        rows[key] = {"model": key[0], "size": key[1], "seeds": len(scored[key])}
        own = made.get(key, [])
        if own:
            rows[key]["seconds"] = least(own, "seconds")
            rows[key]["unreliable"] = worst(own, "pareto_k_unreliable")
            rows[key]["draws_per_step"] = Job(**own[0]["job"]).draws * key[1]
        rows[key] |= trust(own, "log_px") | trust(own + made[BASELINE], "log_px_gain")
    between = {
        metric: between_trainings({key: [*own.values()] for key, own in each.items()})
        for metric, each in _by_seed(scored).items()
    }
    for metric in _metrics(scored):
        having = _having(metric, scored)
        for key, own in having.items():
            row = rows[key]
            row[metric] = float(np.mean([*own.values()]))
            if key[0] not in DERIVED:
                row[f"{metric}_margin"] = between[metric].margin(key)
                row[f"{metric}_homogeneity"] = between[metric].homogeneity
                if key != BASELINE and BASELINE in between[metric].means:
                    gain = between[metric].difference(key, BASELINE)
                    row |= {f"{metric}_gain": gain.mean, f"{metric}_gain_margin": gain.margin}
            else:
                row[f"{metric}_margin"] = _mean([*own.values()])[1]
                gain, _ = within_seeds(own, having.get(BASELINE, {}))
                row |= {f"{metric}_gain": gain.mean, f"{metric}_gain_margin": gain.margin}
    return list(rows.values())


def by_seed(results: Sequence[Evaluation]) -> dict[str, dict[Key, Trained]]:
    """Value of every training, by bound or score, by model and by seed, of those with trainings of their own.

    Raises:
        ValueError: the results are not all of the same cells, or lack SCVI, the baseline of all comparisons.
    """
    return _by_seed(_scored(results))


def by_model(results: Sequence[Evaluation]) -> dict[Key, list[Mapping[str, Any]]]:
    """Results of all trainings of every model."""
    made: dict[Key, list[Mapping[str, Any]]] = {}
    for result in results:
        made.setdefault(_job(result).key, []).append(result.results)
    return made


def unchanged(results: Sequence[Evaluation]) -> list[tuple[int, Gain]]:
    """How far log p(x) under a frozen decoder differs from that of the SCVI that it was taken from, by S.

    The decoder is the same, and so is log p(x) of every cell: differences are errors of the estimates, and the standard
    error over cells is their Monte-Carlo error. Means over seeds.
    """
    before = {_job(one).seed: one for one in results if _job(one).key == BASELINE}
    each: dict[int, list[Gain]] = {}
    for result in results:
        if (job := _job(result)).kind == FROZEN and "log_px" in result.bounds:
            each.setdefault(job.components, []).append(paired_gain(result, before[job.seed]))
    return [
        (size, Gain(float(np.mean([g.mean for g in gains])), math.hypot(*(g.se for g in gains)) / len(gains)))
        for size, gains in sorted(each.items())
    ]


def _job(result: Evaluation) -> Job:
    return Job(**result["job"])


Scored = Mapping[Key, Mapping[int, Mapping[str, float]]]
"""Bounds and scores by model and seed."""


def _scored(results: Sequence[Evaluation]) -> Scored:
    """What was measured on every training, and on samples of SCVI's encoder.

    Raises:
        ValueError: the results are not all of the same cells, or lack SCVI, the baseline of all comparisons.
    """
    scored: dict[Key, dict[int, dict[str, float]]] = {}
    for result in results:
        if reason := mismatch(result.identity, results[0].identity):
            raise ValueError(f"one table needs the same cells; these results are of {reason}")
        job = _job(result)
        for name, scores in result["representation"].items():
            samples = name.startswith(RIVAL)
            key = (RIVAL, int(name[-1])) if samples else job.key
            scored.setdefault(key, {})[job.seed] = scores | ({} if samples else _bounds(result))
    if BASELINE not in scored:
        raise ValueError(f"gains are over SCVI, which is missing: add {Job(SCVI_NAME, 1, 0).name}")
    return scored


def _metrics(scored: Scored) -> list[str]:
    """Names of all bounds and scores."""
    return list(dict.fromkeys(name for by_seed in scored.values() for one in by_seed.values() for name in one))


def _having(metric: str, scored: Scored) -> dict[Key, dict[int, float]]:
    """Values of a metric by model and seed, of the models that have it."""
    has = {key: {seed: one[metric] for seed, one in own.items() if metric in one} for key, own in scored.items()}
    return {key: own for key, own in has.items() if own}


def _by_seed(scored: Scored) -> dict[str, dict[Key, Trained]]:
    return {
        metric: {key: own for key, own in _having(metric, scored).items() if key[0] not in DERIVED}
        for metric in _metrics(scored)
    }


def _bounds(result: Evaluation) -> dict[str, float]:
    """The parts of a model's likelihood that are compared; legacy results have no refined one."""
    values = {"elbo": result["elbo"], "miselbo": -result["nll_miselbo"], "pooled": -result["nll_pooled"]}
    if "log_px" in result.bounds:
        values |= {"log_px": -result["nll"], "posterior": result["elbo"] + result["nll"]}
    if "marginal_ll" in result.results:
        values |= {"marginal_ll": result["marginal_ll"]}
    return values | {"effective": result["effective_components"], "epochs": float(result["epochs"])}


def integration_table(results: Sequence[Mapping[str, Any]]) -> list[Row]:
    """One row per model and S: every score's mean over trainings, its gain over SCVI, and margins of 95 % intervals."""
    scored: dict[Key, list[dict[str, float]]] = {}
    for result in results:
        scored.setdefault((result["kind"], result["components"]), []).append(result["scores"])
    rows: dict[Key, Row] = {key: {"model": key[0], "size": key[1], "seeds": len(scored[key])} for key in scored}
    for metric in next(iter(scored.values()))[0]:
        between = between_trainings({key: [one[metric] for one in own] for key, own in scored.items()})
        for key, row in rows.items():
            row |= {metric: between.means[key], f"{metric}_margin": between.margin(key)}
            row[f"{metric}_homogeneity"] = between.homogeneity
            if key != BASELINE:
                gain = between.difference(key, BASELINE)
                row |= {f"{metric}_gain": gain.mean, f"{metric}_gain_margin": gain.margin}
    return list(rows.values())


def _mean(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half width of its 95 % interval."""
    spread = float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return float(np.mean(values)), spread * student(len(values) - 1)
