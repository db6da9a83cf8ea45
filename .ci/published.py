"""What a published folder holds: the results that its command asks for, all of them and no others."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any

from mixvae.reproduce import find
from mixvae.reproduce.findings import Changes, Plan


def asked(command: str) -> tuple[dict[str, Any], Plan]:
    """The arguments of a command `mixvae reproduce`, and the plan that it carries out."""
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("--scale", default="small")
    parser.add_argument("--seeds", type=lambda text: [int(seed) for seed in text.split(",")])
    parser.add_argument("--models", type=lambda text: text.split(","))
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--warmup", type=int)
    given = vars(parser.parse_args(shlex.split(command)[2:]))
    changes = Changes(**{name: given[name] for name in ("seeds", "epochs", "warmup", "models")})
    return given, find(given["name"]).scales[given["scale"]].changed(changes)


def held(folder: Path) -> set[str]:
    """Names of the results in a folder: evaluated runs, toys, and evaluations without a run."""
    runs = {path.parent.parent.name for path in folder.glob("*/evaluations/*.json")}
    toys = {path.parent.name for path in folder.glob("*/reproduced.json")}
    return runs | toys | {path.stem for path in folder.glob("*.json") if path.with_suffix(".npz").exists()}


def check(folder: Path, plan: Plan) -> None:
    """Refuse a folder that does not hold what a plan makes, or that holds more."""
    there, wanted = held(folder), set(plan.names)
    if lacking := sorted(wanted - there):
        raise SystemExit(f"{folder} lacks {', '.join(lacking)}: train it with the command, and publish again")
    if more := sorted(there - wanted):
        raise SystemExit(
            f"{folder} also holds {', '.join(more)}, which the command does not ask for: reproduce it with all of "
            "them, or move them away"
        )
