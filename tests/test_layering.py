"""A room imports only rooms below it, and light rooms stay light."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import mixvae

SOURCE = Path(mixvae.__file__).parent
LEVELS = {
    -2: ("_resources", "_tables"),
    -1: ("_arrays", "_failures", "_normalisation", "_precision", "parts", "progress"),
    0: ("bounds", "distributions", "networks", "datasets", "files", "sampling"),
    1: ("_trying", "figures", "flows", "hub", "priors", "decoders"),
    2: ("posteriors", "model"),
    3: ("exporting", "joint", "gradients", "toys"),
    4: ("proposals", "annealing"),
    5: ("evaluation", "analysis"),
    6: ("training",),
    7: ("config",),
    8: ("runs",),
    9: ("reports", "single_cell"),
    10: ("publishing", "sweeps"),
    11: ("reproduce",),
    12: ("cli",),
    13: ("__main__", "__init__"),
}
LEVEL = {room: level for level, rooms in LEVELS.items() for room in rooms}


def room(path):
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported_rooms(path):
    """Rooms that a file imports, wherever in it, under whatever spelling."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            if node.module == "mixvae":
                yield from (alias.name for alias in node.names)
            elif (node.module or "").startswith("mixvae."):
                yield node.module.split(".")[1]
        elif isinstance(node, ast.Import):
            yield from (alias.name.split(".")[1] for alias in node.names if alias.name.startswith("mixvae."))


FILES = sorted(SOURCE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_a_room_imports_only_rooms_below_it(path):
    own = room(path)
    assert own in LEVEL, f"give {own} a level"
    upward = {other for other in imported_rooms(path) if other != own and LEVEL[other] >= LEVEL[own]}
    assert not upward


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_a_file_stays_readable_in_one_sitting(path):
    assert len(path.read_text().splitlines()) <= 400, "make it a folder of the same name"


def test_the_core_knows_no_concrete_part():
    known = set(imported_rooms(SOURCE / "model.py"))
    assert known == {"bounds", "distributions", "parts", "_normalisation", "_precision", "_trying", "sampling"}


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["evaluate", "--help"], ["encode", "--help"], ["presets"]]
)
def test_help_imports_no_torch(arguments):
    script = f"""
import sys
from mixvae.cli import main
try:
    main({arguments})
except SystemExit as end:
    assert not end.code
heavy = {{"torch", "matplotlib", "sklearn", "lightning_fabric", "pooch"}} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_importing_mixvae_is_light_and_leaves_torch_unchanged():
    script = """
import sys, mixvae
assert "torch" not in sys.modules
import torch
validates = torch.distributions.Distribution._validate_args
for name in mixvae.__all__:
    getattr(mixvae, name)
assert torch.distributions.Distribution._validate_args == validates
assert torch.get_default_dtype() == torch.float32
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_public_name_is_found_and_an_unknown_one_is_not():
    assert sorted(mixvae.__all__) == sorted(mixvae._HOME)
    assert set(mixvae.__all__) <= set(dir(mixvae))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        mixvae.nonsense  # noqa: B018


def test_who_reads_runs_does_not_wait_for_what_trains_them():
    """Lightning Fabric and requests were half of the time that a report takes."""
    script = """
import sys
import mixvae.reports, mixvae.cli.commands, mixvae.runs
heavy = {"lightning_fabric", "requests", "pooch", "sklearn", "scvi"} & set(sys.modules)
assert not heavy, heavy
assert callable(mixvae.runs.fit) and callable(mixvae.runs.train)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_no_test_module_imports_another():
    """What they share is in modules of its own: conftest, zoo, browser and the like."""
    found = re.compile(r"^\s*(?:from|import) test_", re.MULTILINE)
    assert [path.name for path in Path(__file__).parent.rglob("*.py") if found.search(path.read_text())] == []


def test_names_of_tests_fit_a_line_of_a_report():
    """Sixty characters are enough to name a bug."""
    paths = Path(__file__).parent.rglob("*.py")
    names = {name for path in paths for name in re.findall(r"def (test_\w+)", path.read_text())}
    assert {name for name in names if len(name) >= 60} == set()
