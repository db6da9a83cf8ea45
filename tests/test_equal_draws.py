"""Experiments at equal draws per step: nothing is unequal that is compared, and what decides is named beforehand."""

import math
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch

import mixvae
from mixvae import config, fit
from mixvae._failures import Failed
from mixvae.bounds import log_weights, pooled
from mixvae.cli import main
from mixvae.distributions import keyed_normal
from mixvae.files import read_json
from mixvae.model import evaluating
from mixvae.progress import SILENT
from mixvae.reports import unequal_draws
from mixvae.reproduce import EXPERIMENTS
from mixvae.reproduce.clock import AT, at_equal_seconds, disturbed, elsewhere
from mixvae.reproduce.contrasts import drawn_by
from mixvae.reproduce.equal import EQUAL, encoder_parameters, wide
from mixvae.reproduce.findings import Changes
from mixvae.reproduce.means import MEANS
from mixvae.reproduce.measured import Cell
from mixvae.reproduce.probing import _sizes, core_hours
from mixvae.runs import evaluation_of
from mixvae.sweeps import LOCAL

AS_SMALL = {
    "digits": 160, "fair": 30, "vampprior": 13, "convergence": 6, "pixelcnn": 24, "hundreds": 15,
    "ways": 60, "places": 90,
}  # fmt: skip


def few(plan):
    """The plan with one seed: its configurations differ in their seeds only."""
    return plan.changed(Changes(seeds=[0]))


@pytest.mark.parametrize("name", [*EQUAL, *MEANS, "ablation"])
def test_all_that_is_compared_has_equal_draws(tmp_path, name):
    plan = EXPERIMENTS[name].scales["small"]
    grid = few(plan).grid(tmp_path)
    draws = plan._draws(grid)
    pairs = [pair for question in plan.questions for pair in question.pairs]
    pairs += [(v.key, plan.baseline(v)) for v in plan.variants]
    assert unequal_draws(drawn_by(pairs, draws)) == []
    assert len(set(draws.values())) == 1
    assert any(question.primary for question in plan.questions)
    assert {key for pair in pairs for key in pair} == set(draws)
    for cell in grid.cells.values():
        config.build(cell.model, _sizes(cell)[0], torch.rand(500, *_sizes(cell)[0]))
    whole = [cell for variant, cell in zip(plan.variants, grid.cells.values(), strict=True) if variant.share == 1]
    lengths = {(cell.training.epochs, cell.training.warmup, cell.training.batch) for cell in whole}
    assert len(lengths) == (3 if name == "places" else 1)
    for cell in grid.cells.values():
        last = name != "convergence"
        assert cell.training.keep == ("last" if last else "best")
        assert (cell.training.patience is None) == last, "an epoch may be selected in no other experiment"


def test_trainings_are_as_many_as_planned(tmp_path):
    each = {name: EXPERIMENTS[name].scales["small"]._each(tmp_path) for name in [*AS_SMALL, "ablation"]}
    assert {name: len(trainings) for name, trainings in each.items()} == AS_SMALL | {"ablation": 80}
    names = [name for name, variant, _ in each["vampprior"] if variant.trainings]
    assert [name.rpartition("-")[2] for name in names] == ["seed0", "seed1", "seed2"]


def test_a_warm_start_follows_half_of_the_training_of_its_seed(tmp_path, monkeypatch):
    plan = replace(EXPERIMENTS["ways"].scales["small"], seeds=(0, 3))
    cells = plan.grid(tmp_path).cells
    for seed in plan.seeds:
        half, warm = cells[f"half-S1-seed{seed}"], cells[f"warm-start-S4-seed{seed}"]
        assert warm.start.run == str(tmp_path / f"half-S1-seed{seed}")
        assert [(c.training.epochs, c.training.warmup) for c in (half, warm)] == [(30, 10), (30, 0)]
        assert cells[f"in-proportion-S4-seed{seed}"].model.weights == [0.5, 0.25, 0.125, 0.125]
    ran = []

    def run_cells(grid, **_):
        ran.append(list(grid.cells))
        return SimpleNamespace(failed={"warm-start-S4-seed0": "stopped here"} if len(ran) == 2 else {}, done={})

    monkeypatch.setattr("mixvae.sweeps.run_cells", run_cells)
    with pytest.raises(Failed, match="stopped here"):
        plan.carry_out(tmp_path, runner=LOCAL, progress=SILENT)
    assert ran == [[name for name in cells if "warm" not in name], ["warm-start-S4-seed0", "warm-start-S4-seed3"]]
    with pytest.raises(ValueError, match="warm start starts from half: name both"):
        plan.changed(Changes(models=["elbo", "warm start"]))


@pytest.mark.parametrize("epochs", [1, 31])
def test_epochs_that_cannot_be_halved_are_refused(tmp_path, epochs):
    """One epoch became none, and 31 became 16 or 15 as Python rounds."""
    plan = EXPERIMENTS["ways"].scales["small"].changed(Changes(epochs=epochs))
    with pytest.raises(ValueError, match=f"half trains for 0.5 of the epochs, .*; got {epochs}: give a multiple of 2"):
        plan.grid(tmp_path)


def test_few_examples_are_passed_as_often_as_many(tmp_path):
    cells = few(EXPERIMENTS["places"].scales["small"]).grid(tmp_path).cells.values()
    steps = {math.ceil((cell.data.limit or 1197) / cell.training.batch) * cell.training.epochs for cell in cells}
    assert steps == {720}


def test_fair_compares_encoders_with_one_of_their_size(tmp_path):
    plan = EQUAL["fair"].scales["small"]
    cells = few(plan).grid(tmp_path).cells
    encoders = {
        name: sum(p.numel() for p in config.build(cell.model, (1, 28, 28)).posterior.parameters())
        for name, cell in cells.items()
    }
    for bound in ("elbo", "pooled"):
        assert encoders[f"wide-{bound}-S1-seed0"] == pytest.approx(encoders[f"{bound}-S4-seed0"], rel=0.01)
        for name in (f"wide-{bound}-S1-seed0", f"{bound}-S1-seed0", f"{bound}-S4-seed0"):
            assert cells[name].training.bound == bound
            assert cells[name].draws_per_step == 4
    primary = [question.pairs for question in plan.questions if question.primary]
    assert primary == [
        [(("elbo", 4), ("elbo", 1))], [(("elbo", 4), ("wide elbo", 1))],
        [(("pooled", 4), ("pooled", 1))], [(("pooled", 4), ("wide pooled", 1))],
    ]  # fmt: skip
    assert plan.represent


@pytest.mark.parametrize(("times", "hidden"), [(2, [16]), (4, [300, 300]), (3, [64, 64, 64])])
def test_wide_encoders_are_the_nearest_from_above(times, hidden):
    found = wide(times, (1, 28, 28), 40, hidden)
    target = times * encoder_parameters((1, 28, 28), 40, hidden)
    less = encoder_parameters((1, 28, 28), 40, [width - 1 for width in found])
    assert less < target <= encoder_parameters((1, 28, 28), 40, found)


def test_vampprior_has_equal_components_of_the_prior(tmp_path):
    cells = few(EQUAL["vampprior"].scales["small"]).grid(tmp_path).cells
    sizes = {name: cell.model.components * cell.model.prior["pseudo_inputs"] for name, cell in cells.items()}
    assert sizes == {"vamp-S1-seed0": 500, "vamp-S4-seed0": 500, "vamp-of-equal-K-S4-seed0": 2000}


def test_convergence_validates_all_by_eight_draws(tmp_path):
    for cell in few(EQUAL["convergence"].scales["small"]).grid(tmp_path).cells.values():
        assert (cell.training.validation_bound, cell.training.validation_draws) == ("pooled", 8)
        assert (cell.training.epochs, cell.training.patience) == (300, 30)


def test_runs_are_read_at_the_time_of_the_quickest():
    def run(*rows):
        return Cell(SimpleNamespace(manifest={}, metrics=[{"seconds": s, "validation": v} for s, v in rows]), None)

    measured = {
        ("m", 1): [run((1.0, -9.0), (2.0, -7.0), (3.0, -8.0), (9.0, -6.0))],
        ("m", 4): [run((2.0, -6.0), (4.0, -5.0), (6.0, -3.0))],
    }
    found = at_equal_seconds(measured)
    assert disturbed(measured) == []
    assert found["m", 1][0].value(AT) == -6.0, "four epochs of a second each: one that was disturbed does not count"
    assert found["m", 4][0].value(AT) == -5.0, "the best of two epochs of two seconds"


def test_nothing_is_read_at_equal_seconds_of_a_busy_machine():
    """One recipe had taken from 15 to 785 seconds, and was compared at the clock of whichever was first."""

    def run(pace, **runtime):
        metrics = [{"seconds": pace * i, "validation": -9.0 + i} for i in (1, 2, 3)]
        return Cell(SimpleNamespace(manifest={"runtime": runtime}, metrics=metrics), None)

    measured = {("m", 1): [run(1.0), run(1.1)], ("m", 4): [run(2.0), run(2.5)]}
    assert "m S = 4 2 to 2.5 s" in disturbed(measured)[0]
    assert "S = 1" not in disturbed(measured)[0]
    assert all(math.isnan(cell.value(AT)) for cells in at_equal_seconds(measured).values() for cell in cells)
    measured["m", 4][1] = run(2.3)
    assert disturbed(measured) == []
    assert [cell.value(AT) for cell in at_equal_seconds(measured)["m", 4]] == [-8.0, -8.0]
    assert [cell.value(AT) for cell in at_equal_seconds(measured)["m", 1]] == [-6.0, -6.0], "within three seconds"
    for other in ({"machine": "another"}, {"threads": 2}, {"device": "cuda:0"}):
        measured["m", 4] = [run(2.0, **other), run(2.3, **other)]
        assert disturbed(measured) == [f"Nothing is compared at equal seconds. {elsewhere(measured)[0]}"]
        assert "(m S = 4: " in elsewhere(measured)[0]
        assert all(math.isnan(cell.value(AT)) for cells in at_equal_seconds(measured).values() for cell in cells)


@pytest.mark.parametrize(
    ("name", "words"), [("convergence", []), ("hundreds", []), ("ways", ["--models", "elbo,half,warm start"])]
)
@pytest.mark.usefixtures("cells_here")
def test_smoke_scales_run_and_say_what_is_primary(tmp_path, capsys, name, words):
    out = tmp_path / name
    main(["reproduce", name, "--scale", "smoke", *words, "--out", str(out)])
    shown = capsys.readouterr().out
    assert "primary, not decided: " in shown
    assert "Compared at unequal draws" not in shown
    results = read_json(out / "results.json")
    assert {row["draws_per_step"] for row in results["table"]} == {2}
    assert all(row["train_seconds"] > 0 for row in results["table"])
    kinds = [row["kind"] for row in results["contrasts"]]
    primary = [row for row in results["contrasts"] if row["kind"] == "primary"]
    assert primary
    for row in primary:  # a run slower than every epoch of the quickest has no value at equal seconds, and no p
        assert (row["p_holm"] is None) == (row["p"] is None)
        assert row["p"] is None or row["p_holm"] >= row["p"]
    assert {verdict["kind"] for verdict in results["verdicts"]} == set(kinds)
    page = (out / "report.html").read_text()
    assert "p Holm" in page
    assert "draws per step" in page
    if name == "ways":
        before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
        with pytest.raises(SystemExit):
            main(["reproduce", name, "--scale", "smoke", *words, "--epochs", "4", "--out", str(out)])
        assert "which is missing or would be trained on" in capsys.readouterr().err
        assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
        seconds = {row["model"]: row["train_seconds"] for row in results["table"]}
        own = min(evaluation_of(run)["train_seconds"] for run in out.glob("warm-start-S2-seed*"))  # as many epochs each
        assert seconds["warm start"] == pytest.approx(own + seconds["half"]), "with those of its start"
    if name == "convergence":
        assert all(row[AT] is None or row[AT] < 0 for row in results["table"])


def test_a_probe_is_remembered_and_counts_seeds():
    plan, told = EQUAL["hundreds"].scales["smoke"], []
    hours = core_hours(plan)
    assert 0 < hours < 1
    more = core_hours(plan.changed(Changes(seeds=range(6))), told.append)
    assert more == pytest.approx(3 * hours)
    assert told == [], "nothing is tried twice"


# What is kept, and by what validation


ADAM = partial(torch.optim.Adam, lr=1e-2)
WORSE = partial(torch.optim.SGD, lr=1e-3, maximize=True)


@pytest.fixture(scope="module")
def digits():
    return mixvae.load_dataset("digits", limit=100)


def small():
    torch.manual_seed(0)
    posterior = mixvae.SeparateEncoders(partial(mixvae.networks.GatedEncoder, (1, 8, 8), 2, (8,)), components=2)
    return mixvae.MixtureVAE(posterior, mixvae.StandardNormal(2), mixvae.MLPDecoder(2, (1, 8, 8), (8,)))


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.values(), other.values(), strict=True))


def test_the_last_epoch_is_kept_although_another_was_best(digits, tmp_path):
    first, best, last, seen = small(), small(), small(), []
    fit(first, digits, epochs=1, optimizer=WORSE)
    rows = fit(best, digits, epochs=3, optimizer=WORSE)
    assert rows[-1]["best_epoch"] == 1
    assert same(best.state_dict(), first.state_dict())
    copy = lambda row: seen.append({name: t.clone() for name, t in last.state_dict().items()})  # noqa: E731
    options = mixvae.TrainingOptions(epochs=3, optimizer=WORSE, keep="last")
    rows = fit(last, digits, options, callbacks=[copy], run=tmp_path / "run")
    assert rows[-1]["best_epoch"] == 1, "which epoch was best is still told"
    assert same(last.state_dict(), seen[-1])
    assert not same(last.state_dict(), first.state_dict())
    assert same(mixvae.load(tmp_path / "run").state_dict(), seen[-1])


def test_validation_has_as_many_draws_as_asked_for(digits):
    model = small()
    options = {"epochs": 1, "validation_bound": "pooled", "validation_draws": 8, "optimizer": ADAM}
    found = fit(model, digits, **options)[-1]["validation"]
    x = digits.validation.batch(slice(None))
    noise = keyed_normal(0, range(len(x)), 0, 4, (2, 2)).to(x)
    with torch.no_grad(), evaluating(model):
        terms = model(x, 4, noise=noise)
    assert found == pytest.approx(float(pooled(log_weights(terms), terms.weight).double().mean()), rel=1e-6)


def test_validation_draws_that_cannot_be_shared_are_refused(digits):
    with pytest.raises(ValueError, match="must be a multiple of the number of validated components, 2; got 3"):
        fit(small(), digits, epochs=1, validation_draws=3)
    with pytest.raises(ValueError, match="validation_draws must be at least 1"):
        fit(small(), digits, epochs=1, validation_draws=0)
