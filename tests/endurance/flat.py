"""Watches memory, descriptors and threads of one long training, and of evaluations in a loop: they must stay flat.

python tests/endurance/flat.py --minutes 30 --out flat.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

TRAINING = [
    "train", "vamp", "--data.name=digits", "--model.latent=8", "--model.components=4",
    "--model.encoder={class_path: GatedEncoder, hidden: [100, 100]}",
    "--model.decoder={class_path: MLPDecoder, hidden: [100, 100]}",
    "--model.prior={class_path: VampPrior, pseudo_inputs: 50}", "--training.batch=20", "--training.warmup=0",
    "--training.epochs=1000000", "--training.patience=1000000", "--training.save_every=2",
]  # fmt: skip
"""S = 4 with a VampPrior: a commit every two seconds, a validation after every epoch."""
BOUND_MB_PER_HOUR = 10.0
"""How fast resident memory may grow. The record of an epoch stays in memory and in run.json: about 1 kB an epoch."""


def sample(pid: int, run: Path) -> dict[str, float]:
    """What a process holds now, and the size of its run."""
    status = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line
    )  # fmt: skip
    sizes: dict[str, list[int]] = {"tensorboard": [], "rest": []}
    for path in run.rglob("*"):
        try:
            if path.is_file():
                sizes["tensorboard" if "tensorboard" in path.parts else "rest"].append(path.stat().st_size)
        except OSError:  # it was replaced meanwhile
            continue
    return {
        "rss_mb": int(status["VmRSS"].split()[0]) / 1024,
        "descriptors": len(os.listdir(f"/proc/{pid}/fd")),
        "threads": int(status["Threads"]),
        "run_mb": sum(sizes["rest"]) / 2**20,
        "tensorboard_mb": sum(sizes["tensorboard"]) / 2**20,
        "files": sum(map(len, sizes.values())),
    }


def slope_per_hour(rows: Sequence[Mapping[str, float]], name: str) -> float:
    """Slope of a straight line through some samples, per hour."""
    import numpy as np

    return float(np.polyfit([row["at"] / 3600 for row in rows], [row[name] for row in rows], 1)[0])


def watch(minutes: float, settle: float, every: float, run: Path, log: Callable[[str], None]) -> dict[str, Any]:
    """Train for so many minutes, and end the training as a scheduler does."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", "-m", "mixvae", *TRAINING, "--out", str(run)]
    said = run.with_suffix(".stderr")
    with open(said, "wb") as file:
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=file, env=environment)
    rows: list[dict[str, float]] = []
    try:
        while not (run / "run.json").exists():
            if child.poll() is not None:
                raise SystemExit(f"the training did not begin: {said.read_text()}")
            time.sleep(0.5)
        began = time.monotonic()
        while (at := time.monotonic() - began) < 60 * minutes:
            rows.append({"at": round(at, 1), **sample(child.pid, run)})
            if len(rows) % max(1, round(60 / every)) == 1:
                log(f"{at / 60:4.1f} min  " + "  ".join(f"{k} {v:.4g}" for k, v in rows[-1].items() if k != "at"))
            time.sleep(every)
            if child.poll() is not None:
                raise SystemExit(f"the training ended by itself: {said.read_text()[-500:]}")
        child.send_signal(signal.SIGTERM)
        status = child.wait(120)
    finally:
        if child.poll() is None:
            child.kill()
    from mixvae.runs import open_run

    opened = open_run(run)
    late = [row for row in rows if row["at"] >= 60 * settle]
    return {
        "minutes": minutes, "from_minute": settle, "samples": len(late), "epochs": opened.epoch, "state": opened.state,
        "status": status, "first": late[0], "last": late[-1],
        "slopes_per_hour": {name: round(slope_per_hour(late, name), 3) for name in late[0] if name != "at"},
        "descriptors": sorted({int(row["descriptors"]) for row in late}),
        "threads": sorted({int(row["threads"]) for row in late}),
        "rows": rows,
    }  # fmt: skip


def loop(run: Path, rounds: int) -> dict[str, Any]:
    """Open, load and evaluate a run over and over in this process."""
    import mixvae
    from mixvae.runs import evaluate, listing, open_run

    me, rows = os.getpid(), []
    for i in range(rounds):
        opened = open_run(run)
        mixvae.load(run)
        evaluate(opened, 40, examples=50, seed=i)  # a seed of its own, so that it is computed
        listing(run.parent)
        rows.append({"at": float(i), **sample(me, run)})
    late = rows[rounds // 4 :]
    import numpy as np

    growth = float(np.polyfit([row["at"] for row in late], [row["rss_mb"] for row in late], 1)[0])
    return {
        "rounds": rounds, "rss_mb": [round(late[0]["rss_mb"], 1), round(late[-1]["rss_mb"], 1)],
        "kb_per_round": round(1024 * growth, 2), "descriptors": sorted({int(row["descriptors"]) for row in late}),
        "threads": sorted({int(row["threads"]) for row in late}),
    }  # fmt: skip


def draw(rows: Sequence[Mapping[str, float]], path: Path) -> None:
    """A picture of memory and descriptors over time."""
    from matplotlib.figure import Figure

    from mixvae import figures

    figure = Figure((7, 3), layout="constrained")
    axes = figure.subplots(1, 2)
    for ax, name, label in zip(
        axes, ("rss_mb", "descriptors"), ("resident memory (MB)", "open descriptors"), strict=True
    ):
        ax.plot([row["at"] / 60 for row in rows], [row[name] for row in rows], lw=1)
        ax.set(xlabel="minutes", ylabel=label, ylim=(0, 1.3 * max(row[name] for row in rows)))
    path.write_bytes(figures.png(figure))


def main() -> None:
    """Watch, and judge."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--settle", type=float, default=3, help="minutes that are left out of the slopes")
    parser.add_argument("--every", type=float, default=5, help="seconds between samples")
    parser.add_argument("--rounds", type=int, default=200, help="evaluations in a loop")
    parser.add_argument("--out", type=Path, default=Path("flat.json"))
    parser.add_argument("--figure", type=Path, help="a picture of memory and descriptors")
    options = parser.parse_args()
    out: Path = options.out.absolute()
    folder = out.with_suffix(".work")
    if folder.exists():
        raise SystemExit(f"{folder} exists already: remove it, or choose another --out")
    folder.mkdir(parents=True)

    def log(line: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)

    cpu = next((line.partition(":")[2].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "")
    result: dict[str, Any] = {"machine": f"{cpu}, {os.cpu_count()} cores, {platform.platform()}", "training": TRAINING}
    result |= watch(options.minutes, options.settle, options.every, folder / "run", log)
    result["loop"] = loop(folder / "run", options.rounds)
    out.write_text(json.dumps(result, indent=1) + "\n")
    if options.figure:
        draw(result["rows"], options.figure)
    slope = result["slopes_per_hour"]["rss_mb"]
    log(f"loop: {result['loop']}")
    flat = {
        f"memory grows by {slope:.2f} MB an hour, at most {BOUND_MB_PER_HOUR:g}": slope <= BOUND_MB_PER_HOUR,
        f"descriptors: {result['descriptors']}, threads: {result['threads']}": len(result["threads"]) == 1
        and max(result["descriptors"]) - min(result["descriptors"]) <= 3,  # a file that is being written is open
        f"the run is {result['state']} with status {result['status']}": (result["state"], result["status"])
        == ("stopped", 143),
        f"in the loop: descriptors {result['loop']['descriptors']}": len(result["loop"]["descriptors"]) == 1,
    }
    for told, good in flat.items():
        print(f"{'flat' if good else 'NOT FLAT'}: {told}")
    sys.exit(not all(flat.values()))


if __name__ == "__main__":
    main()
