"""What a training loop is open to: callbacks, loggers, metrics, β, free bits, schedules per step, parts of batches."""

import itertools
import math
import runpy
import subprocess
import sys
import types
import warnings
from functools import partial
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
import torch
from lightning_fabric.loggers import CSVLogger
from torch import nn
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    ConstantLR,
    CyclicLR,
    LRScheduler,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
)

import mixvae
from conftest import Recorded, binary, forge, refused, tiny_model
from mixvae import TrainingOptions, config, datasets, runs
from mixvae.bounds import elbo, log_weights, miselbo, pooled
from mixvae.cli import main
from mixvae.decoders import MLPDecoder
from mixvae.distributions import keyed_normal
from mixvae.files import load_weights
from mixvae.files._forms import conform
from mixvae.gradients import doubly_reparameterised, proportional, reparameterised, sticking_the_landing
from mixvae.model import MixtureVAE, unread
from mixvae.networks import GatedEncoder
from mixvae.posteriors import SeparateEncoders
from mixvae.priors import StandardNormal
from mixvae.progress import Terminal, muted
from mixvae.runs import fit, open_run
from mixvae.training import Callback, History, State, StopTraining, launch
from mixvae.training._free_bits import Freed, free_bits
from mixvae.training._objective import Inputs, Objective
from mixvae.training._schedules import check_schedules

ADAM = partial(torch.optim.Adam, lr=3e-3, fused=True)


@pytest.fixture(scope="module")
def digits():
    return datasets.load_dataset("digits", limit=250, limit_validation=60)


def small(dropout=0.0, components=2, seed=0, **posterior):
    torch.manual_seed(seed)
    q = SeparateEncoders(
        lambda: nn.Sequential(nn.Dropout(dropout), GatedEncoder((1, 8, 8), 3, (12,))), components, **posterior
    )
    return MixtureVAE(q, StandardNormal(3), MLPDecoder(3, (1, 8, 8), (12,)))


def weights(model):
    return {name: t.clone() for name, t in model.state_dict().items()}


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def timeless(rows):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


class Log(Callback):
    """Keeps what it is told; acts at a step or an epoch, given as (epoch, step) and as a number."""

    def __init__(self, at=None, act=None):
        self.steps, self.rows, self.at, self.act = [], [], at, act

    def on_step(self, step):
        self.steps.append(step)
        if self.at == (step.epoch, step.step):
            self.act()

    def on_epoch(self, row):
        self.rows.append(row)
        if self.at == row["epoch"]:
            self.act()


def stop():
    raise StopTraining


def crash():
    raise ZeroDivisionError("the callback's own")


def test_a_callback_hears_every_step_and_epoch(digits):
    log, rows = Log(), []
    quiet = Recorded()
    history = fit(
        small(), digits, epochs=2, warmup=4, beta=0.5, callbacks=[log, rows.append], optimizer=ADAM, progress=quiet
    )
    assert log.rows == rows == list(history)
    assert [(one.epoch, one.step, one.steps) for one in log.steps] == [(e, s, 3) for e in (1, 2) for s in (1, 2, 3)]
    for row in history:
        own = [one for one in log.steps if one.epoch == row["epoch"]]
        sizes = torch.tensor([100.0, 100.0, 50.0])
        assert row["bound"] == pytest.approx(float(torch.stack([one.bound for one in own]) @ sizes) / 250, rel=1e-6)
        assert row["gradient_norm"] == pytest.approx(sum(float(one.gradient_norm) for one in own) / 3, rel=1e-6)
        assert {float(one.beta) for one in own} == {row["beta"]} == {0.125 * row["epoch"]}
        assert [float(one.learning_rate) for one in own] == pytest.approx([3e-3] * 3)
        assert all(t.shape == () for one in own for t in (one.bound, one.beta, one.learning_rate, one.gradient_norm))


def test_a_callback_that_draws_leaves_the_training_alone(digits):
    fit(plain := small(0.3), digits, epochs=2)
    fit(watched := small(0.3), digits, epochs=2, callbacks=[Log(), lambda row: torch.rand(7), lambda row: row.clear()])
    assert_same(weights(watched), weights(plain))


@pytest.mark.parametrize("at", [2, (2, 2), (1, 1)])
def test_a_callback_stops_as_patience_does_and_may_resume(digits, tmp_path, at):
    """Saved where it stopped, with the best weights so far; the same call continues bit for bit."""
    run, whole = tmp_path / "run", small(0.3)
    rows = fit(whole, digits, epochs=4, optimizer=ADAM)
    broken = small(0.3)
    settings = {"epochs": 4, "optimizer": ADAM, "run": run, "save_every": 1e9}
    some = fit(broken, digits, callbacks=[Log(at, stop)], **settings)
    done = at if isinstance(at, int) else at[0] - 1
    assert timeless(some) == timeless(rows)[:done]
    state = open_run(run)
    assert (state.epoch, state.manifest["progress"]["step"]) == (done, 0 if isinstance(at, int) else at[1])
    assert not state.is_done
    if done:
        assert_same(weights(broken), load_weights(state.layout.weights))
    later = Log()
    again = small(0.3, seed=9)
    assert timeless(fit(again, digits, callbacks=[later], **settings)) == timeless(rows)
    assert [row["epoch"] for row in later.rows] == list(range(done + 1, 5)), "what is done is not told again"
    assert_same(weights(again), weights(whole))


@pytest.mark.parametrize("at", [2, (2, 2)])
def test_an_error_in_a_callback_comes_after_a_checkpoint(digits, tmp_path, at):
    whole, again, run = small(), small(seed=9), tmp_path / "run"
    fit(whole, digits, epochs=3)
    with pytest.raises(ZeroDivisionError, match="the callback's own"):
        fit(small(), digits, epochs=3, run=run, save_every=1e9, callbacks=[Log(at, crash)])
    progress = open_run(run).manifest["progress"]
    assert (progress["epoch"], progress["step"]) == ((2, 0) if at == 2 else (1, 2))
    fit(again, digits, epochs=3, run=run)
    assert_same(weights(again), weights(whole))


def changed(callback, name, value):
    setattr(callback, name, value)
    return callback


@pytest.mark.usefixtures("as_users_run")
@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ([Log], "got the class Log"),
        ([3], "got 3"),
        (print, r"callbacks must be a list, such as \[print\]; got the function print"),
        (Log(), "callbacks must be a list, .* got an object of class Log"),
        ("log", "callbacks must be a list, .* got 'log'"),
        (None, "callbacks must be a list, .* got None"),
        ([lambda: None], "a callback must be a function of an epoch's row; got the function <lambda>"),
        ([lambda row, epoch: None], "a callback must be a function of an epoch's row"),
        ([changed(Log(), "on_step", 5)], "on_step of Log must be a function of a Step; got 5"),
        ([changed(Log(), "on_epoch", lambda: None)], "on_epoch of Log must be a function of an epoch's row"),
    ],
)
def test_what_is_no_callback_is_refused_in_one_line(digits, tmp_path, wrong, told):
    """Some ended in mid-training, others raw."""
    with pytest.raises(ValueError, match=told) as error:
        fit(small(), digits, epochs=1, callbacks=wrong, run=tmp_path / "run")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("as_users_run")
def test_a_callback_may_be_made_of_functions_it_was_given(digits):
    """Catches a callback whose on_step is looked for in its class only."""
    steps, late, rows = [], [], []

    class Plain(Callback):
        pass

    given = changed(Plain(), "on_step", steps.append)
    other = types.SimpleNamespace(on_step=steps.append, on_epoch=rows.append)
    watch = Plain()
    watch.on_epoch = lambda row: changed(watch, "on_step", late.append)
    fit(small(), digits, epochs=2, callbacks=[given, other, watch])
    assert len(steps) == 2 * 6
    assert [row["epoch"] for row in rows] == [1, 2]
    assert [step.epoch for step in late] == [2] * 3, "it asked for them after the first epoch"


@pytest.mark.usefixtures("as_users_run")
@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ("csv", r"loggers must be a list, such as \[lightning_fabric.loggers.CSVLogger.*got 'csv'"),
        (CSVLogger("logs"), "loggers must be a list, .*got an object of class CSVLogger"),
        (["csv"], "a logger has log_hyperparams.*got 'csv'"),
        ([CSVLogger], "a logger has log_hyperparams.*got the class CSVLogger"),
    ],
)
def test_what_is_no_logger_is_refused_in_one_line(digits, wrong, told):
    with pytest.raises(ValueError, match=told) as error:
        fit(small(), digits, loggers=wrong)
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("as_users_run")
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"seed": 1.5}, "seed must be a whole number; got 1.5"),
        ({"seed": True}, "seed must be a whole number; got True"),
        ({"options": {"epochs": 3}}, "options must be an object of class TrainingOptions or None; got {'epochs': 3}"),
        ({"fabric": "cpu"}, "fabric must be an object of class Fabric or None; got 'cpu'"),
        ({"amend": 1}, "amend must be True or False; got 1"),
        ({"label": 3}, "label must be a string; got 3"),
        ({"progress": "bar"}, "progress must have announce and update, .*got 'bar'"),
        ({"progress": Terminal}, "progress must have announce and update, .*got the class Terminal"),
    ],
)
def test_other_arguments_of_fit_are_checked_too(digits, tmp_path, arguments, told):
    with pytest.raises(ValueError, match=told):
        fit(small(), digits, run=tmp_path / "run", **arguments)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("lr", r"it belongs to the optimizer: pass optimizer=functools.partial\(torch.optim.Adam, lr=…\)"),
        ("learning_rate", r"pass optimizer=functools.partial\(torch.optim.Adam, lr=…\)"),
        ("momentum", r"optimizer, of RMSprop or SGD: .*torch.optim.RMSprop, momentum=…\)"),
        ("step_size", r"schedule, of StepLR: pass schedule=functools.partial\(torch.optim.lr_scheduler.StepLR"),
        ("logger", r"did you mean loggers\?"),
        ("epoch", r"did you mean epochs\?"),
        ("hidden", "see TrainingOptions"),
    ],
)
def test_fit_says_where_an_unknown_option_goes(digits, name, told):
    with pytest.raises(TypeError, match=f"fit has no option '{name}': .*{told}") as error:
        fit(small(), digits, **{name: 0.01})
    assert "\n" not in str(error.value)


WRONG = {
    int: (1.5, "2", True, float("nan"), [1], torch.tensor(1.5)),
    float: ("0.5", True, [0.5], 1j),
    bool: (1, "yes", None),
    Any: ("elbo", {"class_path": "Adam"}, 3, [print]),
}
"""Values that are not of a kind; the last is that of functions and classes."""


@pytest.mark.usefixtures("as_users_run")
@pytest.mark.parametrize("name", TrainingOptions.__dataclass_fields__)
def test_every_option_refuses_other_kinds_in_one_line(name):
    """Catches half epochs that train, and texts that end in the middle of a library."""
    kind = str(TrainingOptions.__dataclass_fields__[name].type).partition(" |")[0]
    named = {"Compile": (1, "fast", None), "Every": (1, "batch", None)}
    values = named.get(kind) or WRONG.get({"int": int, "float": float, "bool": bool}.get(kind, Any))
    for value in values:
        with pytest.raises(ValueError, match=rf"^{name} must be .*; got ") as error:
            TrainingOptions(**{name: value})
        assert "\n" not in str(error.value)


@pytest.mark.usefixtures("as_users_run")
def test_numbers_of_numpy_are_options_that_a_run_can_keep(digits, tmp_path):
    options = TrainingOptions(epochs=np.int64(1), beta=np.float32(0.5), clip=np.float64(2))
    assert (type(options.epochs), type(options.beta), options.beta) == (int, float, 0.5)
    fit(small(), digits, options, run=tmp_path / "run")
    assert open_run(tmp_path / "run").is_done


def test_yaml_and_python_allow_the_same_of_each_option():
    """One definition: annotations and defaults agree, but for what a configuration gives by name."""
    yaml, python = get_type_hints(config.TrainingConfig), get_type_hints(TrainingOptions)
    shared = yaml.keys() & python.keys() - {"bound", "gradient", "optimizer", "schedule"}
    assert len(shared) == len(python) - 5, "score_all is scored in YAML"
    defaults = config.options(config.TrainingConfig())
    for name in shared:
        assert yaml[name] == python[name], name
        assert getattr(TrainingOptions(), name) == getattr(defaults, name), name


@pytest.mark.usefixtures("as_users_run")
@pytest.mark.parametrize(
    ("option", "given", "instead"),
    [
        ("bound", "pooled", "mixvae.bounds.pooled"),
        ("bound", "mixvae.bounds.Miselbo", "mixvae.bounds.miselbo"),
        ("gradient", "sticking_the_landing", "mixvae.gradients.sticking_the_landing"),
        ("optimizer", "adamw", "functools.partial(torch.optim.AdamW, lr=…)"),
        ("optimizer", {"class_path": "torch.optim.SGD", "lr": 0.1}, "functools.partial(torch.optim.SGD, lr=0.1)"),
        ("optimizer", {"lr": 0.1}, "functools.partial(torch.optim.Adam, lr=0.1)"),
        ("optimizer", {"class_path": "SGD", "init_args": {"lr": 0.1}}, "functools.partial(torch.optim.SGD, lr=0.1)"),
        ("optimizer", torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1), "partial(torch.optim.SGD, lr=…)"),
        ("schedule", "StepLR", "functools.partial(torch.optim.lr_scheduler.StepLR, step_size=…)"),
        ("schedule", "onecycle", "functools.partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=…)"),
        ("bound", None, "mixvae.bounds.elbo"),
    ],
)
def test_a_name_in_python_is_answered_by_its_object(option, given, instead):
    with pytest.raises(ValueError, match=f"{option} must be a function or a class") as error:
        TrainingOptions(**{option: given})
    assert str(error.value).endswith(f"{instead}")
    assert "\n" not in str(error.value)


class Sink:
    """A logger that keeps what it gets, or fails."""

    def __init__(self, fails=""):
        self.settings, self.metrics, self.status, self.fails = [], [], [], fails

    def log_hyperparams(self, params):
        self.settings.append(params)

    def log_metrics(self, metrics, step=None):
        if self.fails:
            raise ConnectionError(self.fails)
        self.metrics.append((step, metrics))

    def finalize(self, status):
        self.status.append(status)


def test_loggers_get_settings_once_and_all_metrics(digits, tmp_path):
    sink, csv = Sink(), CSVLogger(tmp_path, name="csv", version="1")
    rows = fit(small(), digits, epochs=3, loggers=[sink, csv], seed=4)
    (settings,) = sink.settings
    assert (settings["seed"], settings["training.epochs"], settings["training.bound"]) == (4, 3, "mixvae.bounds.elbo")
    assert sink.metrics == [(row["epoch"], {k: v for k, v in row.items() if k != "epoch"}) for row in rows]
    assert sink.status == ["success"]
    header, *lines = (tmp_path / "csv" / "1" / "metrics.csv").read_text().splitlines()
    at = header.split(",").index("validation")
    assert [float(line.split(",")[at]) for line in lines] == [row["validation"] for row in rows]


def test_a_logger_knows_how_its_training_ended(digits, tmp_path):
    stopped, failed, over = Sink(), Sink(), Sink()
    fit(small(), digits, epochs=3, loggers=[stopped], callbacks=[Log(1, stop)])
    with pytest.raises(ZeroDivisionError):
        fit(small(), digits, epochs=1, loggers=[failed], callbacks=[Log(1, crash)], run=tmp_path / "run")
    fit(small(), digits, epochs=1, loggers=[over], run=tmp_path / "run")
    assert (stopped.status, failed.status) == (["success"], ["failed"])
    assert (over.settings, over.metrics, over.status) == ([], [], []), "nothing was trained"


def test_a_logger_that_fails_is_told_once_and_dropped(digits):
    good, bad, seen = Sink(), Sink("no network"), Recorded()
    with pytest.warns(UserWarning, match="Sink failed and is no longer used"):
        assert len(fit(small(), digits, epochs=3, loggers=[bad, good], progress=seen)) == 3
    assert len(good.metrics) == 3
    (line,) = seen.lines
    assert "no network" in line


def test_each_run_of_one_fabric_logs_to_itself(digits, tmp_path):
    """Catches a logger of the first run that stays with the fabric, and gets the second run's metrics."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    fabric = launch("cpu")
    for name, epochs in (("one", 2), ("two", 3)):
        fit(small(), digits, epochs=epochs, run=tmp_path / name, fabric=fabric)
    for name, epochs in (("one", 2), ("two", 3)):
        events = EventAccumulator(str(tmp_path / name / "tensorboard")).Reload()
        assert [event.step for event in events.Scalars("kl")] == list(range(1, epochs + 1))


def test_loggers_from_yaml_are_trusted_by_place(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = Path("own.yaml")
    text = "training: {{epochs: 1, loggers: [{{class_path: {}, root_dir: logs}}]}}\ndata: {{name: digits, limit: 40}}\n"
    file.write_text(text.format("lightning_fabric.loggers.CSVLogger"))
    main(["train", str(file), "--out", "run"])
    assert (tmp_path / "logs/lightning_logs/version_0/metrics.csv").exists()
    for name, told in (
        ("os.system", "names os.system as training.loggers\\[0\\]"),
        ("lightning.pytorch.loggers.WandbLogger", "--trust lightning"),
        ("Logger", "names Logger"),
    ):
        file.write_text(text.format(name))
        with pytest.raises(ValueError, match=told):
            config.read(file)
    file.write_text(text.format("CSVLogger").replace("root_dir", "root_folder"))
    error = refused(capsys, "train", file, "--out", "other")
    assert "has no argument 'root_folder'" in error
    assert not Path("other").exists()


def test_quiet_leaves_only_results_and_errors(tmp_path, capfd):
    words = ["train", "digits", "--data.limit=40", "--training.epochs=1", "--out", str(tmp_path / "run")]
    main(["--quiet", *words])
    out, err = capfd.readouterr()
    assert err == ""
    assert "1 epoch in" in out
    main(["evaluate", str(tmp_path / "run"), "--total-draws=2", "--examples=3", "--quiet"])
    out, err = capfd.readouterr()
    assert err == ""
    assert "NLL" in out
    with pytest.raises(SystemExit):
        main(["train", "--quiet", *words[1:]])
    assert capfd.readouterr().err.startswith("mixvae: error: ")
    with muted():
        shown = Terminal()
    shown.update(1, 2)
    Terminal().announce("seen again")
    assert capfd.readouterr().err == "seen again\n"


@pytest.mark.parametrize("subset", [None, 2])
def test_metrics_are_those_of_an_explicit_loop(digits, subset):
    model = small(components=3, weights=[0.5, 0.3, 0.2]).double()
    rows = fit(model, digits, epochs=1, validation_components=subset, fabric=launch("cpu", precision="64-true"))
    order = torch.randperm(3, generator=torch.Generator().manual_seed(0))
    chosen = order[:subset].sort().values
    pi = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)[chosen]
    pi = pi / pi.sum()
    x = digits.validation.batch(slice(None)).double()
    noise = keyed_normal(0, torch.arange(len(x)).numpy(), 0, 1, (len(chosen), 3))
    sums, mean_share = dict.fromkeys(("reconstruction", "kl", "jsd"), 0.0), torch.zeros(len(chosen)).double()
    model.eval()
    with torch.no_grad():
        q = model.posterior(x, chosen)
        z = q.rsample((1,), noise.to(x))[0]
        for b in range(len(x)):
            log_q = torch.stack(
                [
                    torch.distributions.Normal(q.mean[j, b], q.stddev[j, b]).log_prob(z[:, b]).sum(-1)
                    for j in range(len(chosen))
                ]
            )
            log_mix = (log_q + pi.log()[:, None]).logsumexp(0)
            log_px = torch.stack([model.decoder(z[s, b]).log_prob(x[b]) for s in range(len(chosen))])
            log_pz = torch.distributions.Normal(0.0, 1.0).log_prob(z[:, b]).sum(-1)
            sums["reconstruction"] += float(pi @ log_px) / len(x)
            sums["kl"] += float(pi @ (log_mix - log_pz)) / len(x)
            sums["jsd"] += float(pi @ (log_q.diagonal() - log_mix)) / len(x)
            w = (pi.log() + log_px + log_pz - log_mix).softmax(0)
            mean_share += (w * (log_q + pi.log()[:, None] - log_mix).exp()).sum(1) / len(x)
    for name, value in sums.items():
        assert rows[0][name] == pytest.approx(value, rel=1e-9, abs=1e-9), name
    assert rows[0]["validation"] == pytest.approx(sums["reconstruction"] - sums["kl"], rel=1e-9)
    entropy = -float((mean_share * mean_share.log()).sum())
    assert rows[0]["used_components"] == pytest.approx(math.exp(entropy), rel=1e-7)


def test_the_gradient_norm_is_that_before_clipping(digits):
    """One step of the whole data without noise of binarising, by autograd."""
    data = datasets.load_dataset("digits", binarize="threshold", limit=50, limit_validation=20)
    for clip in (None, 1e-3):
        model = small().double()
        noise = torch.Generator().manual_seed(0)
        order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
        x = data.train.batch(order, noise).double()
        terms = model(x, noise=torch.randn(1, 2, 50, 3, generator=noise).double())
        gradients = torch.autograd.grad(elbo(log_weights(terms), terms.weight).mean(), list(model.parameters()))
        expected = math.sqrt(sum(float(g.square().sum()) for g in gradients))
        fabric = launch("cpu", precision="64-true")
        rows = fit(model, data, epochs=1, clip=clip, fabric=fabric)
        assert rows[0]["gradient_norm"] == pytest.approx(expected, rel=1e-6), "Fabric rounds the loss"


def test_history_of_an_older_run_shows_what_is_missing(digits, tmp_path):
    run = tmp_path / "run"
    rows = fit(small(), digits, epochs=1, run=run)
    new = [name for name in rows[0] if name in ("reconstruction", "kl", "jsd", "used_components", "gradient_norm")]
    assert len(new) == 5
    forge(run / "run.json", lambda content: [row.pop(name) for row in content["rows"] for name in new])
    old = open_run(run)
    assert "kl" not in repr(History(old.metrics))
    both = History([*old.metrics, {**rows[0], "epoch": 2}])
    assert repr(both).splitlines()[2].split()[-5:] == ["–"] * 5
    assert both.to_frame()["kl"].isna().tolist() == [True, False]
    conform({"epoch": 3, "step": 1, "total": -4.0, "best": -5.0, "best_epoch": 2, "seconds": 1.0}, State, "a state")


def test_an_older_configuration_gets_defaults_of_new_settings(tmp_path):
    """Catches a run that counts as damaged because its configuration lacks a setting that came later."""
    words = ["--data.limit=40", "--training.epochs=1"]
    runs.train(config.read("digits", words), tmp_path / "run")
    later = ("beta", "cycles", "free_bits", "schedule_every", "accumulate", "loggers")
    later += ("keep", "validation_bound", "validation_draws")
    forge(tmp_path / "run" / "run.json", lambda content: [content["config"]["training"].pop(name) for name in later])
    opened = open_run(tmp_path / "run")
    assert opened.config.training.beta == 1.0
    again = runs.train(config.read("digits", [*words[:1], "--training.epochs=2"]), tmp_path / "run", resume=True)
    assert again.epoch == 2


@pytest.mark.usefixtures("as_users_run")
def test_new_options_enter_a_recipe_only_when_they_are_used(digits):
    def identity(**options):
        options = TrainingOptions(**options)
        recipe = runs._recipe.recipe_of_model(small(), digits, options, seed=0, precision="32-true", label="")
        return recipe.identity["training"]

    cycle = partial(OneCycleLR, max_lr=1e-2, total_steps=30)
    before = {
        "bound", "gradient", "batch", "draws_per_component", "active", "score_all", "validation_components", "warmup",
        "ema", "freeze", "precision", "optimizer", "schedule",
    }  # fmt: skip
    assert identity().keys() == identity(beta=1, free_bits=0, accumulate=1).keys() == before
    used = identity(beta=2, warmup=4, cycles=2, free_bits=1, schedule=cycle, schedule_every="step")
    new = {"beta": 2.0, "cycles": 2, "free_bits": 1.0, "schedule_every": "step"}
    assert {name: value for name, value in used.items() if name not in before} == new
    assert identity(accumulate=2)["accumulate"] == 2
    chosen = {"validation_bound": "pooled", "validation_draws": 8, "keep": "last"}
    used = identity(**chosen)
    assert {name: value for name, value in used.items() if name not in before} == chosen


def test_beta_rises_in_cycles_to_its_final_value(digits):
    options = TrainingOptions(warmup=6, cycles=2, beta=0.3)
    assert [options.beta_at(e) for e in range(1, 9)] == pytest.approx([0.2, 0.3, 0.3, 0.2, 0.3, 0.3, 0.3, 0.3])
    rows = fit(small(), digits, epochs=2, beta=0.0)
    assert [row["beta"] for row in rows] == [0.0, 0.0]
    assert rows[0]["validation"] == pytest.approx(rows[0]["reconstruction"] - rows[0]["kl"], rel=1e-5)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"beta": -0.1}, "beta must be at least 0; got -0.1"),
        ({"beta": float("nan")}, "beta must be at least 0; got nan"),
        ({"beta": float("inf")}, "beta must be finite"),
        ({"free_bits": -1.0}, "free_bits must be at least 0"),
        ({"cycles": 2}, "cycles must divide the warm-up"),
        ({"cycles": 0, "warmup": 4}, "cycles must be at least 1"),
        ({"cycles": 3, "warmup": 7}, "got 3 for a warmup of 7"),
        ({"cycles": 4, "warmup": 4}, "at least 2"),
        ({"accumulate": 0}, "accumulate must be at least 1"),
        ({"schedule_every": "step"}, "there is no schedule"),
        ({"free_bits": 1.0, "accumulate": 2}, "leave one of the two out"),
    ],
)
def test_contradictory_options_are_refused_in_one_line(options, told):
    with pytest.raises(ValueError, match=told) as error:
        TrainingOptions(**options)
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("as_users_run")
def test_an_unknown_time_of_the_schedule_is_refused():
    with pytest.raises(ValueError, match="schedule_every must be epoch or step; got 'batch'"):
        TrainingOptions(schedule_every="batch")


@pytest.mark.parametrize("nats", [0.5, 50.0])
@pytest.mark.parametrize("beta", [1.0, 0.4])
def test_free_bits_give_the_gradient_of_the_larger_of_both(nats, beta):
    """max(λ, mean KL) by hand, in float64; the value stays that of the bound."""
    model, x = tiny_model(), binary(6)
    noise = torch.randn(2, 3, 6, 2, dtype=torch.float64)
    terms = model(x, 2, noise=noise)
    kl = (terms.weight @ (terms.log_mixture() - terms.log_pz).mean(0)).mean()
    assert 0.5 < kl.item() < 50
    reconstruction = (terms.weight @ terms.log_px.mean(0)).mean()
    expected = torch.autograd.grad(
        reconstruction - beta * kl.clamp(min=nats), list(model.parameters()), allow_unused=True
    )
    for estimator in (reparameterised, proportional):
        value = estimator(Freed(model, nats), x, elbo, 2, beta=beta, noise=noise).mean()
        assert value.item() == pytest.approx((reconstruction - beta * kl).item(), rel=1e-12)
        found = torch.autograd.grad(value, list(model.parameters()), allow_unused=True)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("bound", [miselbo, pooled])
def test_held_terms_leave_only_the_likelihoods_gradient(bound):
    model, x = tiny_model(), binary(6)
    noise = torch.randn(2, 3, 6, 2, dtype=torch.float64)
    terms = model(x, 2, noise=noise)
    rest = (terms.log_pz - terms.log_mixture()).detach()
    expected = torch.autograd.grad(bound(terms.log_px + rest, terms.weight).mean(), list(model.parameters()))
    value = reparameterised(Freed(model, 1e3), x, bound, 2, noise=noise).mean()
    for one, other in zip(torch.autograd.grad(value, list(model.parameters())), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
    assert torch.equal(free_bits(terms, 1e3).log_q, terms.log_q)


def test_free_bits_hold_under_sticking_the_landing_too():
    model, x = tiny_model(), binary(6)
    noise = torch.randn(2, 3, 6, 2, dtype=torch.float64)
    for nats in (1e-3, 1e3):
        found = []
        for seen in (Freed(model, nats), model):
            value = sticking_the_landing(seen, x, elbo, 2, noise=noise)
            found.append(torch.autograd.grad(value.mean(), list(model.parameters())))
        same = all(torch.allclose(one, other) for one, other in zip(*found, strict=True))
        assert same == (nats < 1)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"epochs": 5, "warmup": 100}, "β rises to 1 over 100 epochs, but the training has 5 and ends at 0.05: give a"),
        (
            {"epochs": 3, "warmup": 4, "beta": 0.5},
            "over 4 epochs, but the training has 3 and ends at 0.375",
        ),
        ({"epochs": 4, "warmup": 4}, None),
        ({"epochs": 1, "warmup": 0}, None),
        ({"epochs": 1, "warmup": 9, "beta": 0.0}, None),
        ({"epochs": 1, "warmup": 8, "cycles": 2}, "β rises to 1 over 2 epochs, but the training has 1 and ends at 0.5"),
        ({"epochs": 2, "warmup": 8, "cycles": 2}, None),
        ({"epochs": 9, "warmup": 6, "cycles": 2}, None),
        ({"epochs": 9, "warmup": 6, "cycles": 3}, "2 epochs each, in which β does not rise but is 1 throughout"),
        ({"epochs": 10**12, "warmup": 10**12}, None),
    ],
)
def test_a_beta_that_never_rises_to_its_value_is_told(options, told):
    """Against the schedule itself, epoch by epoch."""
    made, seen = TrainingOptions(**options), Recorded()
    check_schedules(None, made, 3, seen)
    (line,) = seen.lines or [""]
    assert (told or "") in line
    if made.epochs < 100:
        betas = [made.beta_at(epoch) for epoch in range(1, made.epochs + 1)]
        flat = made.cycles is not None and len(set(betas)) == 1
        assert bool(line) == (max(betas) < made.beta or flat)
    if line and made.cycles is None:
        shorter = int(line.partition("a warmup of ")[2].partition(",")[0])
        check_schedules(None, TrainingOptions(**options | {"warmup": shorter}), 3, again := Recorded())
        assert again.lines == [], "the remedy works"


def test_a_silent_training_warns_once(digits):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(small(), digits, epochs=1, warmup=2)
    (warning,) = caught
    assert "β rises to 1 over 2 epochs" in str(warning.message)


def test_a_schedule_that_is_refused_is_all_that_is_told(tmp_path, capsys):
    """Catches an error that comes after a warning, and so is not one line."""
    path = tmp_path / "c.yaml"
    cycle = "{class_path: OneCycleLR, max_lr: 0.01, total_steps: 2}"
    path.write_text(f"data: {{name: digits, limit: 40}}\ntraining: {{epochs: 3, warmup: 9, schedule: {cycle}}}\n")
    assert "and 3 epochs take 3: give total_steps 3" in refused(capsys, "train", path, "--out", tmp_path / "run")
    assert list(tmp_path.iterdir()) == [path]


def test_a_preset_cut_short_tells_of_its_warmup_once(tmp_path, capfd):
    words = ["--data.name=digits", "--data.limit=40", "--training.epochs=2", "--model.encoder.hidden=[4]"]
    main(["train", "vanilla", *words, "--model.latent=2", "--model.decoder.hidden=[4]", "--out", str(tmp_path / "run")])
    lines = [line for line in capfd.readouterr().err.splitlines() if "warm" in line]
    assert lines == [
        "warning: β rises to 1 over 100 epochs, but the training has 2 and ends at 0.02: give a warmup of 2, or more "
        "epochs"
    ]


def test_free_bits_keep_the_kl_of_a_training(digits):
    kls = [fit(small(), digits, epochs=8, free_bits=nats, beta=20.0, optimizer=ADAM)[-1]["kl"] for nats in (0.0, 3.0)]
    assert kls[0] < 0.5 < 2 < kls[1]


def test_free_bits_read_nothing_of_a_step():
    model = small().to("meta")
    step = Objective(model, miselbo, reparameterised, score_all=True, device="meta", nats=1.0)
    with unread(model):
        step(Inputs(torch.zeros(5, 1, 8, 8, device="meta"), torch.zeros(1, 2, 5, 3, device="meta"))).backward()
    assert all(p.grad is not None for p in model.decoder.parameters())


@pytest.mark.parametrize(
    ("options", "model", "told"),
    [
        ({"gradient": doubly_reparameterised, "bound": pooled, "free_bits": 1.0}, {}, "use reparameterised"),
        ({"gradient": proportional, "free_bits": 1.0}, {"weights": [0.9, 0.1]}, "equal mixture weights"),
        ({"accumulate": 101}, {}, "accumulate must be at most the examples of a batch on each device, 100; got 101"),
        (
            {"schedule": partial(ReduceLROnPlateau, patience=1), "schedule_every": "step"}, {},
            "leave schedule_every at epoch",
        ),
        (
            {"schedule": partial(OneCycleLR, max_lr=1e-2, total_steps=5), "schedule_every": "step", "epochs": 2}, {},
            "OneCycleLR has 5 steps, and 2 epochs take 6: give total_steps 6",
        ),
        (
            {"schedule": partial(OneCycleLR, max_lr=1e-2, total_steps=3), "epochs": 4, "patience": 9}, {},
            "OneCycleLR has 3 steps, and 4 epochs take 4: give total_steps 4",
        ),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused_before_writing(digits, tmp_path, options, model, told):
    with pytest.raises(ValueError, match=told) as error:
        fit(small(**model), digits, run=tmp_path / "run", **options)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_accumulation_refuses_batchnorm(digits):
    class Normed(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.BatchNorm1d(6))

        def forward(self, x):
            return self.net(x).chunk(2, -1)

    model = MixtureVAE(SeparateEncoders(Normed, 2), StandardNormal(3), MLPDecoder(3, (1, 8, 8), (12,)))
    with pytest.raises(ValueError, match="BatchNorm the statistics of parts"):
        fit(model, digits, accumulate=2)


def test_onecycle_over_all_steps_has_the_right_rate_at_each(digits):
    """Against the schedule by itself; 2 epochs of 3 steps."""
    cycle = partial(OneCycleLR, max_lr=1e-2, total_steps=6)
    log, seen = Log(), Recorded()
    options = {"epochs": 2, "optimizer": partial(torch.optim.Adam, lr=1e-3), "schedule": cycle}
    rows = fit(small(), digits, schedule_every="step", callbacks=[log], progress=seen, **options)
    optimizer = torch.optim.Adam([nn.Parameter(torch.zeros(1))], lr=1e-3)
    schedule, expected = cycle(optimizer), []
    for _ in range(6):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert [float(step.learning_rate) for step in log.steps] == pytest.approx(expected, rel=1e-6)
    assert rows[0]["learning_rate"] == expected[3], "what it had come to at the end of the epoch"
    assert seen.lines == []


@pytest.mark.parametrize(
    "schedule",
    [
        partial(OneCycleLR, max_lr=1e-2, total_steps=60),
        partial(CyclicLR, base_lr=1e-3, max_lr=1e-2, step_size_up=30, cycle_momentum=False),
    ],
)
def test_a_schedule_meant_for_steps_is_told_of(digits, schedule):
    seen = Recorded()
    fit(small(), digits, epochs=2, schedule=schedule, progress=seen)
    (line,) = seen.lines
    assert "give schedule_every step, under which they take 6" in line


def chained(optimizer, total):
    return ChainedScheduler([ConstantLR(optimizer, 0.5), OneCycleLR(optimizer, 1e-2, total)])


def sequential(optimizer, total, *, milestone, first):
    parts = [OneCycleLR(optimizer, 1e-2, total), ConstantLR(optimizer, 0.5)]
    return SequentialLR(optimizer, parts if first else parts[::-1], [milestone])


@pytest.mark.parametrize(
    "make",
    [
        lambda optimizer, total: OneCycleLR(optimizer, 1e-2, total),
        chained,
        *(partial(sequential, milestone=m, first=first) for m in (2, 4, 6, 9) for first in (True, False)),
    ],
)
def test_lengths_of_schedules_are_told_as_torch_steps_them(make):
    """Against torch itself, 6 steps of schedules of every length: what raises is refused, what ends early is told."""
    for total in range(2, 12):
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)
        schedule, raises = make(optimizer, total), False
        cycle = next(one for one in (schedule, *getattr(schedule, "_schedulers", ())) if isinstance(one, OneCycleLR))
        for _ in range(6):
            optimizer.step()
            try:
                schedule.step()
            except ValueError:
                raises = True
                break
        options = TrainingOptions(epochs=2, schedule=partial(make, total=total), schedule_every="step")
        fresh, seen = make(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9), total), Recorded()
        if raises:
            with pytest.raises(ValueError, match=f"OneCycleLR has {total} steps, and 2 epochs take"):
                check_schedules(fresh, options, 3, seen)
        else:
            check_schedules(fresh, options, 3, seen)
            told = [line for line in seen.lines if "its learning rate does not reach its final value" in line]
            assert len(told) == len(seen.lines) == (cycle.last_epoch < total - 1), total


def test_any_schedule_with_a_length_is_told_of():
    class Cosine(LRScheduler):
        total_steps = 4

        def get_lr(self):
            return self.base_lrs

    options = TrainingOptions(epochs=2, schedule=Cosine, schedule_every="step")
    check_schedules(Cosine(torch.optim.SGD([nn.Parameter(torch.zeros(1))])), options, 3, seen := Recorded())
    assert seen.lines == ["warning: Cosine is over after 4 of 6 steps: give total_steps 6"]


@pytest.mark.usefixtures("as_users_run")
@pytest.mark.parametrize(("bound", "gradient"), [(pooled, doubly_reparameterised), (pooled, proportional)])
def test_parts_that_choose_anew_have_the_batchs_mean_gradient(monkeypatch, bound, gradient):
    """By enumeration of all choices, at the same noise in float64: of a whole batch, and of each of its parts."""
    pi = torch.tensor([0.7, 0.3], dtype=torch.float64)
    noise, x = torch.randn(1, 2, 4, 2, dtype=torch.float64), binary(4)
    model = tiny_model(components=2, weights=pi.tolist())
    if gradient is doubly_reparameterised:
        choices = [(torch.tensor(each), float(pi[list(each)].prod())) for each in itertools.product((0, 1), repeat=2)]
        monkeypatch.setattr(torch, "multinomial", lambda *args, **options: now[0])
    else:  # the second of the two draws, at (1 + u)/2, is of the first component while u < 0.4
        choices = [(torch.tensor([0, 0]), 0.4), (torch.tensor([0, 1]), 0.6)]
        monkeypatch.setattr(mixvae.gradients, "_in_proportion", lambda log_pi, n: now[0])

    def gradients(examples, part_noise):
        value = gradient(model, examples, bound, 1, noise=part_noise).sum()
        parts = torch.autograd.grad(value, list(model.parameters()), allow_unused=True, materialize_grads=True)
        return torch.cat([part.flatten() for part in parts])

    whole, in_parts, now = 0.0, 0.0, []
    for choice, probability in choices:
        now[:] = [choice]
        whole = whole + probability * gradients(x, noise)
        for part in (slice(0, 3), slice(3, 4)):  # each enumerates by itself: the parts choose independently
            in_parts = in_parts + probability * gradients(x[part], noise[:, :, part])
    assert len(whole) > 50
    torch.testing.assert_close(in_parts, whole, rtol=1e-10, atol=1e-12)


def test_accumulation_gives_the_gradient_of_the_whole_batch(digits):
    """7 examples in 1, 3 and 7 parts, in float64."""
    data = datasets.load_dataset("digits", limit=40, limit_validation=20)
    found = {}
    for parts in (1, 3, 7):
        model, log = small().double(), Log()
        fabric = launch("cpu", precision="64-true")
        rows = fit(
            model, data, epochs=2, batch=7, accumulate=parts, callbacks=[log], fabric=fabric, clip=5.0, ema=0.9,
            optimizer=partial(torch.optim.SGD, lr=1e-2, momentum=0.9),
        )  # fmt: skip
        assert len(log.steps) == 12, "steps are those of whole batches"
        found[parts] = (weights(model), rows)
    for parts in (3, 7):
        for name, value in found[1][0].items():
            torch.testing.assert_close(found[parts][0][name], value, rtol=1e-9, atol=1e-12, msg=name)
        for row, other in zip(found[parts][1], found[1][1], strict=True):
            assert row["bound"] == pytest.approx(other["bound"], rel=1e-6)
            assert row["gradient_norm"] == pytest.approx(other["gradient_norm"], rel=1e-6)


def test_accumulation_needs_the_memory_of_one_part(digits):
    sizes = []

    class Watched(MixtureVAE):
        def forward(self, x, *args, **options):
            sizes.extend([len(x)] if torch.is_grad_enabled() else [])
            return super().forward(x, *args, **options)

    model = Watched(small().posterior, StandardNormal(3), MLPDecoder(3, (1, 8, 8), (12,)))
    fit(model, digits, epochs=1, accumulate=4)
    assert sizes == [25] * 8 + [13, 13, 12, 12]


OPTIONS = {
    "a schedule of steps": {
        "schedule": partial(OneCycleLR, max_lr=1e-2, total_steps=12), "schedule_every": "step", "beta": 0.5,
    },
    "cycles": {"warmup": 6, "cycles": 2, "free_bits": 2.0},
    "parts": {"accumulate": 3, "ema": 0.9, "clip": 1.0},
}  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("at", [(1, 3), (2, 2)])
def test_each_option_resumes_bit_for_bit_in_mid_epoch(digits, tmp_path, options, at):
    """And so do the columns of the history; (1, 3) is after an epoch's last step, before it is validated."""
    settings = {"epochs": 4, "optimizer": ADAM, **OPTIONS[options]}
    run, whole = tmp_path / "run", small(0.3)
    rows = fit(whole, digits, **settings)
    with pytest.raises(ZeroDivisionError):
        fit(small(0.3), digits, run=run, save_every=1e9, callbacks=[Log(at, crash)], **settings)
    again = small(0.3, seed=9)
    assert timeless(fit(again, digits, run=run, **settings)) == timeless(rows)
    assert_same(weights(again), weights(whole))
    with pytest.raises(ValueError, match="training"):
        fit(small(0.3), digits, run=run, epochs=4, optimizer=ADAM)


def test_options_are_the_same_from_yaml_flags_and_python(tmp_path):
    file = tmp_path / "own.yaml"
    cycle = "{class_path: OneCycleLR, max_lr: 0.01, total_steps: 8}"
    file.write_text(f"training: {{beta: 0.5, warmup: 4, cycles: 2, schedule: {cycle}}}\n")
    read = config.read(file, ["--training.schedule_every=step", "--training.accumulate=4"])
    options = config.options(read.training)
    assert (options.beta, options.cycles, options.schedule_every, options.accumulate) == (0.5, 2, "step", 4)


def test_a_bar_moves_within_an_epoch_and_in_validation(digits, monkeypatch):
    now = [0.0]

    def clock():
        now[0] += 1.0
        return now[0]

    monkeypatch.setattr(mixvae.training._shown.time, "monotonic", clock)
    seen = Recorded()
    fit(small(), digits, epochs=2, progress=seen)
    assert [(done, total) for done, total, _ in seen.seen] == [
        (1, 6), (2, 6), (3, 6), (3, 6), (3, 6), (4, 6), (5, 6), (5, 6), (5, 6), (6, 6),
    ]  # fmt: skip
    texts = [text for *_, text in seen.seen]
    assert texts[:2] == ["epoch 1/2  step 1/3", "epoch 1/2  step 2/3"]
    assert texts[3] == "epoch 1/2  validating 60/60"
    assert texts[5].startswith("epoch 2/2  step 1/3  validation -4")


def test_patience_completes_the_bar(digits):
    """Catches a bar that stays on the screen, and times what comes next, when a training ends early."""
    seen = Recorded()
    rows = fit(small(), digits, epochs=50, patience=1, optimizer=partial(torch.optim.SGD, lr=1e-12), progress=seen)
    done, total, _ = seen.seen[-1]
    assert done == total == 3 * len(rows) < 150


def test_slow_sampling_is_shown_row_by_row():
    from mixvae.decoders import PixelCNNDecoder

    p, seen = PixelCNNDecoder(2, (1, 4, 6), layers=2, width=4)(torch.zeros(2, 2)), Recorded()
    assert p.sample((3,), progress=seen).shape == (3, 2, 1, 4, 6)
    assert [(done, total) for done, total, _ in seen.seen] == [(row, 4) for row in range(1, 5)]


COMPILED = """
from functools import partial
import torch
import mixvae
from mixvae.networks import GatedEncoder

compile, graphs = torch.compile, []
torch.compile = lambda f, **o: compile(f, fullgraph=True, dynamic=False, backend=count)

def count(module, inputs):
    graphs.append(module)
    return module.forward

data, found = mixvae.load_dataset("digits", limit=40, limit_validation=20), {}
for options in ({"free_bits": 1.0}, {"accumulate": 2}):
    for how in ("none", "default"):
        torch.manual_seed(0)
        q = mixvae.SeparateEncoders(partial(GatedEncoder, (1, 8, 8), 2, (6,)), 2)
        model = mixvae.MixtureVAE(q, mixvae.StandardNormal(2), mixvae.MLPDecoder(2, (1, 8, 8), (6,)))
        mixvae.fit(model, data, epochs=3, batch=20, warmup=6, cycles=2, beta=0.5, compile=how, **options)
        found[how] = list(model.parameters())
    for one, other in zip(*found.values()):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
assert len(graphs) == 2, len(graphs)
"""


@pytest.mark.slow
def test_free_bits_and_parts_stay_one_graph():
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


RANKS = """
import sys
from functools import partial
import torch
from torch.optim.lr_scheduler import OneCycleLR
import mixvae
from mixvae.networks import GatedEncoder
from mixvae.training import Callback, StopTraining, launch

class Stop(Callback):
    called = 0

    def on_step(self, step):
        Stop.called += 1
        if Stop.called == 9:
            raise StopTraining

world, out = int(sys.argv[1]), sys.argv[2]
fabric = launch("cpu", world, "ddp" if world > 1 else "auto", precision="64-true")
torch.manual_seed(0)
q = mixvae.SeparateEncoders(partial(GatedEncoder, (1, 8, 8), 2, (6,)), 2)
model = mixvae.MixtureVAE(q, mixvae.StandardNormal(2), mixvae.MLPDecoder(2, (1, 8, 8), (6,)))
data = mixvae.load_dataset("digits", limit=40, limit_validation=21)
cycle = partial(OneCycleLR, max_lr=1e-2, total_steps=100)
options = dict(batch=8, epochs=3, accumulate=2, schedule=cycle, schedule_every="step", fabric=fabric, patience=9)
history = mixvae.fit(model, data, **options)
if fabric.is_global_zero:
    torch.save([dict(row) for row in history] + list(model.state_dict().values()), out)
rows = mixvae.fit(model, data, callbacks=[Stop()], **options)
assert len(rows) == (1 if world == 1 else 2), len(rows)  # at step 9 of 15; with others, at the end of its epoch
assert (Stop.called > 0) == fabric.is_global_zero
try:
    mixvae.fit(model, data, free_bits=1.0, fabric=fabric)
    assert world == 1
except ValueError as error:
    assert world == 2 and "free_bits 1 needs the mean KL of a whole batch, and 2 processes share one" in str(error)
"""


@pytest.mark.slow
def test_two_processes_agree_with_one_on_the_new_options(tmp_path):
    found = []
    for world in (1, 2):
        script, out = tmp_path / "script.py", tmp_path / f"{world}.pt"
        script.write_text(RANKS)
        done = subprocess.run([sys.executable, script, str(world), out], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        found.append(torch.load(out, weights_only=True))
    for one, other in zip(*found, strict=True):
        if isinstance(one, dict):
            for name in one.keys() - {"seconds"}:
                assert other[name] == pytest.approx(one[name], rel=1e-6), name
        else:
            torch.testing.assert_close(other, one, rtol=1e-7, atol=1e-10)


@pytest.mark.filterwarnings("ignore")
def test_a_lightning_trainer_trains_a_mixture(capfd):
    pytest.importorskip("lightning")
    path = Path(__file__).parent.parent / "examples" / "lightning_module.py"
    source = path.read_text()
    body = source[source.index("class Lightning") : source.index("def main")]
    assert len([line for line in body.splitlines() if line.strip()]) <= 15
    assert -64 < runpy.run_path(str(path))["main"](epochs=1) < -20
    capfd.readouterr()
