"""Copy what the tables of an experiment need, without weights.

    python .ci/publish.py runs/reproduce/digits-small docs/data/digits

Of every run: run.json, which has the learning curve too, config.yaml, scores of latents, and evaluations with
log p(x) and the ELBO of every example in float32; of results without a run, their files. The command in command.txt,
given that folder as `--out`, then prints the table and trains nothing. With further seeds it trains what is missing, in
a copy, which can be published in turn: so a long experiment is carried out in parts. A folder with other results than
its last command asked for is refused.
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from published import asked, check

from mixvae.files import read_json
from mixvae.runs._stored import read_evaluation, read_stored, save_evaluation

KEPT = ("log_px", "elbo")
COPIED = ("run.json", "config.yaml")


def publish(out: Path, target: Path) -> None:
    """Copy every result of a folder; the target must not exist, and is there as a whole or not at all."""
    if target.exists():
        raise SystemExit(f"{target} exists: delete it, or choose another")
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=target.parent) as home:
        copy(out, Path(home) / target.name)
        (Path(home) / target.name).rename(target)


def copy(out: Path, target: Path) -> None:
    """Copy every result of a folder."""
    command, _, _ = read_json(out / "results.json")["command"].rpartition(" --out ")
    if not command:
        raise SystemExit(f"{out / 'results.json'} has no command that ends with --out FOLDER: reproduce it again")
    _, plan = asked(command)
    check(out, plan)
    target.mkdir()
    (target / "command.txt").write_text(f"{command}\n")
    for name in plan.names:
        run, its = out / name, target / name
        if not (run / "evaluations").exists():
            if run.exists():  # a toy
                shutil.copytree(run, its)
            for path in out.glob(f"{name}.*"):  # an evaluation without a run
                shutil.copy(path, target)
            continue
        (its / "evaluations").mkdir(parents=True)
        for name in COPIED:
            if (run / name).exists():  # runs of cells have no config.yaml
                shutil.copy(run / name, its)
        for path in run.glob("representation*.json"):
            shutil.copy(path, its)
        for path in run.glob("evaluations/*.json"):
            if "results" not in (content := read_stored(path)):
                shutil.copy(path, its / path.relative_to(run))
                continue
            made = read_evaluation(path)
            kept = {name: made.bounds[name].astype(np.float32) for name in KEPT if name in made.bounds}
            arrays = kept or made.bounds  # scores of latents have no bounds
            save_evaluation(its / path.relative_to(run), replace(made, bounds=arrays), content["extra"])


if __name__ == "__main__":
    publish(*map(Path, sys.argv[1:]))
