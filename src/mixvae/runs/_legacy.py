"""Run directories from before runs had an identity: they can be read, and compared with each other only.

They hold config.yaml, metrics.jsonl, results.json and examples.npz, perhaps weights, but no record of what each was
made from, which is unknown.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mixvae.config
from mixvae._arrays import read_npz
from mixvae._failures import typed
from mixvae.analysis import Representation
from mixvae.evaluation import Evaluation, Identity, is_tight
from mixvae.files import one_line, read_json, read_regular
from mixvae.runs._recipe import legacy_recipe
from mixvae.runs._store import MARK, Layout
from mixvae.runs._stored import scores_in

COUNTED = ("epoch", "best_epoch", "seconds", "validation")
"""Keys of every row of metrics."""
SHOWN = (
    "elbo", "miselbo", "nll_miselbo", "nll_pooled", "nll_pooled_se", "jsd", "effective_components", "parameters",
    "train_seconds", "pareto_k_unreliable",
)  # fmt: skip
"""Numbers of an evaluation that tables show."""
NAMED = ("data", "data_sha256", "split")
"""Texts of an evaluation that tables show."""


def is_run(path: Path) -> bool:
    """Whether a directory is such a run."""
    file = path / "config.yaml"
    if not file.is_file() or (path / "run.json").exists():
        return False
    with open(file, "rb") as content:
        if content.read(len(MARK.encode())) == MARK.encode():
            return False
    return any((path / name).exists() for name in ("results.json", "model.safetensors", "last/state.pt"))


def manifest(path: Path) -> dict[str, Any]:
    """What `run.json` would hold, as far as is known."""
    config = mixvae.config.read(path / "config.yaml")
    rows = _rows(path / "metrics.jsonl")
    results = _results(path / "results.json") if (path / "results.json").exists() else {}
    last = rows[-1] if rows else {"epoch": 0, "best_epoch": 0, "seconds": 0.0}
    return {
        "recipe": legacy_recipe(config, results.get("data_sha256")).to_json(),
        "goal": {"epochs": config.training.epochs, "patience": config.training.patience},
        "progress": {
            "epoch": last["epoch"],
            "step": 0,
            "best_epoch": last["best_epoch"],
            "best": max((row["validation"] for row in rows), default=None),
            "seconds": last["seconds"],
        },
        "runtime": {"data": {"name": config.data.name, "origin": asdict(config.data), "relative": None}},
        "config": asdict(config),
        "model": None,
        "rows": rows,
        "files": {},
    }


def _rows(path: Path) -> list[dict[str, Any]]:
    """All complete lines of the metrics; a line cut off by a crash is left out.

    Raises:
        ValueError: a line is complete, but not a row of metrics.
    """
    rows = []
    for line in read_regular(path).decode(errors="replace").splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            break
        if not isinstance(row, dict) or not all(_is_number(row.get(name)) for name in COUNTED):
            raise ValueError(f"{path} is damaged: {line[:60]} is not a row of metrics; restore the file from a copy")
        rows.append(row)
    return rows


def _results(path: Path) -> dict[str, Any]:
    """Results of an evaluation.

    Raises:
        ValueError: the file is damaged.
    """
    results = read_json(path)
    if not isinstance(results, dict):
        raise ValueError(f"{path} is not a result of mixvae: restore the file from a copy")
    sizes = [results.get(name) for name in ("examples", "draws")]
    sizes += [results.get(name, 1) for name in ("components", "draws_per_component", "seed")]
    if not all(type(size) is int and size >= 0 for size in sizes):
        raise ValueError(f"{path} is damaged: it holds no numbers of examples and draws; restore it from a copy")
    wrong = [name for name in SHOWN if results.get(name) is not None and not _is_number(results[name])]
    wrong += [name for name in ("elbo", "nll_pooled") if results.get(name) is None]
    wrong += [name for name in NAMED if not isinstance(results.get(name), str | None)]
    if wrong:
        raise ValueError(f"{path} is damaged: {wrong[0]} is {str(results.get(wrong[0]))[:60]}; restore it from a copy")
    unreliable = results.get("pareto_k_unreliable")
    headline = {
        "total_draws": results.pop("draws"),
        "nll": results["nll_pooled"],
        "nll_se": results.get("nll_pooled_se"),
        "kl_posterior": -results["nll_pooled"] - results["elbo"],
        "tight": is_tight(None, unreliable),
        "proposal": "posterior",
    }
    return {**dict.fromkeys(SHOWN), "data": "unknown", "split": None, **results, **headline}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def weights(path: Path) -> bytes:
    """Content of the weights file.

    Raises:
        FileNotFoundError: the run came without weights.
    """
    file = Layout(path).weights
    if not file.exists():
        raise FileNotFoundError(f"{file} does not exist: this legacy run came without weights; train it again")
    return read_regular(file)


def evaluation(path: Path) -> Evaluation | None:
    """The one evaluation of such a run, if it has one.

    Raises:
        ValueError: a file is damaged, or the two do not belong together.
    """
    layout = Layout(path)
    arrays = path / "examples.npz"
    if not layout.results.exists():
        return None
    results = _results(layout.results)
    if not arrays.exists():
        raise FileNotFoundError(f"{arrays} does not exist: run `{typed('evaluate', path)}` again")
    try:
        bounds = {name: values.astype(float) for name, values in read_npz(arrays, arrays.name).items()}
    except Exception as error:  # noqa: BLE001  (damage shows as any kind: BadZipFile, zlib.error, KeyError, struct.error …)
        raise ValueError(f"{arrays} is damaged: {one_line(error)}; restore it from a copy, or evaluate again") from None
    for name, sign in (("elbo", 1), ("nll_miselbo", -1), ("nll_pooled", -1)):
        bound = bounds.get(name.removeprefix("nll_"))
        if bound is None:
            continue
        mean = results.get(name)
        if mean is None or not math.isclose(sign * bound.mean(), mean, rel_tol=1e-5, abs_tol=1e-5):
            raise ValueError(f"{arrays} and {layout.results} do not belong together: {name} differs; evaluate again")
    identity = Identity(
        results.get("data_sha256"),
        results.get("split"),
        results["examples"],
        None,
        results.get("components", 1),
        results.get("draws_per_component", results["total_draws"]),
        results.get("seed", 0),
        legacy=True,
    )
    if "pooled" in bounds:
        bounds |= {"log_px": bounds["pooled"]}
    return Evaluation(identity, bounds, results | {"legacy": True})


def representations(path: Path) -> list[tuple[str, Representation]]:
    """Split and scores of how well the latents predict labels, if measured."""
    file = path / "representation.json"
    if not file.exists():
        return []
    content = read_json(file)
    if not isinstance(content, dict):
        raise ValueError(f"{file} is not a result of mixvae: restore the file from a copy, or delete it")
    return [(str(content.get("split", "unknown")), scores_in(content, file))]
