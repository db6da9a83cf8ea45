"""Kills commands of mixvae at random instants, resumes them, and compares what comes out with an uninterrupted run.

    python tests/endurance/kills.py --trials 300 --seed 0 --out kills.json

A chain is one command that is killed (SIGKILL to it and all that it started) up to three times and then left to
end; every kill is a trial. Most chains run in children that are forked from this process, which has imported mixvae
already; one in ten is a fresh process, and so is everything of two processes. What is done stands in the file beside
`--out` that ends in .jsonl, one line for each chain: the same command goes on where it was.
"""

from __future__ import annotations

import os

os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # so that no thread runs where this process forks

import argparse
import fcntl
import hashlib
import json
import platform
import random
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import scenarios
from forks import fork
from scenarios import SCENARIOS, Scenario

MOST_KILLS = 3
FRESH = 0.1
"""Share of chains whose commands are fresh processes."""
PATIENCE = 600.0
"""Seconds after which a command that does not end is a fault."""
CLOCKS = {"seconds", "train_seconds", "hours", "created", "checksum"}
"""What differs between two runs that are the same."""


@dataclass(frozen=True)
class Ended:
    """How a command ended: its status, None where it was killed, what it wrote to standard error, and the seconds."""

    status: int | None
    said: str
    seconds: float


class Workplace:
    """A folder in which one scenario at a time runs, always under the same path.

    Args:
        path: the folder.
    """

    def __init__(self, path: Path):
        self.path, self.now, self.prepared = path, path / "now", path / "prepared"
        self.log = path / "log"
        for folder in (self.prepared, path / "home"):
            folder.mkdir(parents=True, exist_ok=True)

    def clear(self, start: str | None) -> None:
        """Begin with an empty folder, or with what another scenario left."""
        shutil.rmtree(self.now, ignore_errors=True)
        if start is None:
            self.now.mkdir()
        else:
            shutil.copytree(self.prepared / start, self.now)

    def run(self, words: Sequence[str], *, fresh: bool, kill_after: float | None = None, alone: bool = False) -> Ended:
        """Run a command; kill it and all that it started after so many seconds.

        Args:
            words: the command's words, or `python` and a script.
            fresh: whether in a fresh process.
            kill_after: the seconds; let it end by itself by default.
            alone: kill the command only: what it started has to notice.
        """
        began = time.monotonic()
        pid = self._fresh(words) if fresh else fork(words, self.now, self.log, self.environment)
        watch = os.pidfd_open(pid)
        try:
            ended = select.select([watch], [], [], PATIENCE if kill_after is None else kill_after)[0]
            seconds = time.monotonic() - began
            killed = not ended
            if killed:
                (os.kill if alone else os.killpg)(pid, signal.SIGKILL)
        finally:
            os.close(watch)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if killed and kill_after is None:
            raise TimeoutError(f"{' '.join(words)} did not end in {PATIENCE:.0f} s")
        self._wait_for_group(pid)
        said = self.log.read_text(errors="replace")
        return Ended(None if killed else status, said, seconds)

    def _wait_for_group(self, group: int) -> None:
        """Wait until nothing is left of a process group; a child that outlives its parent has to end by itself."""
        until = time.monotonic() + 60
        while alive(group):
            if time.monotonic() > until:
                os.killpg(group, signal.SIGKILL)
                raise TimeoutError("a child outlived its killed parent by a minute")
            time.sleep(0.01)

    def _fresh(self, words: Sequence[str]) -> int:
        program = ["-c", words[1]] if words[0] == "python" else ["-m", "mixvae", *words]
        with open(self.log, "wb") as log:
            child = subprocess.Popen(
                [sys.executable, "-P", *program], cwd=self.now, env=os.environ | self.environment,
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log, start_new_session=True,
            )  # fmt: skip
        child.returncode = 0  # it is waited for here, by its number
        return child.pid

    @property
    def environment(self) -> dict[str, str]:
        """What keeps commands from the user's own folders."""
        home = self.path / "home"
        return {"XDG_STATE_HOME": str(home / "state"), "XDG_CACHE_HOME": str(home / "cache"), "COLUMNS": "120"}


def alive(group: int) -> bool:
    """Whether a process of a group has not ended."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] not in "ZX":
            return True
    return False


# What is compared.


def digest(folder: Path) -> dict[str, str]:
    """A checksum of every file that a command leaves, wall-clock times left out."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.is_file() and not hidden and "tensorboard" not in name and "__pycache__" not in name:
            found[name] = hashlib.sha256(_plain(path)).hexdigest()[:16]
    return found


def _plain(path: Path) -> bytes:
    """Content of a file without clocks."""
    import numpy as np
    import torch

    if path.suffix == ".json":
        content = json.loads(path.read_text())
        if path.name == "run.json":
            content["files"].pop("state")  # it is compared by itself: its bytes hold the seconds
        return json.dumps(_timeless(content), sort_keys=True).encode()
    if path.name == "metrics.jsonl":
        return json.dumps([_timeless(json.loads(line)) for line in path.read_text().splitlines()]).encode()
    if path.suffix == ".pt":
        return _flat(torch.load(path, weights_only=True))
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return _flat({name: torch.from_numpy(arrays[name]) for name in arrays.files})
    if path.suffix == ".html" and path.parent.name == "reproduced":
        return b""  # an experiment's page tells hours in its middle; its tables stand in results.json
    if path.suffix == ".html":
        return re.sub(rb'<td data-key="[^"]*">\d+</td></tr>', b"", path.read_bytes())  # the last column is of seconds
    return path.read_bytes()


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(part) for key, part in value.items() if key not in CLOCKS}
    return [_timeless(part) for part in value] if isinstance(value, list) else value


def _flat(value: Any) -> bytes:
    """Bytes that tell any two checkpoints apart."""
    import torch

    if isinstance(value, Mapping):
        return b"{" + b",".join(str(k).encode() + b":" + _flat(v) for k, v in value.items() if k not in CLOCKS) + b"}"
    if isinstance(value, list | tuple):
        return b"[" + b",".join(_flat(part) for part in value) + b"]"
    if isinstance(value, torch.Tensor):
        return f"{value.dtype}{tuple(value.shape)}".encode() + value.contiguous().numpy().tobytes()
    if isinstance(value, int | float):
        return float(value).hex().encode()  # a weight decay of 0 may come back as 0.0
    return repr(value).encode()


def faults_in(folder: Path, *, load: bool = True) -> list[str]:
    """What a reader would find damaged or half there at this moment; models are loaded too, unless told otherwise."""
    from mixvae import runs

    faults = []
    for row in runs.listing(folder).table:
        if row["state"] not in ("stopped", "done", "training"):
            faults.append(f"mixvae list: {row['run']} is {row['state']}")
    for run in runs.find_runs(folder):
        try:
            opened = runs.open_run(run.path)
            if opened.has_weights and load:
                opened.load()
        except Exception as error:
            faults.append(f"open_run({run.name}): {type(error).__name__}: {error}")
    for path in folder.rglob("*"):
        if path.name.startswith(".") or not path.is_file() or path.parent.name == "last":
            continue
        content = path.read_bytes()
        whole = {".json": lambda c: json.loads(c) is not None, ".png": lambda c: c.endswith(b"IEND\xaeB`\x82"),
                 ".html": lambda c: c.rstrip().endswith(b"</html>")}.get(path.suffix, lambda c: True)  # fmt: skip
        try:
            fine = whole(content)
        except ValueError:
            fine = False
        if not fine:
            faults.append(f"{path.relative_to(folder)} is half a file")
    return faults


def leftovers(folder: Path) -> list[str]:
    """Hidden files that are left in a folder."""
    return sorted(str(p.relative_to(folder)) for p in folder.rglob(".*") if p.is_file())


# Chains.


class References:
    """What uninterrupted commands leave, and how long they take, forked and fresh; made once, and kept in a file.

    Args:
        place: where they run.
        file: the file.
        log: takes a line on what is made.
    """

    def __init__(self, place: Workplace, file: Path, log: Callable[[str], None]):
        self.place, self.file, self.log = place, file, log
        self.kept: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}

    def seconds(self, scenario: Scenario, *, fresh: bool) -> float:
        """How long a command takes; it must leave the same twice, in whatever kind of process."""
        kind = "fresh" if fresh else "forked"
        kept = self.kept.setdefault(scenario.name, {"digest": {}, "seconds": {}})
        while kind not in kept["seconds"] or len(kept["seconds"]) < 2:
            again = kind in kept["seconds"]
            self.place.clear(scenario.after)
            ended = self.place.run(scenario.begin, fresh=fresh)
            if ended.status != 0:
                raise SystemExit(f"{scenario.name} without a kill ended with {ended.status}: {ended.said}")
            found = digest(self.place.now)
            wanted = kept["digest"] or found
            if differing := sorted(n for n in {*found, *wanted} if found.get(n) != wanted.get(n)):
                raise SystemExit(f"{scenario.name} is not the same twice, before any kill: {', '.join(differing)}")
            kept["digest"] = found
            kept["seconds"]["again" if again else kind] = ended.seconds
            if not (self.place.prepared / scenario.name).exists():
                shutil.copytree(self.place.now, self.place.prepared / scenario.name)
            temporary = self.file.with_suffix(".partial")
            temporary.write_text(json.dumps(self.kept, indent=1))
            temporary.replace(self.file)
            self.log(f"reference {scenario.name}: {len(found)} files, {ended.seconds:.1f} s {kind}")
        return kept["seconds"][kind]


def chain(place: Workplace, scenario: Scenario, references: References, seed: str, *, fresh: bool) -> dict[str, Any]:
    """Kill a command at random instants, resume it until it ends, and compare."""
    rng = random.Random(seed)
    fresh = fresh or scenario.real
    lasts = references.seconds(scenario, fresh=fresh)
    reference = references.kept[scenario.name]
    row: dict[str, Any] = {"scenario": scenario.name, "seed": seed, "fresh": fresh, "kills": [], "faults": []}
    differing: list[str] = []
    began = time.monotonic()
    place.clear(scenario.after)
    words = scenario.begin
    while True:
        more = len(row["kills"]) < MOST_KILLS
        alone = scenario.starts_others and rng.random() < 0.3
        instant = rng.uniform(0, lasts)
        try:
            ended = place.run(words, fresh=fresh, kill_after=instant if more else None, alone=alone)
        except TimeoutError as error:
            row["faults"].append(str(error))
            break
        if ended.status is None:
            row["kills"].append({"after": round(instant, 3), "of": " ".join(words)[:60], "alone": alone})
            row["faults"] += faults_in(place.now, load=not scenario.own)
            if "Traceback" in ended.said and not alone:
                row["faults"].append(f"before the kill: {ended.said[-400:]}")
            words = scenario.again(place.now)
            continue
        if ended.status != 0:
            row["faults"].append(f"{' '.join(words)} ended with {ended.status}: {ended.said[-600:]}")
        elif not row["kills"]:  # nothing was killed: other instants next time, if this was faster than the reference
            reference["seconds"]["fresh" if fresh else "forked"] = ended.seconds
        break
    ended_well = not any("ended with" in fault or "did not end" in fault for fault in row["faults"])
    if ended_well:
        found, wanted = digest(place.now), reference["digest"]
        differing = sorted(n for n in {*found, *wanted} if found.get(n) != wanted.get(n))
        row["faults"] += [f"{name} differs from the uninterrupted run's" for name in differing]
        row["faults"] += faults_in(place.now, load=not scenario.own)
        row["leftovers"] = leftovers(place.now)
        row["faults"] += [f"{name} is left" for name in row["leftovers"] if scenarios.must_go(Path(name))]
    row["same"] = ended_well and not differing
    row["seconds"] = round(time.monotonic() - began, 2)
    if row["faults"]:
        kept = place.path / "faults" / seed.replace("/", "-")
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(place.now, kept)
    return row


def fingerprint() -> str:
    """Checksum of mixvae's sources, so that trials of two versions are never counted together."""
    import mixvae

    assert mixvae.__file__ is not None
    root = Path(mixvae.__file__).parent
    sources = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        sources.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return sources.hexdigest()[:16]


def rows_of(file: Path) -> list[dict[str, Any]]:
    """All whole lines; half a line, of a killed campaign, is taken away."""
    content = file.read_bytes() if file.exists() else b""
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        os.truncate(file, len(whole))
    return [json.loads(line) for line in whole.splitlines()]


def append(file: Path, row: Mapping[str, Any]) -> None:
    """Add a line in one write."""
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(descriptor, (json.dumps(row) + "\n").encode())
    os.fsync(descriptor)
    os.close(descriptor)


def summary(rows: Sequence[Mapping[str, Any]], sources: str) -> dict[str, Any]:
    """What all chains come to."""
    each: dict[str, dict[str, int]] = {}
    for row in rows:
        counted = each.setdefault(
            row["scenario"], {"chains": 0, "kills": 0, "bit for bit": 0, "kills in fresh processes": 0}
        )
        kills = len(row["kills"])
        counted["chains"] += 1
        counted["kills"] += kills
        counted["bit for bit"] += kills if row["same"] else 0
        counted["kills in fresh processes"] += kills if row["fresh"] else 0
    total = {
        key: sum(counted[key] for counted in each.values())
        for key in ("chains", "kills", "bit for bit", "kills in fresh processes")
    }
    cpu = next((line.partition(":")[2].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "")
    return {
        **total,
        "seconds": round(sum(row["seconds"] for row in rows)),
        "sources": sources,
        "machine": f"{cpu or platform.processor()}, {os.cpu_count()} cores, {platform.platform()}",
        "scenarios": each,
        "leftovers": sorted({name for row in rows for name in row.get("leftovers", [])})[:50],
        "faults": [
            {"seed": row["seed"], "kills": row["kills"], "faults": row["faults"]} for row in rows if row["faults"]
        ],
    }


def main() -> None:
    """Run the campaign."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--trials", type=int, default=300, help="kills in all")
    parser.add_argument("--seed", type=int, default=0, help="seed of the instants")
    parser.add_argument("--out", type=Path, default=Path("kills.json"), help="the summary")
    parser.add_argument("--work", type=Path, help="folder to work in; beside the summary by default")
    parser.add_argument("--only", default="", help="only these scenarios, separated by commas")
    options = parser.parse_args()
    out: Path = options.out.absolute()
    place = Workplace((options.work or out.with_suffix(".work")).absolute())
    os.environ["MIXVAE_DATA"] = str(scenarios.make_data(place.path / "data"))
    names = [name for name in options.only.split(",") if name] or list(SCENARIOS)
    chosen = [SCENARIOS[name] for name in names]
    for scenario in chosen:
        for need in scenario.needs:
            if need not in [s.name for s in chosen]:
                chosen.insert(0, SCENARIOS[need])
    chosen.sort(key=lambda s: list(SCENARIOS).index(s.name))
    lock = open(place.path / "lock", "w")
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def log(line: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)

    scenarios.warm()
    sources = fingerprint()
    rows = rows_of(out.with_suffix(".jsonl"))
    if any(row["sources"] != sources for row in rows):
        raise SystemExit(f"{out.with_suffix('.jsonl')} holds trials of another version of mixvae: choose another --out")
    references = References(place, out.with_suffix(".references.json"), log)
    for scenario in chosen:
        references.seconds(scenario, fresh=scenario.real)
    played = [s for s in chosen if s.name in names]
    counts = {s.name: sum(row["scenario"] == s.name for row in rows) for s in played}
    kills = sum(len(row["kills"]) for row in rows)
    os.environ |= place.environment  # so that this process remembers what the children trained
    while kills < options.trials:
        scenario = min(played, key=lambda s: (counts[s.name] / s.weight, names.index(s.name)))
        seed = f"{options.seed}/{scenario.name}/{counts[scenario.name]}"
        row = chain(place, scenario, references, seed, fresh=random.Random(f"fresh {seed}").random() < FRESH)
        row["sources"] = sources
        append(out.with_suffix(".jsonl"), row)
        rows.append(row)
        counts[scenario.name] += 1
        kills += len(row["kills"])
        told = "; ".join([*(["bit for bit"] if row["same"] else []), *row["faults"]])
        log(f"{kills}/{options.trials} {seed}{' fresh' if row['fresh'] else ''}: {len(row['kills'])} kills, {told}")
    result = summary(rows, sources)
    out.write_text(json.dumps(result, indent=2) + "\n")
    good = result["bit for bit"]
    print(f"kills: {good} of {kills} bit for bit")
    sys.exit(good < kills or bool(result["faults"]))


if __name__ == "__main__":
    main()
