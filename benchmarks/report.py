"""`mixvae report` of two FashionMNIST runs against an older checkout: whole commands, pair by pair, as ratios.

    git worktree add /tmp/before ec603ad
    python benchmarks/report.py /tmp/before

Each version trains and evaluates two small runs of its own, S = 1 and 2, on all of FashionMNIST; then each writes the
report of its own runs, in turn. The first pair warms the caches and does not count.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

SMALL = ["--training.epochs=1", "--training.warmup=0", "--model.latent=8", "--data.limit_validation=500"]


def mixvae(source: Path, *words: str) -> float:
    """Run a command of one version; returns its seconds."""
    environment = os.environ | {"PYTHONPATH": str(source / "src"), "OMP_NUM_THREADS": "1"}
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "mixvae", *words], env=environment, check=True, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="mixvae report, before and now")
    parser.add_argument("before", type=Path, help="a checkout of the older version")
    parser.add_argument("--pairs", type=int, default=5)
    asked = parser.parse_args()
    versions = {"before": asked.before, "now": Path(__file__).parents[1]}
    with tempfile.TemporaryDirectory() as folder:
        runs = {name: [str(Path(folder) / name / f"S{s}") for s in (1, 2)] for name in versions}
        for name, source in versions.items():
            for s, run in zip((1, 2), runs[name], strict=True):
                words = ["--data.name=fashion_mnist", f"--model.components={s}", "--out", run]
                mixvae(source, "train", "vanilla", *SMALL, *words)
                mixvae(source, "evaluate", run, "--total-draws=4")
        ratios = []
        for pair in range(asked.pairs + 1):
            seconds = {name: mixvae(source, "report", *runs[name]) for name, source in versions.items()}
            if pair:
                ratios.append(seconds["before"] / seconds["now"])
                print(f"before {seconds['before']:.2f} s, now {seconds['now']:.2f} s: {ratios[-1]:.2f}×", flush=True)
    print(f"median {np.median(ratios):.2f}×, from {min(ratios):.2f}× to {max(ratios):.2f}×")


if __name__ == "__main__":
    main()
