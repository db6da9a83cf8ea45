"""Training resumes bit for bit, keeps the best epoch, and stops plainly when it diverges."""

import functools
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

import mixvae
from conftest import Recorded, binary, tiny_model
from mixvae import datasets, runs
from mixvae.bounds import elbo, iwelbo, log_weights, miselbo, pooled
from mixvae.cli import main
from mixvae.decoders import Decoder, GaussianLikelihood, MLPDecoder
from mixvae.files import load_weights, state_from_bytes
from mixvae.gradients import doubly_reparameterised, proportional, reparameterised, sticking_the_landing
from mixvae.model import MixtureVAE
from mixvae.networks import GatedEncoder
from mixvae.posteriors import SeparateEncoders
from mixvae.priors import StandardNormal, VampPrior
from mixvae.runs import Layout, fit, open_run
from mixvae.training import launch
from mixvae.training._validation import validation_bound

ADAM = partial(torch.optim.Adam, lr=3e-3, fused=True)


@pytest.fixture(scope="module")
def digits():
    return datasets.load_dataset("digits", limit=250)


def small(prior=None, seed=0, dropout=0.0):
    torch.manual_seed(seed)
    posterior = SeparateEncoders(
        lambda: nn.Sequential(nn.Dropout(dropout), GatedEncoder((1, 8, 8), 3, (12,))), components=2
    )
    return MixtureVAE(posterior, prior(posterior) if prior else StandardNormal(3), MLPDecoder(3, (1, 8, 8), (12,)))


def vamp(posterior):
    return VampPrior(posterior, (1, 8, 8), 4)


def weights(model):
    return {name: t.clone() for name, t in model.state_dict().items()}


def saved_state(file):
    return state_from_bytes(file.read_bytes(), file)


def rows_of(layout):
    """Rows of the copy that people watch; none before it is there."""
    lines = layout.metrics.read_text().splitlines() if layout.metrics.exists() else []
    return [json.loads(line) for line in lines]


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


class SignalAt:
    """A bound that sends a signal to its own process at one of its calls."""

    def __init__(self, call, number=signal.SIGINT):
        self.call, self.number, self.calls = call, number, 0
        functools.update_wrapper(self, elbo)  # the same bound, as far as a run's identity goes

    def __call__(self, log_w, weight):
        self.calls += 1
        if self.calls == self.call:
            signal.raise_signal(self.number)
        return elbo(log_w, weight)


OPTIONS = {
    "plain": {},
    "everything": {
        "ema": 0.9,
        "clip": 1.0,
        "schedule": partial(torch.optim.lr_scheduler.StepLR, step_size=2, gamma=0.5),
        "optimizer": partial(torch.optim.SGD, lr=1e-3, momentum=0.9),
        "warmup": 3,
        "draws_per_component": 2,
    },
    "one component at a time, scored under all": {"active": 1, "validation_components": 1},
    "one component at a time, alone": {"active": 1, "score_all": False},
    "plateau": {"schedule": partial(torch.optim.lr_scheduler.ReduceLROnPlateau, patience=0)},
}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("call", [3, 7, 10])
def test_ctrl_c_at_any_step_and_resuming_gives_the_same_weights(digits, tmp_path, options, call):
    """5 epochs of 3 steps; the interrupted run has dropout, a VampPrior and every kind of state to restore."""
    settings = {"epochs": 5, "seed": 3, "optimizer": ADAM} | OPTIONS[options]
    whole, broken = (Layout(tmp_path / name) for name in ("whole", "broken"))
    expected = small(vamp, dropout=0.3)
    rows = fit(expected, digits, run=whole.path, save_every=1e9, **settings)
    with pytest.raises(KeyboardInterrupt):
        fit(small(vamp, dropout=0.3), digits, run=broken.path, save_every=1e9, bound=SignalAt(call), **settings)
    found = small(vamp, seed=99, dropout=0.3)  # its weights come from the checkpoint
    again = fit(found, digits, run=broken.path, save_every=1e9, **settings)
    assert_same(weights(found), weights(expected))
    assert_same(load_weights(broken.weights), load_weights(whole.weights))
    one, other = saved_state(broken.state), saved_state(whole.state)
    assert_same(one["model"], other["model"])
    assert torch.equal(one["noise"], other["noise"])
    assert torch.equal(one["rng"], other["rng"])
    assert [r["epoch"] for r in again] == [1, 2, 3, 4, 5]
    for row, wanted in zip(again, rows, strict=True):
        assert {k: v for k, v in row.items() if k != "seconds"} == {k: v for k, v in wanted.items() if k != "seconds"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_a_closed_terminal_stops_as_a_scheduler_does(digits, tmp_path, number):
    """Catches a training that a lost connection kills before it has saved."""
    whole, run = small(), Layout(tmp_path / "run")
    fit(whole, digits, epochs=3, optimizer=ADAM)
    with pytest.raises(SystemExit) as end:
        fit(small(), digits, epochs=3, optimizer=ADAM, run=run.path, save_every=1e9, bound=SignalAt(5, number))
    assert end.value.code == 128 + number
    resumed = small(seed=9)
    fit(resumed, digits, epochs=3, optimizer=ADAM, run=run.path)
    assert_same(weights(resumed), weights(whole))


def test_a_training_under_nohup_outlives_its_terminal(digits, tmp_path):
    old = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert len(fit(small(), digits, epochs=2, bound=SignalAt(3, signal.SIGHUP))) == 2
    finally:
        signal.signal(signal.SIGHUP, old)


def test_every_component_learns_when_each_step_draws_from_one(digits):
    model = small()
    before = weights(model)
    rows = fit(model, digits, epochs=6, active=1, optimizer=ADAM)
    assert rows[-1]["validation"] > rows[0]["validation"] + 1
    changed = {name for name, t in weights(model).items() if not torch.equal(t, before[name])}
    assert all(any(name.startswith(f"posterior.encoders.{s}.") for name in changed) for s in (0, 1))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"active": 3}, "active must be at most the number of components, 2; got 3"),
        ({"active": 0}, "active must be at least 1; got 0"),
        ({"validation_components": 3}, "validation_components must be at most the number of components, 2; got 3"),
        ({"bound": iwelbo}, "got 2: use `pooled`"),
        ({"bound": pooled, "gradient": sticking_the_landing}, "for the elbo only; got pooled"),
        ({"bound": pooled, "gradient": doubly_reparameterised, "active": 1}, "got a subset of components"),
    ],
)
def test_untrainable_options_are_refused_before_writing(digits, tmp_path, options, told):
    with pytest.raises(ValueError, match=told):
        fit(small(), digits, run=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def command(run, *more):
    return [
        sys.executable, "-m", "mixvae", "train", "digits", "--out", str(run), "--data.limit=200",
        "--training.epochs=20", "--training.batch=25", "--model.components=2", "--training.save_every=0",
        "--training.threads=1", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    run = Layout(tmp_path_factory.mktemp("runs") / "whole")
    main(command(run.path)[3:])
    return run


def one_thread():
    return os.environ | {"OMP_NUM_THREADS": "1"}


def wait_for(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the training did not get there in time"
        time.sleep(0.002)


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_killed_process_resumes_to_the_same_weights(uninterrupted, tmp_path, number):
    run = Layout(tmp_path / "killed")
    process = subprocess.Popen(command(run.path), stderr=subprocess.PIPE, env=one_thread())
    wait_for(lambda: len(rows_of(run)) >= 5)
    time.sleep(random.Random(time.time_ns()).random() * 0.3)  # any instant
    process.send_signal(number)
    _, said = process.communicate()
    assert b"Traceback" not in said
    assert process.returncode == (-9 if number == signal.SIGKILL else 143)
    assert 5 <= len(rows_of(run)) < 20, "killed too late to test anything"
    main(["train", "--resume", str(run.path)])
    assert_same(load_weights(run.weights), load_weights(uninterrupted.weights))
    assert_same(saved_state(run.state)["model"], saved_state(uninterrupted.state)["model"])
    assert [row["epoch"] for row in rows_of(run)] == list(range(1, 21))
    assert not [p for p in run.path.rglob(".*") if p.is_file()], "temporary files are left"


def files_of(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Killed(BaseException):
    """As if the process had ended there."""


@pytest.mark.parametrize("step", range(1, 12))
def test_checkpoint_cut_off_at_any_write_is_the_old_or_new_one(digits, tmp_path, monkeypatch, step):
    """A kill between weights and state left a pair of two epochs; one before the first checkpoint, no run at all."""
    whole, run = small(), Layout(tmp_path / "run")
    fit(whole, digits, epochs=2, optimizer=ADAM)
    calls = 0

    def killed(old, new, replace=os.replace):
        nonlocal calls
        calls += 1
        if calls == step:
            raise Killed
        replace(old, new)

    monkeypatch.setattr(os, "replace", killed)
    monkeypatch.setattr(Path, "unlink", lambda *args, **kwargs: None)  # nobody tidies up after a kill
    with pytest.raises(Killed):
        fit(small(), digits, epochs=2, optimizer=ADAM, run=run.path, save_every=0.0)
    monkeypatch.undo()
    if run.manifest.exists():
        found = open_run(run.path)
        assert found.state == "stopped"
        if found.has_weights:
            found = open_run(run.path, model=small(seed=5))
            assert all(t.isfinite().all() for t in found.load().state_dict().values())
    resumed = small(seed=9)
    torch.manual_seed(0)
    rows = fit(resumed if run.manifest.exists() else small(), digits, epochs=2, optimizer=ADAM, run=run.path)
    assert [row["epoch"] for row in rows] == [1, 2]
    assert rows_of(run) == rows
    assert_same(load_weights(run.weights), weights(whole))


def test_lost_metrics_come_back_whole(digits, tmp_path):
    """A missing metrics.jsonl ended in a StopIteration, or later rows stood alone in it."""
    run = Layout(tmp_path / "run")
    rows = fit(small(), digits, epochs=2, run=run.path)
    for content in (None, "", json.dumps(rows[0]) + '\n{"epoch": 2, "bou'):
        run.metrics.unlink(missing_ok=True)
        if content is not None:
            run.metrics.write_text(content)
        more = fit(small(), digits, epochs=len(rows) + 1, run=run.path)
        assert more[: len(rows)] == rows
        assert rows_of(run) == more
        rows = more


def test_a_checkpoint_is_there_as_soon_as_training_starts(digits, tmp_path):
    """There was none for the first 30 seconds: an early kill left a folder that nothing would go on with."""
    seen = []

    class Watching(SignalAt):
        def __call__(self, log_w, weight):
            seen.append((tmp_path / "run" / "last" / "state.pt").exists())
            return elbo(log_w, weight)

    fit(small(), digits, epochs=1, run=tmp_path / "run", bound=Watching(0))
    assert seen == [False] * 2 + [True] * (len(seen) - 2)  # the first calls try the bound before anything is written


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"seed": 4}, "seed is 3, not 4"),
        ({"bound": pooled}, "training.bound is mixvae.bounds.elbo, not mixvae.bounds.pooled"),
        ({"optimizer": partial(torch.optim.Adam, lr=1e-3, fused=True)}, "learning_rate is 0.003"),
        ({"optimizer": partial(torch.optim.SGD, lr=3e-3)}, "training.optimizer.class is torch.optim.Adam"),
        ({"optimizer": partial(ADAM, betas=(0.8, 0.999))}, "training.optimizer.groups"),
        ({"schedule": partial(torch.optim.lr_scheduler.StepLR, step_size=2)}, "training.schedule is None"),
        ({"batch": 50}, "training.batch is 100, not 50"),
        ({"draws_per_component": 2}, "training.draws_per_component is 1, not 2"),
        ({"warmup": 3}, "training.warmup is 0, not 3"),
        ({"ema": 0.9}, "training.ema is None, not 0.9"),
        ({"clip": 1.0}, "training.clip is None"),
        ({"epochs": 1}, "it has trained for 2 epochs, not 1"),
        ({"label": "other"}, "model.label is '', not other"),
        ({"data": "other"}, "data.sha256 is"),
    ],
)
def test_fit_into_a_run_of_other_settings_is_refused(digits, tmp_path, finished, change, told):
    """Three calls with another learning rate, seed and bound returned the same rows."""
    before = files_of(finished)
    settings = {"epochs": 2, "seed": 3, "optimizer": ADAM} | change
    data = datasets.load_dataset("digits", limit=249) if settings.pop("data", None) else digits
    with pytest.raises(ValueError, match="made from something else: ") as error:
        fit(small(), data, run=finished, **settings)
    assert told in str(error.value)
    assert "\n" not in str(error.value)
    assert files_of(finished) == before


@pytest.fixture(scope="module")
def finished(digits, tmp_path_factory):
    path = tmp_path_factory.mktemp("finished") / "run"
    fit(small(), digits, epochs=2, seed=3, optimizer=ADAM, run=path)
    return path


@pytest.mark.parametrize("schedule", [None, partial(torch.optim.lr_scheduler.StepLR, step_size=2, gamma=0.5)])
def test_an_amended_rate_is_used_from_then_on_and_recorded(digits, tmp_path, schedule):
    """A resumed run kept its old rate while its configuration claimed the new one."""

    def settings(rate, **more):
        return {"epochs": 4, "optimizer": partial(torch.optim.SGD, lr=rate), "schedule": schedule, **more}

    path = tmp_path / "run"
    fit(small(), digits, run=path, **settings(1e-3, epochs=2))
    with pytest.raises(ValueError, match=r"learning_rate is 0.001 from epoch 1 on, not 0.0005; pass amend=True"):
        fit(small(), digits, run=path, **settings(5e-4))
    rows = fit(small(), digits, run=path, amend=True, **settings(5e-4))
    factor = 1.0 if schedule is None else 0.5
    assert [row["learning_rate"] for row in rows] == pytest.approx([1e-3, 1e-3, 5e-4 * factor, 5e-4 * factor])
    journal = open_run(path).recipe.journal
    assert [(entry["epoch"], entry["learning_rate"]) for entry in journal] == [(0, [1e-3]), (2, [5e-4])]
    with pytest.raises(ValueError, match=r"training of 4 epochs is over; to continue under learning rate 0.0001"):
        fit(small(), digits, run=path, amend=True, **settings(1e-4))
    # the same settings from the beginning, by hand: the weights after epoch 2 are those of the first rate
    straight = tmp_path / "straight"
    fit(small(), digits, run=straight, **settings(1e-3))
    assert open_run(straight).recipe.sha256 != open_run(path).recipe.sha256
    assert rows[1]["validation"] == open_run(straight).metrics[1]["validation"]
    assert rows[2]["validation"] != open_run(straight).metrics[2]["validation"]


SCHEDULES = {
    "step": partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5),
    "cosine": partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=8),
    "lambda": partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=lambda epoch: 0.8**epoch),
    "warm-up, then cosine": lambda optimizer: torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [
            torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=2),
            torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 6),
        ],
        [2],
    ),
}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_schedule_goes_on_in_proportion_under_an_amended_rate(digits, tmp_path, schedule):
    """Half the rate from an epoch on is half of what the schedule would have given, until its end."""

    def settings(rate, epochs):
        return {"epochs": epochs, "optimizer": partial(torch.optim.SGD, lr=rate), "schedule": SCHEDULES[schedule]}

    whole = fit(small(), digits, **settings(1e-3, 6))
    fit(small(), digits, run=tmp_path / "run", **settings(1e-3, 3))
    rows = fit(small(), digits, run=tmp_path / "run", amend=True, **settings(5e-4, 6))
    expected = [row["learning_rate"] * (1 if row["epoch"] <= 3 else 0.5) for row in whole]
    assert [row["learning_rate"] for row in rows] == pytest.approx(expected)


def test_a_rate_that_the_schedule_would_override_is_refused(digits, tmp_path):
    cycle = partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=1e-2, total_steps=9)
    fit(small(), digits, epochs=1, schedule=cycle, run=tmp_path / "run", progress=Recorded())
    before = files_of(tmp_path / "run")
    with pytest.raises(ValueError, match="OneCycleLR sets its own learning rates"):
        fit(
            small(), digits, epochs=2, schedule=cycle, run=tmp_path / "run", optimizer=ADAM, amend=True,
            progress=Recorded(),
        )  # fmt: skip
    assert files_of(tmp_path / "run") == before


def test_only_one_process_trains_a_run(digits, tmp_path):
    """`--resume` of a run that trains doubled its rows, and one of the two died on a shared temporary name."""
    path, refusals = tmp_path / "run", []

    class Intruding(SignalAt):
        def __call__(self, log_w, weight):
            self.calls += 1
            if self.calls == 4:
                with pytest.raises(ValueError, match="is being trained by process") as told:
                    fit(small(), digits, epochs=2, run=path)
                refusals.append(str(told.value))
                assert open_run(path).state == "training"
            return elbo(log_w, weight)

    rows = fit(small(), digits, epochs=2, run=path, bound=Intruding(0))
    assert len(refusals) == 1
    assert str(os.getpid()) in refusals[0]
    assert [row["epoch"] for row in rows_of(Layout(path))] == [1, 2] == [row["epoch"] for row in rows]
    assert open_run(path).state == "done"


def nameable():
    torch.manual_seed(0)
    posterior = SeparateEncoders(partial(GatedEncoder, (1, 8, 8), 3, (12,)), components=2)
    return MixtureVAE(posterior, vamp(posterior), MLPDecoder(3, (1, 8, 8), (12,)))


def test_run_of_a_model_built_in_python_evaluates_and_loads(digits, tmp_path):
    model = nameable()
    fit(model, digits, epochs=2, optimizer=ADAM, run=str(tmp_path / "run"), label="mine")
    assert_same(weights(mixvae.load(tmp_path / "run")), weights(model))
    main(["evaluate", str(tmp_path / "run"), "--total-draws=10", "--examples=40"])
    main(["report", str(tmp_path / "run")])
    main(["sample", str(tmp_path / "run"), "--n=3"])
    assert runs.evaluation_of(tmp_path / "run").identity.examples == 40
    fit(nameable(), digits, epochs=3, optimizer=ADAM, run=tmp_path / "run", label="mine")
    assert open_run(tmp_path / "run").epoch == 3


class Tanh(GatedEncoder):
    """The same tensors, another function of them."""

    def forward(self, x):
        mean, log_var = super().forward(x)
        return mean.tanh(), log_var


@pytest.mark.parametrize("kind", ["named", "lambda"])
def test_another_model_of_the_same_tensors_is_another_model(digits, tmp_path, kind):
    """It was taken for the old one: its rows were returned, or the weights of one trained on as the other's."""

    def model(encoder):
        make = partial(encoder, (1, 8, 8), 3, (12,))
        posterior = SeparateEncoders(make if kind == "named" else lambda: make(), components=2)
        return MixtureVAE(posterior, StandardNormal(3), MLPDecoder(3, (1, 8, 8), (12,)))

    fit(model(GatedEncoder), digits, epochs=1, run=tmp_path / "run")
    with pytest.raises(ValueError, match="made from something else: model"):
        fit(model(Tanh), digits, epochs=2, run=tmp_path / "run")
    assert len(fit(model(GatedEncoder), digits, epochs=2, run=tmp_path / "run")) == 2


def closed_over(power):
    def bound(log_w, weight):
        return elbo(log_w, weight) * power[0]

    return bound


class Scaled:
    def __init__(self, power):
        self.power = power

    def __call__(self, log_w, weight):
        return elbo(log_w, weight) * self.power


def grouped(rate):
    def make(parameters):
        first, *rest = parameters
        return torch.optim.SGD([{"params": [first], "lr": rate}, {"params": rest}], lr=1e-3)

    return make


@pytest.mark.parametrize(
    ("name", "one", "other"),
    [
        ("bound", closed_over([1.0]), closed_over([2.0])),
        ("bound", Scaled(1.0), Scaled(2.0)),
        ("bound", partial(elbo), partial(pooled)),
        ("bound", lambda log_w, weight, *, by=1.0: elbo(log_w, weight) * by,
         lambda log_w, weight, *, by=2.0: elbo(log_w, weight) * by),
        ("gradient", partial(sticking_the_landing), partial(reparameterised)),
        ("schedule", lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda e: 0.9**e),
         lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda e: 0.1**e)),
        ("optimizer", grouped(1e-3), grouped(1e-4)),
    ],
)  # fmt: skip
def test_settings_that_are_functions_are_known_by_what_they_do(digits, tmp_path, name, one, other):
    """Partials, objects and closures were all one: the rows of another bound were returned."""
    fit(small(), digits, epochs=1, run=tmp_path / "run", **{name: one})
    with pytest.raises(ValueError, match=f"training.{'learning_rate' if name == 'optimizer' else name}"):
        fit(small(), digits, epochs=1, run=tmp_path / "run", **{name: other})
    fit(small(), digits, epochs=1, run=tmp_path / "run", **{name: one})


def test_a_kill_right_after_resuming_keeps_what_was_asked_for(digits, tmp_path):
    """The new goal and rate were committed 30 s later: until then a kill lost them."""

    class Dying(SignalAt):
        def __call__(self, log_w, weight):
            self.calls += 1
            if self.calls == 3:
                raise Killed
            return elbo(log_w, weight)

    fit(small(), digits, epochs=1, optimizer=ADAM, run=tmp_path / "run")
    slower = partial(ADAM, lr=1e-4)
    with pytest.raises(Killed):
        fit(small(), digits, epochs=5, optimizer=slower, run=tmp_path / "run", amend=True, bound=Dying(0))
    run = open_run(tmp_path / "run")
    assert (run.manifest["goal"]["epochs"], run.state) == (5, "stopped")
    assert run.recipe.journal[-1]["learning_rate"] == [1e-4]
    fit(small(), digits, epochs=1, optimizer=slower, run=tmp_path / "run", amend=True)
    assert open_run(tmp_path / "run").state == "done", "a goal that is reached already is kept, too"


def test_a_model_that_is_passed_must_be_the_runs_own(digits, tmp_path):
    """The likelihood of another model with the same tensors was stored as the run's own."""

    def model(likelihood):
        posterior = SeparateEncoders(lambda: GatedEncoder((1, 8, 8), 3, (12,)), components=2)
        return MixtureVAE(posterior, StandardNormal(3), MLPDecoder(3, (1, 8, 8), (12,), likelihood))

    fit(model(mixvae.Bernoulli), digits, epochs=1, run=tmp_path / "run")
    assert mixvae.load(tmp_path / "run", model(mixvae.Bernoulli))
    with pytest.raises(ValueError, match="differs in architecture"):
        mixvae.load(tmp_path / "run", model(mixvae.ContinuousBernoulli))
    fit(nameable(), digits, epochs=1, run=tmp_path / "named")
    with pytest.raises(ValueError, match="records its own model: leave out"):
        mixvae.load(tmp_path / "named", nameable())


def test_a_model_that_cannot_be_named_says_what_to_pass(digits, tmp_path, capsys):
    model = small(vamp)
    fit(model, digits, epochs=1, optimizer=ADAM, run=tmp_path / "run")
    with pytest.raises(ValueError, match=r"lambda.*functools.partial.*load\(path, model\)") as told:
        mixvae.load(tmp_path / "run")
    assert "\n" not in str(told.value)
    assert_same(weights(mixvae.load(tmp_path / "run", small(vamp, seed=5))), weights(model))
    run = open_run(tmp_path / "run", model=small(vamp, seed=5))
    assert runs.evaluate(run, 10, examples=30)["examples"] == 30
    with pytest.raises(ValueError, match="differs in architecture"):
        mixvae.load(tmp_path / "run", small(seed=5))
    for command in (["train", "--resume"], ["extend"]):
        with pytest.raises(SystemExit) as end:
            main([*command, str(tmp_path / "run")])
        assert end.value.code == 2
        assert "was built in Python" in capsys.readouterr().err


@pytest.mark.parametrize(
    "subset", [pytest.param([], marks=pytest.mark.slow), ["--training.active=1", "--training.scored=active"]]
)
def test_two_processes_train_the_same_model_as_one(tmp_path, subset):
    """Gradients are averaged over processes, and every process draws its part of the same noise."""
    runs = {}
    for devices in (1, 2):
        run = runs[devices] = Layout(tmp_path / f"{devices}")
        more = [
            f"--training.devices={devices}", "--training.accelerator=cpu", "--training.epochs=3",
            "--training.strategy=" + ("ddp" if devices == 2 else "auto"), "--data.limit=395", *subset,
        ]  # fmt: skip
        if devices == 1:
            main(command(run.path, *more)[3:])
        else:
            done = subprocess.run(command(run.path, *more), capture_output=True, text=True, env=one_thread())
            assert done.returncode == 0, done.stderr
    one, two = (load_weights(runs[n].weights) for n in (1, 2))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=2e-4, rtol=1e-3, msg=name)
    for row, other in zip(*(rows_of(runs[n]) for n in (1, 2)), strict=True):
        assert row["bound"] == pytest.approx(other["bound"], abs=1e-3)
        assert row["validation"] == pytest.approx(other["validation"], abs=1e-3)


@pytest.mark.parametrize("strategy", ["fsdp", "deepspeed", "ddp_spawn"])
def test_an_untested_strategy_is_refused(strategy):
    with pytest.raises(ValueError, match=f"{strategy}.*not tested with mixvae: use auto or ddp"):
        launch(strategy=strategy)


def test_the_best_epoch_on_validation_is_kept(digits):
    model = small()
    rows = fit(model, digits, epochs=30, optimizer=partial(torch.optim.SGD, lr=0.2), clip=1.0)
    best = max(rows, key=lambda row: row["validation"])
    assert rows[-1]["best_epoch"] == best["epoch"]
    again = fit(model, digits, epochs=1, optimizer=partial(torch.optim.SGD, lr=1e-30))
    assert again[0]["validation"] == pytest.approx(best["validation"], abs=1e-4)


def test_a_run_of_few_epochs_within_the_warm_up_is_saved(digits, tmp_path):
    """The published code saves nothing before epoch 100."""
    run = Layout(tmp_path / "run")
    fit(small(), digits, epochs=1, warmup=100, run=run.path, progress=Recorded())
    assert load_weights(run.weights)


def test_warm_up_is_linear_and_early_stopping_waits_for_its_end(digits):
    frozen = partial(torch.optim.SGD, lr=0.0)
    rows = fit(small(), digits, epochs=50, warmup=8, patience=3, optimizer=frozen)
    assert [row["beta"] for row in rows][:8] == [i / 8 for i in range(1, 9)]
    assert len(rows) == 11, "no improvement: 8 epochs of warm-up, then a patience of 3"
    assert len(fit(small(), digits, epochs=50, patience=3, optimizer=frozen)) == 4


def test_beta_scales_the_training_bound_but_never_validation(digits):
    frozen = partial(torch.optim.SGD, lr=0.0)
    options = {"epochs": 1, "optimizer": frozen, "progress": Recorded()}
    warm, cold = (fit(small(), digits, warmup=w, **options)[0] for w in (100, 0))
    assert warm["validation"] == cold["validation"]
    assert warm["bound"] != cold["bound"]


def test_validation_on_fixed_components_is_a_bound_of_their_own():
    """By quadrature on one latent: over a fixed subset, weights A/S · π_s do not sum to one, and all scorers mix in."""
    model = tiny_model(3, latent=1, weights=[8.0, 1.0, 3.0]).eval()
    x, subset = binary(1), torch.tensor([0, 2])
    grid = torch.linspace(-12, 12, 4001, dtype=torch.float64).reshape(-1, 1, 1, 1)
    with torch.no_grad():
        q = model.posterior(x)
        log_q = q.log_prob(grid)[:, subset, 0]  # (G, 2)
        pi = q.log_pi.exp()[subset] / q.log_pi.exp()[subset].sum()
        log_joint = (model.log_likelihood(x, grid) + model.prior().log_prob(grid)).flatten()
        log_mixture = (log_q + pi.log()).logsumexp(1)
        expected = torch.trapezoid(log_mixture.exp() * (log_joint - log_mixture), grid.flatten())
        log_px = torch.trapezoid(log_joint.exp(), grid.flatten()).log()
        copies = 20_000
        value = validation_bound(
            model, x.expand(copies, -1, -1, -1), subset, torch.randn(1, 2, copies, 1, dtype=torch.float64)
        )
    assert abs(value.mean() - expected) < 4.5 * value.std() / copies**0.5
    assert expected < log_px


@pytest.mark.parametrize("weights", [None, [8.0, 1.0, 3.0]])
def test_a_subset_far_from_the_rest_never_exceeds_log_px(weights):
    """Components that are the exact posterior, beside one far away: all scorers together gave log A/S too much."""
    likelihood = GaussianLikelihood((1,), minimum=0.0).double()
    nn.init.constant_(likelihood.raw_scale, math.log(math.expm1(1.0)))
    network = nn.Linear(1, 1, bias=False).double()
    nn.init.ones_(network.weight)  # x = z + ε: p(z|x) = N(x/2, 1/2), p(x) = N(0, 2)

    class Encoder(nn.Module):
        def __init__(self, shift):
            super().__init__()
            self.shift = nn.Parameter(torch.tensor(shift))

        def forward(self, x):
            return x / 2 + self.shift, torch.full_like(x, math.log(0.5))

    shifts = iter([0.0, 50.0, 0.0])
    posterior = SeparateEncoders(lambda: Encoder(next(shifts)), 3, weights)
    model = MixtureVAE(posterior, StandardNormal(1), Decoder(network, likelihood)).double()
    x = torch.tensor([[0.3], [-1.2]], dtype=torch.float64)
    exact = torch.distributions.Normal(0, 2**0.5).log_prob(x).squeeze(1)
    noise = torch.randn(1, 2, 2, 1, dtype=torch.float64)
    torch.testing.assert_close(validation_bound(model, x, torch.tensor([0, 2]), noise), exact)


def test_validation_of_all_components_is_the_plain_miselbo(digits):
    """And a trainer that validates all components, counted or by default, gives the same number."""
    frozen = partial(torch.optim.SGD, lr=0.0)
    one, other = (
        fit(small(), digits, epochs=1, optimizer=frozen, validation_components=n)[0]["validation"] for n in (None, 2)
    )
    assert one == other
    fewer = fit(small(), digits, epochs=1, optimizer=frozen, validation_components=1)[0]["validation"]
    assert fewer != one
    model, x, noise = tiny_model(3, weights=[3.0, 2.0, 1.0]), binary(4), torch.randn(2, 3, 4, 2, dtype=torch.float64)
    terms = model(x, 2, noise=noise)
    assert torch.equal(validation_bound(model, x, None, noise), miselbo(log_weights(terms), terms.weight))


def test_draws_in_proportion_to_the_weights_train_from_yaml(digits, tmp_path):
    (tmp_path / "c.yaml").write_text("training:\n  gradient: proportional\n")
    assert mixvae.config.read(tmp_path / "c.yaml").training.gradient == "proportional"
    rows = fit(small(), digits, epochs=15, optimizer=ADAM, bound=pooled, gradient=proportional)
    assert rows[-1]["validation"] > rows[0]["validation"] + 5
    with pytest.raises(ValueError, match="got a subset of components"):
        fit(small(), digits, epochs=1, gradient=proportional, active=1)


def test_training_learns_and_any_bound_can_be_trained(digits):
    for bound in (elbo, pooled):
        rows = fit(small(), digits, epochs=15, optimizer=ADAM, bound=bound)
        assert rows[-1]["validation"] > rows[0]["validation"] + 5


def test_averaged_weights_are_the_ones_validated_and_kept(digits):
    slow = small()
    start = weights(slow)
    fit(slow, digits, epochs=1, optimizer=ADAM, ema=1 - 1e-9)
    for name, value in weights(slow).items():  # the average starts at the first step's weights
        assert (value - start[name]).abs().max() <= 0.01


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_other_precisions_train(digits, precision):
    fabric = launch("cpu", precision=precision)
    rows = fit(small(vamp), digits, epochs=8, optimizer=ADAM, fabric=fabric)
    assert rows[-1]["validation"] > rows[0]["validation"]
    single = fit(small(vamp), digits, epochs=8, optimizer=ADAM)
    assert rows[-1]["validation"] == pytest.approx(single[-1]["validation"], abs=0.5)


def test_divergence_is_reported_and_keeps_last_good_checkpoint(digits, tmp_path):
    run = Layout(tmp_path / "run")

    class Poisoned(SignalAt):  # the trial before the first step is two calls more
        def __call__(self, log_w, weight):
            self.calls += 1
            return elbo(log_w, weight) * (float("nan") if self.calls > 9 else 1)

    with pytest.raises(FloatingPointError, match=r"NaN or infinite at epoch 3, step 2 \(β = 0.60\).*last good") as told:
        fit(small(), digits, epochs=9, warmup=5, run=run.path, bound=Poisoned(0), save_every=0.0)
    assert "\n" not in str(told.value)
    assert all(t.isfinite().all() for t in saved_state(run.state)["model"].values())
    assert all(t.isfinite().all() for t in load_weights(run.weights).values())
    assert fit(small(), digits, epochs=9, warmup=5, run=run.path)[-1]["epoch"] == 9


def test_weights_that_became_infinite_are_never_saved(digits, tmp_path):
    run = Layout(tmp_path / "run")
    with pytest.raises(FloatingPointError):
        fit(small(), digits, epochs=9, run=run.path, optimizer=partial(torch.optim.SGD, lr=1e30), save_every=0.0)
    if run.state.exists():
        assert all(t.isfinite().all() for t in saved_state(run.state)["model"].values())


def test_a_full_disk_stops_plainly_and_keeps_the_old_checkpoint(digits, tmp_path, monkeypatch):
    run = Layout(tmp_path / "run")
    fit(small(), digits, epochs=2, run=run.path)
    before = run.state.read_bytes()

    def full(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="cannot write .*: No space left on device"):
        fit(small(), digits, epochs=4, run=run.path, save_every=0.0)
    assert run.state.read_bytes() == before
    assert not list(run.path.rglob(".*.pt"))


def test_checkpoint_of_another_model_names_the_first_difference(digits, tmp_path):
    run = Layout(tmp_path / "run")
    fit(small(), digits, epochs=1, run=run.path)
    told = r"made from something else: model.tensors.prior.raw_inputs is None, not \(4, 1, 8, 8\)"
    with pytest.raises(ValueError, match=told):
        fit(small(vamp), digits, epochs=2, run=run.path)


@pytest.mark.parametrize("keep", [0, 100, -50])
def test_a_damaged_checkpoint_is_told_in_one_line(digits, tmp_path, keep):
    run = Layout(tmp_path / "run")
    fit(small(), digits, epochs=1, run=run.path)
    run.state.write_bytes(run.state.read_bytes()[:keep])
    with pytest.raises(ValueError, match="state.pt is truncated, damaged or replaced: it is not what") as told:
        fit(small(), digits, epochs=2, run=run.path)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    "bad", [{"epochs": 0}, {"batch": 0}, {"draws_per_component": 0}, {"warmup": -1}, {"ema": 1.0}, {"clip": 0.0}]
)
def test_numbers_out_of_range_are_refused(digits, bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        fit(small(), digits, **bad)


def test_a_finished_run_is_left_alone(digits, tmp_path):
    run = Layout(tmp_path / "run")
    fit(small(), digits, epochs=2, run=run.path)
    before = run.state.read_bytes(), run.metrics.read_bytes()
    fit(small(), digits, epochs=2, run=run.path)
    assert (run.state.read_bytes(), run.metrics.read_bytes()) == before


def test_threads_of_the_checkpoint_are_restored(digits, tmp_path):
    run, threads = Layout(tmp_path / "run"), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        fit(small(), digits, epochs=1, run=run.path)
        torch.set_num_threads(2)
        fit(small(), digits, epochs=2, run=run.path)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(threads)


def test_tensorboard_gets_the_numbers_of_the_metrics(digits, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = Layout(tmp_path / "run")
    rows = fit(small(), digits, epochs=3, run=run.path)
    events = EventAccumulator(str(run.path / "tensorboard")).Reload()
    assert [(e.step, pytest.approx(e.value, rel=1e-6)) for e in events.Scalars("validation")] == [
        (row["epoch"], row["validation"]) for row in rows
    ]


def test_nothing_is_written_without_a_directory(digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fit(small(), digits, epochs=1)
    assert not list(Path(tmp_path).iterdir())


def test_tiny_models_of_any_shape_train():
    data = datasets.load_dataset("digits", limit=20)
    model = tiny_model(shape=(1, 8, 8), dtype=torch.float32)
    assert len(fit(model, data, epochs=1, batch=7)) == 1


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("bf16-mixed", torch.float32), ("32-true", torch.float32), ("64-true", torch.float64)],
)
def test_mixed_precision_does_not_round_observations_or_noise(digits, precision, dtype):
    """Fabric rounds what a wrapped module is called with: a grey value would fall into another bin."""
    seen = set()

    class Watched(MixtureVAE):
        def forward(self, x, *args, **options):
            seen.update((x.dtype, options["noise"].dtype) if self.training else ())
            return super().forward(x, *args, **options)

    model = Watched(
        SeparateEncoders(lambda: GatedEncoder((1, 8, 8), 2, (5,)), 2), StandardNormal(2), MLPDecoder(2, (1, 8, 8), (5,))
    )
    fit(model, digits, epochs=1, fabric=launch("cpu", precision=precision))
    assert seen == {dtype}


def test_options_are_one_object_some_of_which_keywords_change(digits):
    options = mixvae.TrainingOptions(epochs=5, batch=50, warmup=2)
    rows = fit(small(), digits, options, epochs=2)
    assert [row["beta"] for row in rows] == [0.5, 1.0]
    alike = fit(small(), digits, epochs=2, batch=50, warmup=2)
    assert [row["bound"] for row in rows] == [row["bound"] for row in alike]
    with pytest.raises(TypeError, match="fit has no option 'epoch': did you mean epochs"):
        fit(small(), digits, epoch=3)
    for wrong in ({"batch": 0}, {"ema": 1.0}, {"clip": -1.0}, {"save_every": float("nan")}):
        with pytest.raises(ValueError, match=rf"{next(iter(wrong))} must"):
            mixvae.TrainingOptions(**wrong)
