"""Training resumes bit for bit, keeps the best epoch, and stops plainly when it diverges."""

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

from conftest import tiny_model
from mixvae import datasets
from mixvae.bounds import elbo, iwelbo, pooled
from mixvae.decoders import MLP
from mixvae.files import RunDirectory, load_state, load_weights, save_weights
from mixvae.gradients import doubly_reparameterised, sticking_the_landing
from mixvae.model import MixtureVAE
from mixvae.networks import GatedEncoder
from mixvae.posteriors import SeparateEncoders
from mixvae.priors import StandardNormal, VampPrior
from mixvae.training import fit, launch

ADAM = partial(torch.optim.Adam, lr=3e-3, fused=True)


@pytest.fixture(scope="module")
def digits():
    return datasets.load("digits", limit=250)


def small(prior=None, seed=0, dropout=0.0):
    torch.manual_seed(seed)
    posterior = SeparateEncoders(
        lambda: nn.Sequential(nn.Dropout(dropout), GatedEncoder((1, 8, 8), 3, (12,))), components=2
    )
    return MixtureVAE(posterior, prior(posterior) if prior else StandardNormal(3), MLP(3, (1, 8, 8), (12,)))


def vamp(posterior):
    return VampPrior(posterior, (1, 8, 8), 4)


def weights(model):
    return {name: t.clone() for name, t in model.state_dict().items()}


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


class SignalAt:
    """A bound that sends a signal to its own process at one of its calls."""

    def __init__(self, call, number=signal.SIGINT):
        self.call, self.number, self.calls = call, number, 0

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
        "draws": 2,
    },
    "one component at a time, scored under all": {"active": 1, "validation_components": 1},
    "one component at a time, alone": {"active": 1, "score_all": False},
    "plateau": {"schedule": partial(torch.optim.lr_scheduler.ReduceLROnPlateau, patience=0)},
}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("call", [2, 6, 9])
def test_ctrl_c_at_any_step_and_resuming_gives_the_same_weights(digits, tmp_path, options, call):
    """5 epochs of 3 steps; the interrupted run has dropout, a VampPrior and every kind of state to restore."""
    settings = {"epochs": 5, "seed": 3, "optimizer": ADAM} | OPTIONS[options]
    whole, broken = (RunDirectory(tmp_path / name) for name in ("whole", "broken"))
    expected = small(vamp, dropout=0.3)
    rows = fit(expected, digits, directory=whole, save_every=1e9, **settings)
    with pytest.raises(KeyboardInterrupt):
        fit(small(vamp, dropout=0.3), digits, directory=broken, save_every=1e9, bound=SignalAt(call), **settings)
    found = small(vamp, seed=99)  # its weights come from the checkpoint
    found.posterior.encoders[0][0].p = found.posterior.encoders[1][0].p = 0.3
    again = fit(found, digits, directory=broken, save_every=1e9, **settings)
    assert_same(weights(found), weights(expected))
    assert_same(load_weights(broken.weights), load_weights(whole.weights))
    one, other = load_state(broken.state), load_state(whole.state)
    assert_same(one["model"], other["model"])
    assert torch.equal(one["noise"], other["noise"])
    assert torch.equal(one["rng"], other["rng"])
    assert [r["epoch"] for r in again] == [1, 2, 3, 4, 5]
    for row, wanted in zip(again, rows, strict=True):
        assert {k: v for k, v in row.items() if k != "seconds"} == {k: v for k, v in wanted.items() if k != "seconds"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_closed_terminal_stops_as_a_scheduler_does(digits, tmp_path, number):
    """Catches a training that a lost connection kills before it has saved."""
    whole, run = small(), RunDirectory(tmp_path / "run")
    fit(whole, digits, epochs=3, optimizer=ADAM)
    with pytest.raises(SystemExit) as end:
        fit(small(), digits, epochs=3, optimizer=ADAM, directory=run, save_every=1e9, bound=SignalAt(5, number))
    assert end.value.code == 128 + number
    resumed = small(seed=9)
    fit(resumed, digits, epochs=3, optimizer=ADAM, directory=run)
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
def test_what_cannot_be_trained_is_refused_before_anything_is_written(digits, tmp_path, options, told):
    with pytest.raises(ValueError, match=told):
        fit(small(), digits, directory=RunDirectory(tmp_path / "run"), **options)
    assert not (tmp_path / "run").exists()


def command(run, *more):
    return [
        sys.executable, "-m", "mixvae", "train", "digits", "--out", str(run), "--data.limit=400",
        "--training.epochs=40", "--training.batch=20", "--model.components=2", "--training.save_every=0", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    run = RunDirectory(tmp_path_factory.mktemp("runs") / "whole")
    subprocess.run(command(run.path), check=True, capture_output=True, env=one_thread())
    return run


def one_thread():
    return os.environ | {"OMP_NUM_THREADS": "1"}


def wait_for(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the training did not get there in time"
        time.sleep(0.002)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_process_resumes_to_the_same_weights(uninterrupted, tmp_path, number):
    run = RunDirectory(tmp_path / "killed")
    process = subprocess.Popen(command(run.path), stderr=subprocess.PIPE, env=one_thread())
    wait_for(lambda: len(run.read_metrics()) >= 5)
    time.sleep(random.Random(time.time_ns()).random() * 0.3)  # any instant
    process.send_signal(number)
    _, said = process.communicate()
    assert b"Traceback" not in said
    assert process.returncode == (-9 if number == signal.SIGKILL else 143)
    assert 5 <= len(run.read_metrics()) < 40, "killed too late to test anything"
    resume = [sys.executable, "-m", "mixvae", "train", "--resume", str(run.path)]
    subprocess.run(resume, check=True, capture_output=True, env=one_thread())
    assert_same(load_weights(run.weights), load_weights(uninterrupted.weights))
    assert_same(load_state(run.state)["model"], load_state(uninterrupted.state)["model"])
    assert [row["epoch"] for row in run.read_metrics()] == list(range(1, 41))
    assert not [p for p in run.path.rglob(".*") if p.is_file()], "temporary files are left"


def test_a_run_killed_between_its_two_files_repairs_the_older_one(digits, tmp_path):
    run = RunDirectory(tmp_path / "run")
    fit(small(), digits, epochs=2, directory=run)
    best = load_weights(run.weights)
    fit(small(), digits, epochs=4, directory=run)
    later = load_weights(run.weights)
    save_weights(run.weights, best)  # as if the kill had come just before the last write
    fit(small(), digits, epochs=4, directory=run)
    assert_same(load_weights(run.weights), later)


def test_a_run_killed_before_its_first_checkpoint_starts_again(digits, tmp_path):
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    run.append_metrics({"epoch": 1})
    with open(run.metrics, "a") as file:
        file.write('{"epoch": 2, "bou')
    rows = fit(small(), digits, epochs=2, directory=run)
    assert [row["epoch"] for row in rows] == [1, 2]
    assert [row["epoch"] for row in run.read_metrics()] == [1, 2]


@pytest.mark.parametrize("subset", [[], ["--training.active=1", "--training.scored=active"]])
def test_two_processes_train_the_same_model_as_one(tmp_path, subset):
    """Gradients are averaged over processes, and every process draws its part of the same noise."""
    runs = {}
    for devices in (1, 2):
        run = runs[devices] = RunDirectory(tmp_path / f"{devices}")
        more = [
            f"--training.devices={devices}", "--training.accelerator=cpu", "--training.epochs=3",
            "--training.strategy=" + ("ddp" if devices == 2 else "auto"), "--data.limit=395", *subset,
        ]  # fmt: skip
        done = subprocess.run(command(run.path, *more), capture_output=True, text=True, env=one_thread())
        assert done.returncode == 0, done.stderr
    one, two = (load_weights(runs[n].weights) for n in (1, 2))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=2e-4, rtol=1e-3, msg=name)
    for row, other in zip(*(runs[n].read_metrics() for n in (1, 2)), strict=True):
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
    run = RunDirectory(tmp_path / "run")
    fit(small(), digits, epochs=1, warmup=100, directory=run)
    assert load_weights(run.weights)


def test_warm_up_is_linear_and_early_stopping_waits_for_its_end(digits):
    frozen = partial(torch.optim.SGD, lr=0.0)
    rows = fit(small(), digits, epochs=50, warmup=8, patience=3, optimizer=frozen)
    assert [row["beta"] for row in rows][:8] == [i / 8 for i in range(1, 9)]
    assert len(rows) == 11, "no improvement: 8 epochs of warm-up, then a patience of 3"
    assert len(fit(small(), digits, epochs=50, patience=3, optimizer=frozen)) == 4


def test_beta_scales_the_training_bound_but_never_validation(digits):
    frozen = partial(torch.optim.SGD, lr=0.0)
    warm, cold = (fit(small(), digits, epochs=1, warmup=w, optimizer=frozen)[0] for w in (100, 0))
    assert warm["validation"] == cold["validation"]
    assert warm["bound"] != cold["bound"]


def test_training_learns_and_any_bound_can_be_trained(digits):
    for bound in (elbo, pooled):
        rows = fit(small(), digits, epochs=15, optimizer=ADAM, bound=bound)
        assert rows[-1]["validation"] > rows[0]["validation"] + 5


def test_an_average_of_the_weights_is_what_is_validated_and_kept(digits):
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


def test_divergence_stops_with_a_clear_message_and_keeps_the_last_good_checkpoint(digits, tmp_path):
    run = RunDirectory(tmp_path / "run")

    class Poisoned(SignalAt):  # a trial before the first step is one call more
        def __call__(self, log_w, weight):
            self.calls += 1
            return elbo(log_w, weight) * (float("nan") if self.calls > 8 else 1)

    with pytest.raises(FloatingPointError, match=r"NaN or infinite at epoch 3, step 2 \(β = 0.60\).*last good") as told:
        fit(small(), digits, epochs=9, warmup=5, directory=run, bound=Poisoned(0), save_every=0.0)
    assert "\n" not in str(told.value)
    assert all(t.isfinite().all() for t in load_state(run.state)["model"].values())
    assert all(t.isfinite().all() for t in load_weights(run.weights).values())
    assert fit(small(), digits, epochs=9, warmup=5, directory=run)[-1]["epoch"] == 9


def test_weights_that_became_infinite_are_never_saved(digits, tmp_path):
    run = RunDirectory(tmp_path / "run")
    with pytest.raises(FloatingPointError):
        fit(small(), digits, epochs=9, directory=run, optimizer=partial(torch.optim.SGD, lr=1e30), save_every=0.0)
    if run.state.exists():
        assert all(t.isfinite().all() for t in load_state(run.state)["model"].values())


def test_a_full_disk_stops_plainly_and_keeps_the_old_checkpoint(digits, tmp_path, monkeypatch):
    run = RunDirectory(tmp_path / "run")
    fit(small(), digits, epochs=2, directory=run)
    before = run.state.read_bytes()

    def full(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="cannot write .*: No space left on device"):
        fit(small(), digits, epochs=4, directory=run, save_every=0.0)
    assert run.state.read_bytes() == before
    assert not list(run.path.rglob(".*.pt"))


def test_a_checkpoint_of_another_architecture_names_the_first_difference(digits, tmp_path):
    run = RunDirectory(tmp_path / "run")
    fit(small(), digits, epochs=1, directory=run)
    with pytest.raises(ValueError, match=r"another architecture: the model's prior.unsquashed is \(4, 1, 8, 8\)"):
        fit(small(vamp), digits, epochs=2, directory=run)


@pytest.mark.parametrize("keep", [0, 100, -50])
def test_a_damaged_checkpoint_is_told_in_one_line(digits, tmp_path, keep):
    run = RunDirectory(tmp_path / "run")
    fit(small(), digits, epochs=1, directory=run)
    run.state.write_bytes(run.state.read_bytes()[:keep])
    with pytest.raises(ValueError, match="state.pt is truncated or damaged") as told:
        fit(small(), digits, epochs=2, directory=run)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    "bad", [{"epochs": 0}, {"batch": 0}, {"draws": 0}, {"warmup": -1}, {"ema": 1.0}, {"clip": 0.0}]
)
def test_numbers_out_of_range_are_refused(digits, bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        fit(small(), digits, **bad)


def test_a_finished_run_is_left_alone(digits, tmp_path):
    run = RunDirectory(tmp_path / "run")
    fit(small(), digits, epochs=2, directory=run)
    before = run.state.read_bytes(), run.metrics.read_bytes()
    fit(small(), digits, epochs=2, directory=run)
    assert (run.state.read_bytes(), run.metrics.read_bytes()) == before


def test_threads_of_the_checkpoint_are_restored(digits, tmp_path):
    run, threads = RunDirectory(tmp_path / "run"), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        fit(small(), digits, epochs=1, directory=run)
        torch.set_num_threads(2)
        fit(small(), digits, epochs=2, directory=run)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(threads)


def test_tensorboard_gets_the_numbers_of_the_metrics(digits, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = RunDirectory(tmp_path / "run")
    rows = fit(small(), digits, epochs=3, directory=run)
    events = EventAccumulator(str(run.path / "tensorboard")).Reload()
    assert [(e.step, pytest.approx(e.value, rel=1e-6)) for e in events.Scalars("validation")] == [
        (row["epoch"], row["validation"]) for row in rows
    ]


def test_nothing_is_written_without_a_directory(digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fit(small(), digits, epochs=1)
    assert not list(Path(tmp_path).iterdir())


def test_tiny_models_of_any_shape_train():
    data = datasets.load("digits", limit=20)
    model = tiny_model(shape=(1, 8, 8), dtype=torch.float32)
    assert len(fit(model, data, epochs=1, batch=7)) == 1
