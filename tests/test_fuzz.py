"""Whatever a user types, and whatever became of files: an answer or one line, within 20 s, with nothing left behind.

The suite tries few inputs, always the same ones. `make fuzz` tries thousands, and single cells too; MIXVAE_FUZZ and
MIXVAE_DAMAGE are how many, MIXVAE_FUZZ_SEED makes others of them.
"""

import os
import shlex
from collections import Counter
from functools import cache
from importlib.util import find_spec

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from fuzzing import Forks, tree
from fuzzing_damage import CHEAP, READING, baseline, damages, faults_of_damage
from fuzzing_inputs import BASES, Input, cases, commands, faults_of, shown, template

INPUTS, DAMAGES = (int(os.environ.get(name, few)) for name, few in (("MIXVAE_FUZZ", 24), ("MIXVAE_DAMAGE", 8)))
SEED = int(os.environ.get("MIXVAE_FUZZ_SEED", 0))
PARTS = 4 if INPUTS > 500 else 1
"""Tests that the inputs are shared out to, for several processes to try them."""
CELLS = INPUTS > 500 and find_spec("scvi") is not None
"""Whether commands for single cells are tried; importing scvi-tools takes long."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def forks(folder):
    with Forks(folder / "forks", cells=CELLS) as started:
        yield started


@pytest.fixture(scope="module")
def whole(folder, forks):
    """The folder that every command is tried in a copy of."""
    return template(folder, forks, cells=CELLS)


def search(strategy, examine, number, which, log):
    """Try so many cases; returns how they ended and, for each kind of fault, the first case with it.

    What is found stands in the log at once.
    """
    counts, found = Counter(), {}

    @seed(1000 * SEED + which)
    @settings(
        max_examples=number, deadline=None, phases=[Phase.generate], database=None,
        suppress_health_check=list(HealthCheck), print_blob=False,
    )  # fmt: skip
    @given(strategy)
    def each(case):
        outcome, faults = examine(case)
        counts["killed" if outcome.status is None else f"status {outcome.status}"] += 1
        for kind in faults:
            if kind not in found:
                found[kind] = case, outcome
                with open(log, "a", encoding="utf-8", errors="backslashreplace") as file:
                    file.write(f"{kind}\n    {case}\n    {outcome.err[-500:]}\n")

    each()
    return counts, found


def told(what, counts, found):
    """Print the counts, and fail if anything was found."""
    ends = ", ".join(f"{count} × {end}" for end, count in sorted(counts.items()))
    print(f"{sum(counts.values())} {what}: {ends}; {len(found)} kinds of faults")
    lines = [
        f"{kind}\n    {case}\n    ended with {outcome.status} after {outcome.seconds} s: {outcome.err[-500:]}"
        for kind, (case, outcome) in found.items()
    ]
    assert not found, "\n".join([f"{len(found)} kinds of faults", *lines])


@pytest.mark.parametrize("part", range(PARTS))
def test_any_input_is_answered_or_refused_in_one_line(part, folder, forks, whole):
    before = tree(whole)

    def examine(case: Input):
        return faults_of(case, forks, whole, folder / "box", before)

    def smallest(kind, case, outcome):
        """Without the edits that the fault does not need."""
        for less in case.smaller():
            ended, faults = examine(less)
            if kind in faults:
                return smallest(kind, less, ended)
        return case, outcome

    counts, found = search(cases(cells=CELLS), examine, INPUTS // PARTS, part, folder / "found.txt")
    found = {kind: smallest(kind, case, outcome) for kind, (case, outcome) in found.items()}
    for number, (kind, (case, outcome)) in enumerate(found.items()):
        box = folder / f"fault-{part}-{number}"
        faults_of(case, forks, whole, box, before)  # what is left of it, to look at
        line = f"cd {box}/work; mixvae {' '.join(map(shlex.quote, case.words))}"
        found[kind] = (f"{case}\n    {line}" if len(line) < 1000 else f"{case}\n    in {box}/work", outcome)
    told(f"inputs for {len(commands(cells=CELLS))} commands", counts, found)


def test_damaged_files_are_refused_or_the_answer_is_exact(folder, forks, whole):

    @cache
    def exact(command):
        return baseline(command, forks, whole, folder / "box")

    def examine(case):
        damage, command, name = case
        right = exact(command) if name == "S2" else None  # no checksum guards a legacy run
        return faults_of_damage(damage, command, forks, whole, folder / "box", right)

    names = st.sampled_from(["S2", "S2", "S2", "legacy"])
    reading = st.sampled_from([*READING, *CHEAP])
    damaged = names.flatmap(lambda name: st.tuples(damages(whole, name), reading, st.just(name)))
    counts, found = search(damaged, examine, DAMAGES, 0, folder / "found.txt")
    for kind, ((damage, command, name), outcome) in found.items():
        found[kind] = (f"{damage}; mixvae {READING[command].replace('S2', name)}", outcome)
    told("damages", counts, found)


def test_every_command_has_inputs(forks, whole, folder):
    """What inputs are made from works: a mended option or a renamed one would else leave nothing but refusals."""
    failed = {}
    slow = () if INPUTS > 500 else ("demo", "report", "grow", "toy")  # which the suite has tests of
    for command in (name for name in commands(cells=CELLS) if name not in slow):
        for base in BASES.get(command, [])[:1]:
            outcome, faults = faults_of(Input(command, base), forks, whole, folder / "box", tree(whole))
            if outcome.status != 0 or faults:
                failed[f"{command} {base}"] = (outcome.status, outcome.err[-300:], faults)
    assert not failed


def test_reproducers_are_typed_as_they_are():
    assert shown("a b") == "'a b'"
    assert len(shown("x" * 5000)) < 60
