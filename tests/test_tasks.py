"""The twelve tasks of docs/tasks.md: what the page shows is what runs, and its counts are those of the code."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

TASKS = Path(__file__).parent.parent / "docs" / "tasks"
page = runpy.run_path(str(TASKS / "page.py"))


def run(name: str, folder: Path) -> str:
    """Run the tasks in one library; what they print."""
    paths = [str(TASKS), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, TASKS / name],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_every_task_runs_in_mixvae(tmp_path):
    printed = run("with_mixvae.py", tmp_path)
    nll, error = (float(value) for value in printed.splitlines()[0].split())
    assert 15 < nll < 64 * 0.6931, "better than coins"
    assert 0 < error < 3
    assert printed.splitlines()[1].startswith("Gain(mean=")
    assert list(tmp_path.glob("losses/**/metrics.csv"))
    assert (tmp_path / "shared" / "run.json").exists()


@pytest.mark.slow
def test_every_task_runs_in_plain_pytorch(tmp_path):
    run("with_pytorch.py", tmp_path)
    assert len((tmp_path / "losses.csv").read_text().splitlines()) == 5


def test_every_task_runs_in_pythae(tmp_path):
    pytest.importorskip("pythae")
    run("with_pythae.py", tmp_path)


def test_the_page_shows_the_tasks_as_they_run():
    text = page["PAGE"].read_text()
    assert page["rendered"](text) == text, "run docs/tasks/page.py"


def test_twelve_tasks_none_longer_than_in_pythae():
    ours, theirs, plain = (page["tasks"](library) for library in ("mixvae", "pythae", "PyTorch"))
    assert list(ours) == list(theirs) == list(plain)
    assert len(ours) == 12
    longer = [title for title in ours if page["lines"](ours[title]) > page["lines"](theirs[title])]
    assert not longer


def test_comments_and_blank_lines_are_not_counted():
    assert page["lines"]("# none: by hand\nx = 1\n\n\ndef f():\n    # why\n    return 2\n") == 3
    assert page["cell"]("# none\nx = 1") == "none (1)"
