"""Whatever a user gets wrong is told in one line, with the exit status that says whose fault it was."""

import errno
import inspect
import os
import re
import subprocess
import sys
import threading

import numpy as np
import pytest

from conftest import refused
from mixvae import config
from mixvae._failures import at_least, called, plain_errors
from mixvae.cli import COMMANDS, main
from mixvae.sweeps import Sweep

TINY = ("--training.epochs=1", "--data.limit=20", "--data.limit_validation=20")
MINE = """
import torch
class Raises(torch.nn.Module):
    def __init__(self): raise KeyError("x")
class Five(torch.nn.Module):
    def forward(self, x): return 5
class Later(torch.nn.Module):
    def __init__(self, latent):
        super().__init__()
        self.calls, self.layer = 0, torch.nn.Linear(64, 2 * latent)
    def forward(self, x):
        self.calls += 1
        if self.calls > 6: return {}[self.calls]
        return self.layer(x.flatten(1)).chunk(2, -1)
def divides(log_w, weight): raise ZeroDivisionError
def whole(log_w, weight): return log_w.logsumexp((0, 1)).long()
"""


@pytest.fixture
def folder(tmp_path, monkeypatch, as_users_run):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "mine_failing.py").write_text(MINE)
    (tmp_path / "raises_itself.py").write_text("raise RuntimeError('no')")
    (tmp_path / "no_python.py").write_text("def (:")
    yield tmp_path
    sys.modules.pop("mine_failing", None)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--training.optimizer.lr=abc"], "Adam(lr='abc', fused=True) cannot be made"),
        (["--training.optimizer.lr={}"], "cannot be made"),
        (["--training.optimizer.lr=.inf"], "its learning rate and options must be finite"),
        (["--training.optimizer=LBFGS"], "LBFGS cannot take the steps"),
        (["--training.optimizer=SparseAdam"], "SparseAdam cannot take the steps"),
        (["--training.optimizer=mine_failing.divides"], "cannot be made"),
        (["--training.schedule=StepLR"], "missing 1 required positional argument: 'step_size'"),
        (["--training.bound=torch.nn.functional.relu"], "a bound must be one number per example"),
        (["--training.bound=math.pi"], "not a class or function"),
        (["--training.bound=mine_failing.divides"], "ZeroDivisionError"),
        (["--training.bound=mine_failing.whole"], "a bound must be one number per example"),
        (["--training.gradient=os.getcwd"], "cannot be computed"),
        (["--training.clip=.nan"], "clip must be a positive number"),
        (["--training.clip=.inf"], "clip must be a positive number"),
        (["--training.save_every=.nan"], "save_every must be at least 0"),
        (["--training.threads=100000"], "threads must be at most"),
        (["--training.devices=3000000"], "would start 3000000 processes"),
        (
            ["--training.devices=nan"],
            "devices must be a number from 1, auto, -1 for all GPUs, or numbers of GPUs such as",
        ),
        (["--training.devices=-3"], "devices must be a number from 1, auto, -1 for all GPUs"),
        (["--training.devices=0,x"], "devices must be a number from 1, auto, -1 for all GPUs"),
        (["--training.accelerator=foo"], "accelerator 'foo' is unknown: choose auto, cpu, cuda, gpu, mps or tpu"),
        (["--training.accelerator="], "accelerator '' is unknown: choose auto, cpu, cuda, gpu, mps or tpu"),
        (["--training.accelerator=CPU"], "accelerator 'CPU' is unknown: choose auto, cpu, cuda, gpu, mps or tpu"),
        (["--training.accelerator=tpu"], "accelerator 'tpu' is not available on this machine: choose auto"),
        (["--training.precision=foo"], "precision 'foo' is unknown: choose 32-true, 64-true, bf16-mixed or 16-mixed"),
        (["--training.precision=33"], "precision '33' is unknown: choose 32-true, 64-true, bf16-mixed or 16-mixed"),
        (["--training.freeze=[decoder,prior,posterior]"], "nothing to train"),
        (["--seed=9223372036854775808"], "seed must be below 2**63"),
        (["--data.seed=-1"], "data.seed must be at least 0"),
        (["--data.name="], "data.name is empty"),
        (["--model.shape=[1,2,2]"], "but the data have shape [1, 8, 8]"),
        (["--model.encoder.hidden=abc"], "GatedEncoder(hidden='abc') cannot be made"),
        (["--model.encoder=../.."], "model.encoder must be the name of a class"),
        (["--model.encoder=mine_failing.Raises"], "Raises() cannot be made: KeyError: 'x'"),
        (["--model.encoder=mine_failing.Five"], "must return a pair"),
        (["--model.encoder=raises_itself.A"], "cannot import 'raises_itself.A'"),
        (["--model.encoder=no_python.A"], "SyntaxError"),
        (["--model.decoder=mine_failing.Five"], "AttributeError"),
        (["--model.prior=mine_failing.Five"], "TypeError"),
    ],
)
def test_a_wrong_setting_is_one_line_and_nothing_is_written(folder, capsys, words, part):
    before = sorted(folder.iterdir())
    assert part in refused(capsys, "train", "digits", "--out=run", *TINY, *words)
    assert [path for path in sorted(folder.iterdir()) if path.name != "__pycache__"] == before


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("model: null", "model must map settings"),
        ("training:", "training must map settings"),
        ("", "must hold keys such as data"),
        ("seed: null", "seed is null"),
        ("training: {optimizer: null}", "training.optimizer is null"),
        ("data: {name: null}", "data.name is empty: name a data set"),
        ("model: {encoder: {class_path: GatedEncoder, init_args: 5}}", "init_args of GatedEncoder must map"),
        ("model: {encoder: {class_path: 5}}", "class_path must be the name of a class; got 5"),
    ],
)
def test_a_wrong_yaml_is_one_line(folder, capsys, text, part):
    (folder / "file.yaml").write_text(text)
    assert part in refused(capsys, "train", "file.yaml", "--out=run", *TINY)
    assert not (folder / "run").exists()


def system(number, *names):
    return OSError(number, os.strerror(number), *names)


ERRORS = [
    (system(errno.EISDIR, "run/x"), "run/x: Is a directory; remove it, or name another place"),
    (system(errno.EACCES, "x"), "x: Permission denied; change its permissions, or name another place"),
    (system(errno.ENOENT, "a", None, "b"), "a → b: No such file or directory; check the name"),
    (system(errno.ENOSPC), "No space left on device; free some space"),
    (system(errno.EMFILE, "x"), "x: Too many open files; raise `ulimit -n`"),
    (system(errno.EIO, "x"), "x: Input/output error"),
    (OSError("cannot write x: it is full"), "cannot write x: it is full"),
    (FileNotFoundError("x is not a run"), "x is not a run"),
]


@pytest.mark.parametrize(("error", "told"), ERRORS)
def test_what_the_system_refuses_is_told_with_a_remedy(capsys, monkeypatch, error, told):
    """Such lines began with [Errno 21], and said no more than the system does."""

    def fail() -> None:
        """Fail."""
        raise error

    monkeypatch.setitem(COMMANDS, "presets", fail)
    line = refused(capsys, "presets")
    assert line.startswith(f"mixvae: error: {told}")
    assert "Errno" not in line


@pytest.mark.parametrize("name", ["metrics.jsonl", "results.json", "config.yaml", "model.safetensors", "last/state.pt"])
def test_a_folder_in_the_place_of_a_file_is_named(folder, capsys, name):
    """A training went on until it met the folder."""
    main(["train", "digits", "--out=run", *TINY])
    (folder / "run" / name).unlink(missing_ok=True)
    (folder / "run" / name).mkdir()
    before = (folder / "run" / "run.json").read_bytes()
    told = refused(capsys, "--quiet", "train", "--resume=run", "--training.epochs=3")
    assert re.search(
        rf"run/{name} is (a directory, but a run has a file of that name: remove it|not an ordinary file)", told
    )
    assert (folder / "run" / "run.json").read_bytes() == before


def test_a_new_run_is_refused_where_a_folder_has_its_file(folder, capsys):
    (folder / "run" / "metrics.jsonl").mkdir(parents=True)
    told = refused(capsys, "--quiet", "train", "digits", "--out=run", *TINY)
    assert "run/metrics.jsonl is a directory, but a run has a file of that name: remove it" in told
    assert [path.name for path in (folder / "run").iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize("axes", ["{}", "{a: {}}", "{a: {x: {}}, b: {}}"])
def test_a_grid_without_a_cell_is_refused(folder, capsys, axes):
    (folder / "grid.yaml").write_text(f"axes: {axes}")
    assert "at least one axis" in refused(capsys, "sweep", "grid.yaml")


@pytest.mark.parametrize(
    "words",
    [
        ("--foo",), ("toy", ".."), ("toy", "ring", "--span=.nan"), ("toy", "ring", "--seed=-1"),
        ("demo", "--total-draws=0"),
        ("reproduce", "toys", "--jobs=0"), ("toy", "ring", "--out=mine_failing.py"),
        ("demo", "--out=mine_failing.py/x"), ("toy", "ring", "--span=" + "9" * 400),
    ],
)  # fmt: skip
def test_a_wrong_option_is_told_before_any_work(folder, capsys, words):
    refused(capsys, *words)
    assert not (folder / "runs").exists()


def test_training_failure_in_user_module_names_its_line(folder, capsys):
    words = [
        "--quiet",
        "train",
        "digits",
        "--out=run",
        *TINY,
        "--model.encoder=mine_failing.Later",
        "--training.batch=2",
    ]
    with pytest.raises(SystemExit) as end:
        main(words)
    err = capsys.readouterr().err
    assert end.value.code == 1
    assert err.strip().count("\n") == 0
    assert "mine_failing.py, line 13, in forward: KeyError: 7" in err


def test_debug_shows_where_an_error_came_from(folder, capsys):
    with pytest.raises(SystemExit) as end:
        main(["--debug", "train", "digits", "--out=run", "--model.encoder=mine_failing.Raises"])
    err = capsys.readouterr().err
    assert end.value.code == 2
    assert "Traceback" in err
    assert "mine_failing.py" in err
    assert err.splitlines()[-1].startswith("mixvae: error: ")


def test_a_fault_of_our_own_says_so_and_ends_with_status_1(monkeypatch, capsys):
    cli = sys.modules["mixvae.cli"]
    code = compile("def broken():\n    'x'\n    raise AttributeError('oops')", str(cli.__file__), "exec")
    space = {}
    exec(code, space)  # as if it stood in a file of mixvae
    monkeypatch.setitem(cli.COMMANDS, "presets", space["broken"])
    with pytest.raises(SystemExit) as end:
        main(["presets"])
    assert end.value.code == 1
    assert "unexpected AttributeError: oops" in capsys.readouterr().err


def test_python_dash_m_does_not_import_from_working_directory(tmp_path):
    for name in ("rich.py", "yaml.py", "jsonargparse.py"):
        (tmp_path / name).write_text("raise SystemExit('hijacked')")
    command = [sys.executable, "-m", "mixvae", "presets"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_class_and_its_arguments_can_be_separate_flags():
    for words in (
        ["--model.prior=VampPrior", "--model.prior.pseudo_inputs=3"],
        ["--model.prior", "VampPrior", "--model.prior.pseudo_inputs", "3"],
        ["--model.prior.pseudo_inputs=3", "--model.prior=VampPrior"],
    ):
        assert config.read("digits", words).model.prior == {"class_path": "VampPrior", "pseudo_inputs": 3}
    assert config.read("digits", ["--model.prior", "VampPrior"]).model.prior == "VampPrior"


def test_a_training_that_fails_in_reproduce_ends_with_status_1(monkeypatch, capsys, tmp_path):
    failed = Sweep(failed={"S1": "the bound became NaN"})
    monkeypatch.setattr("mixvae.sweeps.run_cells", lambda *_, **__: failed)
    with pytest.raises(SystemExit) as end:
        main(["reproduce", "mnist", "--scale", "smoke", "--out", str(tmp_path)])
    assert end.value.code == 1
    assert "S1: the bound became NaN" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_only_a_full_disk_ends_a_thread_without_a_traceback(monkeypatch, capsys):
    """TensorBoard writes in a thread of its own, which raises what the command tells in one line."""

    def work(kind):
        raise kind("in a thread")

    for kind, traces in ((OSError, 0), (KeyError, 1)):

        def command(kind=kind):
            """Start a thread that fails."""
            thread = threading.Thread(target=work, args=(kind,))
            thread.start()
            thread.join()

        command.__signature__ = inspect.Signature()
        monkeypatch.setitem(sys.modules["mixvae.cli"].COMMANDS, "presets", command)
        main(["presets"])
        assert capsys.readouterr().err.count("Traceback") == traces


def test_numbers_are_refused_by_name():
    at_least(0, seed=0, epochs=None)
    at_least(1, draws=np.int64(5), share=np.float32(1.5))
    for wrong in (-1, float("nan"), float("inf"), 2**63, True, "3"):
        with pytest.raises(ValueError, match="draws must be"):
            at_least(0, draws=wrong)


def test_errors_that_say_what_was_wrong_pass_as_they_are():
    for kind in (ValueError, OSError, FloatingPointError):
        with pytest.raises(kind, match=r"^as it was$"), plain_errors("context"):
            raise kind("as it was")
    with pytest.raises(ValueError, match=r"^context: AssertionError$"), plain_errors("context"):
        raise AssertionError


def test_a_long_call_is_shortened():
    assert called(dict, a=1) == "dict(a=1)"
    assert len(called(dict, a=[0] * 1000)) <= 160


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["train", "digits", "--model.encoder={class_path: GatedEncoder, hidden: 3"], "with all its braces; got"),
        (["train", "digits", "data.name=digits"], "did you mean --data.name?"),
        (["extend", "RUN", "--training.epochs", "1"], "did you mean --epochs?"),
        (["evaluate", "RUN", "--proposal", "refine"], "proposal: expected one of refined, posterior; got refine"),
        (["evaluate", "RUN", "--check", "0"], "check must be at least 1; got 0"),
        (["reconstruct", "RUN", "--n", "99999999999"], "a picture shows at most 50 examples; got --n 99999999999"),
    ],
)
def test_a_hint_helps_with_what_was_typed(tmp_path, capsys, words, told):
    error = refused(capsys, *words, *(["--out", tmp_path / "run"] if words[0] == "train" else []))
    assert told in error
    assert "--trust" not in error
