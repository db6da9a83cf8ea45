#!/usr/bin/env python3
"""Build the sdist and the wheel into dist/, and use the wheel as a new user does: no extras, no checkout, no cache.

`make wheel` runs it. What it needs is Python 3.11 and pip's index.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "mixvae"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ONLY_IN_EXTRAS = (
    "huggingface_hub",
    "pytest",
    "beartype",
    "hypothesis",
    "tensorboard",
    "scvi",
    "scanpy",
    "anndata",
    "lightning",
    "ray",
    "ruff",
)
IN_PYTHON = """
import importlib.util, torch, mixvae
from functools import partial
from mixvae import MLPDecoder, MixtureVAE, SeparateEncoders, StandardNormal, datasets, fit, evaluate
from mixvae.networks import GatedEncoder

found = [name for name in {extras} if importlib.util.find_spec(name)]
assert not found, f"{{found}} came without being asked for"
for name in mixvae.__all__:
    getattr(mixvae, name)
data = datasets.load_dataset("digits")
posterior = SeparateEncoders(partial(GatedEncoder, data.shape, 4, (16,)), 2)
model = MixtureVAE(posterior, StandardNormal(4), MLPDecoder(4, data.shape, (16,)))
fit(model, data, epochs=1)
print(evaluate(model, data.test.batch(slice(0, 5)), total_draws=8).summary()["nll_pooled"])
"""


def call(*words: str | Path, status: int = 0, **options) -> subprocess.CompletedProcess[str]:
    """Run a program that has to end with this status, and return what it printed."""
    start = time.monotonic()
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, **options)
    shown = " ".join([Path(words[0]).name, *(str(word).partition("\n")[0] for word in words[1:])])
    print(f"{time.monotonic() - start:4.0f} s  {shown}", flush=True)
    if done.returncode != status:
        sys.exit(f"{' '.join(map(str, words))}\nended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done


def environment(folder: Path) -> Path:
    """Make an environment of its own, and return its programs."""
    call(sys.executable, "-m", "venv", folder)
    return folder / "bin"


def pip(programs: Path, *words: str | Path) -> None:
    """Install; modules are compiled when they are used, which is a minute less for torch."""
    call(programs / "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile", *words)


def build(tools: Path) -> tuple[Path, Path]:
    """Build the sdist, and the wheel from it, with the versions of constraints.txt."""
    shutil.rmtree(ROOT / "dist", ignore_errors=True)
    constraints = ROOT / "constraints.txt"
    pip(tools, "--constraint", constraints, "build")
    pinned = os.environ | {"PIP_CONSTRAINT": str(constraints)}
    call(tools / "python", "-m", "build", "--outdir", ROOT / "dist", ROOT, env=pinned)
    (sdist,), (wheel,) = (ROOT / "dist").glob("*.tar.gz"), (ROOT / "dist").glob("*.whl")
    return sdist, wheel


def check_files(sdist: Path, wheel: Path) -> None:
    """Every file of the source tree is in both, and the wheel has nothing else."""
    wanted = {
        f"mixvae/{path.relative_to(SOURCE).as_posix()}"
        for path in SOURCE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert packed == wanted, f"not in the wheel: {sorted(wanted - packed)}; only there: {sorted(packed - wanted)}"
    with tarfile.open(sdist) as archive:
        sources = {name.partition("/src/")[2] for name in archive.getnames()}
    assert wanted <= sources, f"not in the sdist: {sorted(wanted - sources)}"
    assert {"mixvae/py.typed"} < wanted
    for kind in ("presets/*.yaml", "templates/*.html"):
        assert list(SOURCE.glob(kind)), f"there are no {kind}"


def use(programs: Path, empty: Path) -> None:
    """Train, evaluate, report, sample and sweep a moment long, from an empty folder."""
    home = empty / "home"
    home.mkdir(parents=True)
    mine = {key: os.environ[key] for key in ("PATH", "LANG", "LC_ALL") if key in os.environ}
    options = {"cwd": empty, "env": mine | {"HOME": str(home), "OMP_NUM_THREADS": "1"}}

    def mixvae(*words: str | Path, status: int = 0) -> subprocess.CompletedProcess[str]:
        return call(programs / "mixvae", *words, status=status, **options)

    assert mixvae("--version").stdout == f"mixvae {PROJECT['version']}\n"
    assert call(programs / "python", "-m", "mixvae", "--version", **options).stdout.startswith("mixvae ")
    presets = mixvae("presets").stdout
    missing = [path.stem for path in (SOURCE / "presets").glob("*.yaml") if f" {path.stem} " not in presets]
    assert not missing, f"presets does not list {missing}"
    assert str(SOURCE) not in presets, f"the checkout was used:\n{presets}"

    few = ("--data.limit", "200", "--data.limit_validation", "50", "--training.epochs", "1")
    mixvae("train", "digits", "--model.components", "2", *few, "--out", "run")
    assert "nats" in mixvae("evaluate", "run", "--total-draws", "10").stdout
    mixvae("report", "run", "--out", "report.html")
    page = (empty / "report.html").read_text()
    assert "</html>" in page, "the report is no page"
    assert "data:image/png" in page, "the report has no figures"
    mixvae("sample", "run", "--n", "4", "--out", "samples.png")
    assert (empty / "samples.png").read_bytes().startswith(b"\x89PNG")
    script = IN_PYTHON.format(extras=ONLY_IN_EXTRAS)
    assert float(call(programs / "python", "-c", script, **options).stdout) > 0

    for words in (("sc", "train", "x.h5ad"), ("sc", "embed", "run", "x.h5ad")):
        said = mixvae(*words, status=2)
        assert said.stdout == ""
        assert said.stderr.count("\n") == 1, said.stderr
        assert "pip install 'mixvae[scvi]'" in said.stderr, said.stderr


def main() -> None:
    """Build, install, use."""
    with tempfile.TemporaryDirectory(prefix="mixvae-wheel-") as folder:
        sdist, wheel = build(environment(Path(folder) / "tools"))
        check_files(sdist, wheel)
        programs = environment(Path(folder) / "new")
        pip(programs, "--constraint", ROOT / "constraints.txt", wheel)
        call(programs / "pip", "check", "--disable-pip-version-check")
        use(programs, Path(folder) / "empty")
    print(f"{wheel.relative_to(ROOT)}: built, installed without extras, and used")


if __name__ == "__main__":
    main()
