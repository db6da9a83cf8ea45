"""Copy what the tables of an experiment need, without weights.

    python .ci/publish.py runs/reproduce/digits-small docs/data/digits

Of every run: run.json, which has the learning curve too, config.yaml, scores of latents, and evaluations with
log p(x) and the ELBO of every example in float32. The command in command.txt, given that folder as `--out`, then prints
the table and trains nothing. With further seeds it trains what is missing, in a copy, which can be published in turn:
so a long experiment is carried out in parts.
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from mixvae.files import read_json
from mixvae.runs._stored import read_evaluation, read_stored, save_evaluation

KEPT = ("log_px", "elbo")
COPIED = ("run.json", "config.yaml")


def publish(out: Path, target: Path) -> None:
    """Copy every evaluated run of a folder; the target must not exist."""
    command, _, _ = read_json(out / "results.json")["command"].rpartition(" --out ")
    target.mkdir(parents=True)
    (target / "command.txt").write_text(f"{command}\n")
    for manifest in sorted(out.glob("*/run.json")):
        run, copy = manifest.parent, target / manifest.parent.name
        if not any(run.glob("evaluations/*.json")):
            continue
        (copy / "evaluations").mkdir(parents=True)
        for name in COPIED:
            if (run / name).exists():  # runs of cells have no config.yaml
                shutil.copy(run / name, copy)
        for path in run.glob("representation*.json"):
            shutil.copy(path, copy)
        for path in run.glob("evaluations/*.json"):
            if "results" not in (content := read_stored(path)):
                shutil.copy(path, copy / path.relative_to(run))
                continue
            made = read_evaluation(path)
            arrays = {name: made.bounds[name].astype(np.float32) for name in KEPT}
            save_evaluation(copy / path.relative_to(run), replace(made, bounds=arrays), content["extra"])


if __name__ == "__main__":
    publish(*map(Path, sys.argv[1:]))
