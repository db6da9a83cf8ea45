"""Sweeps skip what is done, resume what was cut off, go on past what fails; CIFAR-10 from file to bits/dim."""

import math
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from conftest import Recorded, refused
from mixvae import runs, sweeps
from mixvae.cli import main
from mixvae.runs import Layout, find_evaluation, open_run
from mixvae.sweeps._children import run_child

GRID = """
base: digits
out: {out}
set: {{training.epochs: 2, data.limit: 100, model.latent: 2, model.encoder.hidden: [6], model.decoder.hidden: [6]}}
total_draws: 4
examples: 20
axes:
  components: {{S1: {{model.components: 1}}, S2: {{model.components: 2}}}}
  rate: {{ok: {{}}, wild: {{training.optimizer.lr: 1.0e+20}}}}
"""


@pytest.fixture
def grid(tmp_path):
    (tmp_path / "grid.yaml").write_text(GRID.format(out=tmp_path / "cells"))
    return tmp_path / "grid.yaml"


def test_the_example_of_the_documentation_is_a_grid():
    example = Path(__file__).parents[1] / "examples" / "grid.yaml"
    assert list(sweeps.read_grid(example).cells) == ["S1-small", "S1-large", "S4-small", "S4-large"]
    page = (example.parents[1] / "docs" / "sweeps.md").read_text()
    written = yaml.safe_load(page.split("```yaml")[1].split("```")[0])
    assert written == yaml.safe_load(example.read_text())


def test_a_grid_is_every_combination_of_its_axes(grid):
    cells = sweeps.read_grid(grid).cells
    assert list(cells) == ["S1-ok", "S1-wild", "S2-ok", "S2-wild"]
    assert cells["S2-wild"].model.components == 2
    assert cells["S2-wild"].training.optimizer["lr"] == 1e20
    assert cells["S1-ok"].training.optimizer["lr"] == 1e-3
    assert cells["S1-ok"].model.encoder["hidden"] == [6]


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_sweep_goes_on_past_a_failing_cell_and_reports_it(grid, tmp_path, capsys, request, jobs):
    text = grid.read_text()
    axes = "axes: {rate: {ok: {}, wild: {training.optimizer.lr: 1.0e+20}, other: {seed: 1}}}"
    grid.write_text(text[: text.index("axes:")] + axes)
    if jobs == 1:
        request.getfixturevalue("cells_here")
    with pytest.raises(SystemExit) as end:
        main(["sweep", str(grid), "--jobs", str(jobs)])
    assert end.value.code == 1
    out, err = capsys.readouterr()
    assert "1 of 3 cells failed: wild: " in err
    assert "lower the learning rate" in err
    assert "ok and 1 more" in out, "two seeds of one configuration"
    page = (tmp_path / "cells" / "report.html").read_text()
    assert "ok and 1 more" in page
    assert "NLL ± between trainings" in page
    rows = {p.parent.name for p in (tmp_path / "cells").glob("*/run.json") if find_evaluation(p.parent, 4, examples=20)}
    assert rows == {"ok", "other"}
    # train one cell for fewer epochs, and run again: it is resumed, the other left alone
    run, other = (Layout(tmp_path / "cells" / name) for name in ("ok", "other"))
    before = other.state.stat().st_mtime_ns, run.weights.read_bytes()
    shutil.rmtree(run.path)
    cell = sweeps.read_grid(grid).cells["ok"]
    runs.train(replace(cell, training=replace(cell.training, epochs=1)), run.path)
    request.getfixturevalue("cells_here")
    with pytest.raises(SystemExit):
        main(["sweep", str(grid)])
    out, err = capsys.readouterr()
    assert "ok: resuming" in err
    assert "other: already done" in err
    assert "wild: resuming" in err
    assert (other.state.stat().st_mtime_ns, run.weights.read_bytes()) == before


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A grid of one cell, trained and evaluated, and what its table said."""
    folder = tmp_path_factory.mktemp("swept")
    (folder / "grid.yaml").write_text(ONE_CELL.format(out=folder / "cells"))
    result = sweeps.sweep(sweeps.read_grid(folder / "grid.yaml"))
    return folder, next(iter(result.done.values()))


@pytest.fixture
def copied(swept, tmp_path):
    """A copy of the grid with its cell, to change, and what the table said."""
    folder = tmp_path / "swept"
    shutil.copytree(swept[0], folder)
    (folder / "grid.yaml").write_text(ONE_CELL.format(out=folder / "cells"))
    return folder, swept[1]


ONE_CELL = """
base: digits
out: {out}
set: {{training.epochs: 1, data.limit: 60, model.latent: 2, model.encoder.hidden: [6], model.decoder.hidden: [6]}}
total_draws: 4
axes: {{one: {{cell: {{}}}}}}
"""


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("model.latent: 2", "model.latent: 3", "model.latent is 2, not 3"),
        ("training.epochs: 1", "training.epochs: 1, training.warmup: 2", "training.warmup is 0, not 2"),
        ("training.epochs: 1", "training.epochs: 1, seed: 5", "seed is 0, not 5"),
        ("data.limit: 60", "data.limit: 61", "data.sha256 is"),
        ("training.epochs: 1", "training.epochs: 1, training.optimizer.lr: 2.0e-3", "training.learning_rate is 0.001"),
    ],
)
def test_a_changed_grid_is_refused_and_not_called_done(copied, capsys, old, new, told):
    """After a change of the grid the sweep said "already done" and printed the old table."""
    folder, _ = copied
    changed = folder / "changed.yaml"
    changed.write_text((folder / "grid.yaml").read_text().replace(old, new))
    with pytest.raises(SystemExit) as end:
        main(["sweep", str(changed)])
    out, err = capsys.readouterr()
    assert end.value.code == 2
    assert out == ""
    assert err.count("\n") == 1
    assert told in err


def test_growth_says_what_its_errors_are_over():
    grown = sweeps.Growth([sweeps.Step(2, 0.5, 0.1, 93.2, 0.4, 1.5, "runs/grown/S2", accepted=True)])
    assert repr(grown).startswith("Growth, each component with its draws per step; gain_se is over validation examples")
    assert "of one training: says nothing about" in repr(grown)
    assert "standard error over examples of one training" in grown.figure.axes[0].get_ylabel()


@pytest.mark.usefixtures("cells_here")
def test_grid_with_other_draws_is_reevaluated_not_retrained(copied):
    folder, first = copied
    state = (folder / "cells" / "cell" / "last" / "state.pt").stat().st_mtime_ns
    grid = sweeps.read_grid(folder / "grid.yaml")
    said = Recorded()
    more = sweeps.run_cells(replace(grid, total_draws=9), progress=said)
    assert said.lines[0] == "cell: evaluating"
    [evaluation] = more.done.values()
    assert evaluation["total_draws"] == 9
    assert evaluation["nll_pooled"] != first["nll_pooled"]
    again = sweeps.run_cells(grid, progress=said)
    assert said.lines[-1] == "cell: already done"
    assert next(iter(again.done.values())).results == first.results
    assert (folder / "cells" / "cell" / "last" / "state.pt").stat().st_mtime_ns == state


@pytest.mark.usefixtures("cells_here")
def test_grid_with_another_proposal_is_evaluated_with_it(copied):
    folder, first = copied
    assert first["proposal"] == "refined"
    (folder / "other.yaml").write_text((folder / "grid.yaml").read_text() + "proposal: posterior\n")
    said = Recorded()
    for told in ("cell: evaluating", "cell: already done"):
        said.lines.clear()
        done = sweeps.run_cells(sweeps.read_grid(folder / "other.yaml"), progress=said).done
        assert said.lines[0] == told
    [evaluation] = done.values()
    assert evaluation["proposal"] == "posterior"
    assert evaluation["nll"] == evaluation["nll_pooled"] == pytest.approx(first["nll_pooled"])


def test_growth_is_decided_by_pooled_bounds_of_the_posterior(swept, tmp_path):
    cell = swept[0] / "cells" / "cell"
    [step] = sweeps.grow(cell, tmp_path, most=2, epochs=1, total_draws=4, examples=20).steps
    new, old = (
        find_evaluation(tmp_path / name, 4, split="validation", examples=20, proposal="posterior")
        for name in ("S2", "S1-on")
    )
    assert step.gain == pytest.approx((new.bounds["pooled"] - old.bounds["pooled"]).mean())
    assert find_evaluation(tmp_path / "S2", 4, split="validation", examples=20) is None


PARENT = """
import os, sys
from mixvae.sweeps._children import run_child
print(os.getpid(), flush=True)
script = "import os, sys, time; from mixvae.training._lives import stop_with_parent; stop_with_parent(); "
script += "open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(120)"
print(run_child(["-c", script, sys.argv[1]]), flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_sweep_leaves_no_child_training(tmp_path, number):
    file = tmp_path / "pid"
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(file)], stdout=subprocess.PIPE)
    wait_until(lambda: file.exists() and file.read_text().strip())
    child = int(file.read_text())
    os.kill(child, 0)  # it runs
    parent.send_signal(number)
    parent.communicate()
    wait_until(lambda: not alive(child), 20)


def test_a_killed_child_is_told_by_its_signal(tmp_path):
    script = "import os, sys; print('epoch 3/9', file=sys.stderr, flush=True); os.kill(os.getpid(), 9)"
    assert run_child(["-c", script], tmp_path / "log") == (-9, ["epoch 3/9"])
    assert (tmp_path / "log").read_text() == "epoch 3/9\n"
    loud = "import sys; sys.stderr.write('x' * 10**6 + '\\nthe reason\\n'); sys.exit(3)"
    status, last = run_child(["-c", loud])
    assert (status, last[-1]) == (3, "the reason")


def test_a_cell_trains_alone_where_srun_started_its_parent(monkeypatch):
    srun = {"SLURM_JOB_ID": "1", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "2", "SLURM_PROCID": "1"}
    script = "import sys; from mixvae.training._cluster import cluster; sys.exit(str(cluster()))"
    for name, value in srun.items():
        monkeypatch.setenv(name, value)
    assert run_child(["-c", script])[1] == ["None"]
    assert run_child(["-c", script], environment=os.environ | {"OMP_NUM_THREADS": "1"})[1] == ["None"]


def wait_until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("base: digits", "must hold axes"),
        ("axes: {a: {b: {model.component: 2}}}", "model.component"),
        ("nonsense: [", "is not a YAML file"),
        ("draw: 3\naxes: {}", "unknown key draw: did you mean total_draws?"),
        ("axes: {a: {x-y: {}, x: {}}, b: {z: {}, y-z: {}}}", "two cells are called x-y-z"),
        ("axes: {a: [x, y]}", "every axis must map names to options"),
        ("axes: {a: {x: [1]}}", "every axis must map names to options"),
        ("set: [1]\naxes: {a: {x: {}}}", "every axis must map names to options"),
        ("out: 5\naxes: {a: {x: {}}}", "out must be a string; got 5"),
        ("base: 3\naxes: {a: {x: {}}}", "base must be a string; got 3"),
        ("total_draws: 0\naxes: {a: {x: {}}}", "total_draws must be a whole number, at least 1; got 0"),
        ("proposal: laplace\naxes: {a: {x: {}}}", "proposal must be refined or posterior; got 'laplace'"),
        ("examples: abc\naxes: {a: {x: {}}}", "examples must be a whole number, at least 1; got 'abc'"),
        ("total_draws: true\naxes: {a: {x: {}}}", "total_draws must be a whole number, at least 1; got True"),
        ("axes: {a: {x: {seed: 1}}, b: {y: {seed: 2}}}", "the axes a and b both set seed, and the last would win"),
        ("axes: {a: {../esc: {}}}", "cannot be the name of a cell's folder"),
    ],
)
def test_wrong_grids_are_told_in_one_line(tmp_path, capsys, text, told):
    (tmp_path / "g.yaml").write_text(text)
    with pytest.raises(SystemExit) as end:
        main(["sweep", str(tmp_path / "g.yaml")])
    err = capsys.readouterr().err
    assert end.value.code == 2
    assert told in err
    assert err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_a_missing_grid_is_told_in_one_line(capsys):
    assert "there is no grid 'ablatoin': give a YAML file" in refused(capsys, "sweep", "ablatoin")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """CIFAR-10's binary files, of 32×32 crops of scikit-learn's two colour photographs."""
    from sklearn.datasets import load_sample_images

    crops = np.stack(
        [
            picture[i : i + 32, j : j + 32].transpose(2, 0, 1)
            for picture in load_sample_images().images
            for i in range(0, 384, 32)
            for j in range(0, 608, 32)
        ]
    )
    order = np.random.default_rng(0).permutation(len(crops))
    records = np.concatenate([(order % 10).astype(np.uint8)[:, None], crops[order].reshape(len(crops), -1)], 1)
    folder = tmp_path_factory.mktemp("cifar") / "cifar-10-batches-bin"
    folder.mkdir()
    for i, part in enumerate(np.split(records[:400], 5), 1):
        (folder / f"data_batch_{i}.bin").write_bytes(part.tobytes())
    (folder / "test_batch.bin").write_bytes(records[400:456].tobytes())
    return folder.parent


@pytest.mark.parametrize("preset", ["cifar10", pytest.param("cifar10_pixelcnn", marks=pytest.mark.slow)])
def test_cifar_from_its_files_to_bits_per_dimension(photographs, tmp_path, preset):
    run = tmp_path / "run"
    small = ["--model.decoder.width=8", "--model.latent=8", "--training.batch=40"]
    if preset == "cifar10_pixelcnn":
        small += ["--model.decoder.layers=2", "--model.decoder.maps=2"]
    layers = "[[8,3,1],[8,3,2],[4,3,2]]"
    main(
        ["train", preset, "--data.root", str(photographs), "--training.epochs=3", "--training.warmup=1", *small]
        + ["--model.encoder.class_path=GatedConvEncoder", f"--model.encoder.layers={layers}", "--out", str(run)]
        + ["--model.components=2", "--training.optimizer.lr=3e-3"]
    )
    main(["evaluate", str(run), "--total-draws", "8", "--examples", "12"])
    results = find_evaluation(run, 8, examples=12)
    assert results["bits_per_dim"] == pytest.approx(results["nll"] / 3072 / math.log(2))
    assert 3 < results["bits_per_dim"] < 9, "8 bits is what a uniform distribution takes"
    rows = open_run(run).metrics
    assert rows[-1]["validation"] > rows[0]["validation"]
    main(["sample", str(run), "--n", "2", "--out", str(tmp_path / "s.npy")])
    samples = np.load(tmp_path / "s.npy")
    assert samples.shape == (2, 3, 32, 32)
    assert samples.min() >= 0
    assert samples.max() <= 1
    main(["reconstruct", str(run), "--n", "2"])


def test_colour_with_a_bernoulli_likelihood_is_refused(photographs, tmp_path, capsys):
    words = ["train", "cifar10_pixelcnn", "--data.root", str(photographs), "--model.likelihood", "Bernoulli"]
    with pytest.raises(SystemExit) as end:
        main([*words, "--out", str(tmp_path / "run")])
    assert end.value.code == 2
    assert "got 3 channels: use LogisticMixture" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
