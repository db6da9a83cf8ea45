"""Damage to the files of a run, and what commands then say of it: they refuse it, or answer exactly as before."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from hypothesis import strategies as st

from fuzzing import Forks, Outcome, faults, sandbox, tree

READING = {
    "list": "list runs",
    "evaluate": "evaluate runs/S2 --total-draws 8",
    "again": "evaluate runs/S2 --total-draws 8 --examples 3",
    "representation": "evaluate runs/S2 --total-draws 8 --representation",
    "sample": "sample runs/S2 --n 2 --out answer.npy",
    "encode": "encode runs/S2 --out answer.npz",
    "reconstruct": "reconstruct runs/S2 --n 2 --out answer.npy",
    "components": "components runs/S2 --draws-per-component 2 --examples 4 --out answer",
    "report": "report runs/S2 runs/S1 --out answer.html",
    "extend": "extend runs/S2 --epochs 1 --out answer",
    "resume": "train --resume runs/S2 --training.epochs 2",
}
"""Commands that read a run; what they make is called answer."""
CHEAP = ("list", "evaluate", "sample", "again", "encode", "resume")
COMPARED = (".npy", ".npz", ".safetensors")
"""Files whose bytes say that an answer is exact."""


@dataclass(frozen=True)
class Damage:
    """One file of a run, and what is done to it."""

    file: str
    how: str
    place: float = 0.0
    bits: int = 1
    other: str = ""

    def apply(self, work: Path) -> None:
        """Do it."""
        path = work / self.file
        content = bytearray(path.read_bytes())
        if self.how == "swapped":
            other = work / self.other
            there = other.read_bytes()
            other.write_bytes(bytes(content))
            path.write_bytes(there)
        elif self.how == "copied":
            path.write_bytes((work / self.other).read_bytes())
        elif self.how in ("removed", "folder"):
            path.unlink()
            if self.how == "folder":
                path.mkdir()
        elif self.how == "flipped" and content:
            content[int(self.place * len(content))] ^= self.bits
            path.write_bytes(bytes(content))
        else:
            path.write_bytes(bytes(content[: int(self.place * len(content))]) if self.how == "truncated" else b"")

    def __str__(self) -> str:
        where = {"flipped": f" by {self.bits} at {self.place:.4f}", "truncated": f" at {self.place:.4f}"}
        return f"{self.file} {self.how}{where.get(self.how, '')}{f' with {self.other}' if self.other else ''}"


def run_files(template: Path, name: str) -> list[str]:
    """Files of a run, in the order of their names."""
    work = template / "work"
    return sorted(str(path.relative_to(work)) for path in (work / "runs" / name).rglob("*") if path.is_file())


@st.composite
def damages(draw, template: Path, name: str = "S2") -> Damage:
    """Damage to one file of a run."""
    own = run_files(template, name)
    file = draw(st.sampled_from([path for path in own if not path.endswith((".png", ".html"))]))
    how = draw(
        st.sampled_from(["truncated", "flipped", "flipped", "emptied", "swapped", "copied", "removed", "folder"])
    )
    other = ""
    if how in ("swapped", "copied"):
        theirs = [path for path in run_files(template, "S1") if Path(path).suffix == Path(file).suffix]
        other = draw(st.sampled_from([path for path in [*own, *theirs] if path != file]))
    return Damage(file, how, draw(st.integers(0, 9999)) / 10000, draw(st.sampled_from([1, 4, 32, 128])), other)


def answer(outcome: Outcome, root: Path) -> tuple[str, dict[str, str]]:
    """What a command said and made, without what depends on time."""
    said = re.sub(r"\d+ s;", "", outcome.out)
    made = {name: value for name, value in tree(root / "work").items() if name.endswith(COMPARED)}
    return said, {name: value for name, value in made.items() if "S1" not in name and ".staged" not in name}


def baseline(command: str, forks: Forks, template: Path, root: Path) -> tuple[str, dict[str, str]]:
    """The answer of a command to the undamaged run."""
    outcome = forks.run(shlex.split(READING[command]), sandbox(template, root))
    assert outcome.status == 0, outcome
    return answer(outcome, root)


def faults_of_damage(
    damage: Damage, command: str, forks: Forks, template: Path, root: Path, exact: tuple[str, dict[str, str]] | None
) -> tuple[Outcome, list[str]]:
    """How a command ends on a damaged run, and what is wrong with that; `exact` is None where any answer will do."""
    sandbox(template, root)
    damage.apply(root / "work")
    before = tree(root)
    words = shlex.split(READING[command])
    if exact is None:
        words = [word.replace("runs/S2", "runs/legacy") for word in words]
    outcome = forks.run(words, root)
    found = faults(outcome, command, before, tree(root))
    if damage.how == "folder":  # in place of a file: what is new waits under the name that it was committed by
        found = [fault for fault in found if ".staged" not in fault]
    if outcome.status not in (0, 2) and not found:
        found.append(f"status {outcome.status} of {command}")
    if outcome.status == 0 and exact is not None:
        found += _inexact(damage, command, answer(outcome, root), exact)
    if command == "list" and outcome.status == 2 and not damage.file.endswith("/"):
        found.append("list is refused")
    return outcome, found


def _inexact(damage: Damage, command: str, given: tuple, exact: tuple) -> list[str]:
    """Where an answer differs from the right one."""
    if command == "list":  # the row of the run may say that it is damaged, those of the others stay
        spoiled = {part for part in ("S1", "S2", "legacy") if f"runs/{part}/" in f"{damage.file} {damage.other}"}
        rows = [[line for line in said.splitlines() if line.startswith("│")] for said in (given[0], exact[0])]
        kept = [[" ".join(row.split()) for row in part if row.split()[1] not in spoiled] for part in rows]
        return [] if kept[0] == kept[1] else ["list tells other runs apart from how they are"]
    touched = {damage.file, damage.other}
    if given[0] != exact[0]:
        return [f"{command} says something else of {Path(damage.file).name} {damage.how}"]
    other = {name for name in {**given[1], **exact[1]} if given[1].get(name) != exact[1].get(name)} - touched
    return [f"{command} makes another {sorted(other)[0]} of {Path(damage.file).name} {damage.how}"] if other else []
