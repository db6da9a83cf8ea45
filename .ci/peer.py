#!/usr/bin/env python3
"""Run scvi-tools' own tests with mixtures in the places of SCVI and scANVI: `make peer`.

Its source distribution carries the tests. They run in an environment of their own, .venv/peer, once with SCVI, whose
results are kept there, and once with a mixture of three. What passes with SCVI must pass with the mixture, apart from
DIFFERENCES, whose reasons are in docs/single_cell.md. It needs Python 3.11, as the tests import distutils.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".venv" / "peer"
PYTHON = FOLDER / "bin" / "python"
VERSION = "1.4.2"
SHA256 = "c3d2e6e4cd7d41fccdaeead63c72a4d9a1681bb51f2ace107461217a182eb6e2"
SDIST = FOLDER / f"scvi_tools-{VERSION}.tar.gz"
NEEDED = ("pytest", "hatchling", "captum==0.9.0", "dask==2026.8.0", "huggingface_hub==2.4.0", "leidenalg==0.12.0")
"""What the tests need besides mixvae[scvi]; hatchling reads the metadata of the source distribution."""
TESTS = (
    "tests/model/test_scvi.py",
    "tests/model/test_models_with_minified_data.py",
    "tests/model/test_differential.py",
    "tests/model/test_differential_abundance.py",
    "tests/model/base",
    "tests/train",
    "tests/data",
    "tests/hub",
    "tests/model/test_scanvi.py",
    "tests/external/solo",
    "tests/criticism",
    "tests/dataloaders/test_dataloaders.py",
)
LEAST = 250
"""SCVI itself must pass this many, or the environment is broken."""
DIFFERENCES = {
    "`scvi.hub` knows its own classes": (
        "hub.test_hub_metadata::test_hub_modelcardhelper",
        "hub.test_hub_model::test_hub_model_init",
        "hub.test_hub_model::test_hub_model_save[False]",
        "hub.test_hub_model::test_hub_model_save[True]",
        "hub.test_hub_model::test_prep_scvi_hub_model",
    ),
    "`module.z_encoder` holds S encoders": (
        "model.test_scvi::test_scvi_online_update",
        "model.test_scvi::test_set_seed[1-5]",
    ),
    "a last batch of one cell is dropped": ("model.test_scvi::test_scvi_n_obs_error[5]",),
    "cells without counts are refused": ("data.test_dataset10X::test_pbmc_cite",),
    "a saved SCVI or scANVI is not loaded as a mixture": ("model.test_scanvi::test_scanvi_pre_logits_fix_load",),
}
"""At most five differences, by their names in docs/single_cell.md, and the tests that meet them."""


def run(*words: str | Path, **options) -> int:
    """Run a program and return its status."""
    print("$", *words, flush=True)
    return subprocess.run([str(word) for word in words], check=False, **options).returncode


def install() -> None:
    """Make the environment, and fetch and unpack the tests, unless that was done."""
    parts = [VERSION, *NEEDED, *((ROOT / name).read_text() for name in ("pyproject.toml", "constraints.txt"))]
    wanted, made = hashlib.sha256("\n".join(parts).encode()).hexdigest(), FOLDER / "installed"
    if made.exists() and made.read_text() == wanted:
        return
    if sys.version_info[:2] != (3, 11):
        sys.exit(f"scvi-tools' tests import distutils and need Python 3.11; got {sys.version.split()[0]}")
    pip = (PYTHON, "-m", "pip", "--quiet", "--disable-pip-version-check")
    steps = (
        (sys.executable, "-m", "venv", "--clear", FOLDER),
        (*pip, "install", "--no-compile", "-c", "constraints.txt", "--editable", ".[scvi]", *NEEDED),
    )
    for step in steps:
        if run(*step, cwd=ROOT):
            sys.exit("the environment could not be made")
    pinned = FOLDER / "sdist.txt"
    pinned.write_text(f"scvi-tools=={VERSION} --hash=sha256:{SHA256}\n")
    words = ("--require-hashes", "--no-deps", "--no-build-isolation", "--no-binary", ":all:", "--requirement", pinned)
    if run(*pip, "download", *words, "--dest", FOLDER, cwd=ROOT):
        sys.exit(f"the source distribution of scvi-tools {VERSION} could not be fetched")
    made.write_text(wanted)


def unpack(folder: Path) -> Path:
    """Unpack the tests afresh, after checking what they are in, and return where they run."""
    if hashlib.sha256(SDIST.read_bytes()).hexdigest() != SHA256:
        sys.exit(f"{SDIST} is damaged: remove {FOLDER / 'installed'} and run this again")
    shutil.rmtree(folder, ignore_errors=True)
    with tarfile.open(SDIST) as archive:
        top = f"scvi_tools-{VERSION}"
        wanted = [m for m in archive if m.name.startswith(f"{top}/tests/") or m.name == f"{top}/pyproject.toml"]
        archive.extractall(folder, wanted, filter="data")
    return folder / top


def results(which: str) -> dict[str, str]:
    """Outcome of every test with SCVI or with the mixture: passed, failed or skipped."""
    folder = unpack(FOLDER / which)
    report = folder / "report.xml"
    environment = os.environ | {"PYTHONPATH": str(ROOT / ".ci"), "PEER": which, "OMP_NUM_THREADS": "1"}
    options = ("-q", "--tb=line", "-p", "peer_plugin", "-p", "no:cacheprovider", "-W", "ignore", "--no-header")
    temporary = folder.parent / "temporary"
    words = (PYTHON, "-m", "pytest", *options, f"--junitxml={report}", f"--basetemp={temporary}", *TESTS)
    with (FOLDER / f"{which}.log").open("w") as log:
        run(*words, cwd=folder, env=environment, stdout=log, stderr=log)
    if not report.exists():
        sys.exit(f"the tests did not run; see {FOLDER / f'{which}.log'}")
    return outcomes(report)


def outcomes(report: Path) -> dict[str, str]:
    """Outcome of every test in a report of pytest; parameters are named as for SCVI."""
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):
        name = f"{case.get('classname', '').removeprefix('tests.')}::{case.get('name')}"
        name = name.replace("MixtureSC", "SC")
        kinds = {part.tag for part in case}
        found[name] = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
    return found


def of_scvi() -> tuple[dict[str, str], str]:
    """Outcomes with SCVI, and where they come from; kept, as they change only with the environment."""
    parts = ((FOLDER / "installed").read_text(), (ROOT / ".ci" / "peer_plugin.py").read_text(), *TESTS)
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    kept = FOLDER / f"scvi-{VERSION}-{key}.json"
    if kept.exists():
        return json.loads(kept.read_text()), f"kept from an earlier run, {kept.relative_to(ROOT)}"
    found = results("scvi")
    kept.write_text(json.dumps(found, indent=1, sort_keys=True))
    return found, "run now"


def count(found: dict[str, str]) -> str:
    """Say how many tests passed, failed and were skipped."""
    return ", ".join(f"{list(found.values()).count(kind)} {kind}" for kind in ("passed", "failed", "skipped"))


def judge(scvi: dict[str, str], mixture: dict[str, str]) -> int:
    """Print what only the mixture fails, and return the status."""
    passes = {name for name, outcome in scvi.items() if outcome == "passed"}
    fails = {name for name in passes if mixture.get(name) != "passed"}
    documented = (ROOT / "docs" / "single_cell.md").read_text()
    faults = []
    if len(passes) < LEAST:
        faults.append(f"SCVI itself passes {len(passes)} tests, fewer than {LEAST}")
    if len(DIFFERENCES) > 5:
        faults.append(f"there are {len(DIFFERENCES)} differences, more than five")
    for name, tests in DIFFERENCES.items():
        if name not in documented:
            faults.append(f"docs/single_cell.md does not explain {name!r}")
        print(f"documented difference, {name}:", *(f"\n  {test}" for test in tests))
        if healed := sorted(set(tests) - fails):
            faults.append(f"{name!r} is not met by {', '.join(healed)}")
    left = sorted(fails - {test for tests in DIFFERENCES.values() for test in tests})
    for name in left:
        print(f"only the mixture fails: {name}")
    for fault in faults:
        print(f"fault: {fault}")
    print(f"peer: {len(passes - fails)} of {len(passes)}; only the mixture fails: {', '.join(sorted(fails)) or 'none'}")
    return bool(left or faults)


def main() -> None:
    """Run both halves and compare them."""
    install()
    start = time.monotonic()
    scvi, source = of_scvi()
    print(f"SCVI: {count(scvi)} ({source})", flush=True)
    mixture = results("mixture")
    print(f"a mixture of three: {count(mixture)} ({time.monotonic() - start:.0f} s)", flush=True)
    sys.exit(judge(scvi, mixture))


if __name__ == "__main__":
    main()
