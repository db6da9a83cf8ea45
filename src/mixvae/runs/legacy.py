"""Run directories from before runs had an identity: they can be read, and pair with each other only.

They hold config.yaml, metrics.jsonl, results.json and examples.npz, perhaps weights, but no record of what each was
made from. What is missing is unknown.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

import mixvae.config
from mixvae.evaluation import Evaluation, Identity
from mixvae.files import read_json
from mixvae.representation import Representation
from mixvae.runs.recipe import legacy_recipe
from mixvae.runs.store import MARK, Layout

BOUNDS = ("elbo", "miselbo", "pooled")


def is_run(path: Path) -> bool:
    """Whether a directory is such a run."""
    file = path / "config.yaml"
    if not file.exists() or (path / "run.json").exists() or file.read_bytes().startswith(MARK.encode()):
        return False
    return any((path / name).exists() for name in ("results.json", "model.safetensors", "last/state.pt"))


def manifest(path: Path) -> dict[str, Any]:
    """What `run.json` would hold, as far as it is known."""
    config = mixvae.config.read(path / "config.yaml")
    rows = _rows(path / "metrics.jsonl")
    results = read_json(path / "results.json") if (path / "results.json").exists() else {}
    if not isinstance(results, dict):
        raise ValueError(f"{path / 'results.json'} is no result of mixvae: restore the file from a copy")
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
    """All whole lines of the metrics; a line cut off by a crash is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def weights(path: Path) -> bytes:
    """Content of the weights.

    Raises:
        FileNotFoundError: the run came without weights.
    """
    file = Layout(path).weights
    if not file.exists():
        raise FileNotFoundError(f"{file} does not exist: this legacy run came without weights; train it anew")
    return file.read_bytes()


def evaluation(path: Path) -> Evaluation | None:
    """The one evaluation that such a run holds, if it has one.

    Raises:
        ValueError: a file is damaged, or the two do not belong together.
    """
    layout = Layout(path)
    arrays = path / "examples.npz"
    if not layout.results.exists():
        return None
    results = read_json(layout.results)
    if not arrays.exists():
        raise FileNotFoundError(f"{arrays} does not exist: run `mixvae evaluate {path}` again")
    try:
        with np.load(arrays, allow_pickle=False) as content:
            bounds = {name: content[name].astype(float) for name in content.files}
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{arrays} is damaged: {error}") from None
    for name, sign in (("elbo", 1), ("nll_miselbo", -1), ("nll_pooled", -1)):
        bound = bounds.get(name.removeprefix("nll_"))
        if bound is not None and not math.isclose(sign * bound.mean(), results[name], rel_tol=1e-5, abs_tol=1e-5):
            raise ValueError(f"{arrays} and {layout.results} do not belong together: {name} differs; evaluate again")
    identity = Identity(
        results.get("data_sha256"),
        results.get("split"),
        results["examples"],
        None,
        results.get("components", 1),
        results.get("draws_per_component", results["draws"]),
        results.get("seed", 0),
        legacy=True,
    )
    return Evaluation(identity, bounds, results | {"legacy": True})


def representations(path: Path) -> list[tuple[str, Representation]]:
    """Split and scores of what the latents tell about labels, if that was measured."""
    file = path / "representation.json"
    if not file.exists():
        return []
    content = read_json(file)
    return [(content.get("split", "unknown"), Representation(content["scores"]))]
