"""Experiments of the paper by name: all are there, claims are judged rightly, and what is done is not done again."""

import math
import runpy
import shutil
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import f_oneway, t, ttest_ind

from browser import browse
from mixvae import config, reports, runs
from mixvae._failures import Failed
from mixvae.cli import main
from mixvae.cli.output import PAGE, names, show_comparison, show_rows
from mixvae.evaluation import Evaluation, Identity
from mixvae.files import canonical, checksum, commit, read_json, weights_to_bytes, write_json
from mixvae.progress import SILENT
from mixvae.reports import ONE_TRAINING, between_trainings, student
from mixvae.reports._configurations import configuration_of
from mixvae.reproduce import EXPERIMENTS, Gap, judge, pictures, trainings
from mixvae.reproduce.contrasts import Question
from mixvae.reproduce.equal import EQUAL
from mixvae.reproduce.findings import Changes
from mixvae.reproduce.means import MEANS
from mixvae.reproduce.trainings import Trainings
from mixvae.reproduce.variants import Variant
from mixvae.runs import Recipe, RunStore
from mixvae.runs._recipe import recipe_of
from mixvae.runs._stored import is_current, save_evaluation
from mixvae.sweeps import LOCAL

PUBLISH, TABLES = (Path(__file__).parent.parent / ".ci" / name for name in ("publish.py", "tables.py"))
TRAINED = {name: e for name, e in EXPERIMENTS.items() if isinstance(e.scales["paper"], Trainings)}


def test_every_row_of_the_paper_is_there_at_three_scales():
    assert set(EXPERIMENTS) == {
        "toys", "mnist", "fashion_mnist", "cifar10", "big_iwae", "single_cell", "cortex", "integration", "labels",
        "cell_priors", "latents", "ablation", "draws", *EQUAL, *MEANS,
    }  # fmt: skip
    assert all(list(e.scales) == ["smoke", "small", "paper"] for e in EXPERIMENTS.values())
    assert all(plan.cost for e in EXPERIMENTS.values() for plan in e.scales.values())


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("scale", ["smoke", "small", pytest.param("paper", marks=pytest.mark.slow)])
def test_every_cell_is_valid_and_every_claim_is_about_cells(tmp_path, name, scale):
    plan = TRAINED[name].scales[scale]
    grid = plan.grid(tmp_path)
    assert len(grid.cells) == sum(len(plan.seeds_of(variant)) for variant in plan.variants)
    keys = {variant.key for variant in plan.variants}
    for question in plan.questions:
        assert question.pairs
        assert {key for pair in question.pairs for key in pair} <= keys
    assert {plan.baseline(variant) for variant in plan.variants} <= keys
    if scale == "paper":
        assert (grid.draws_per_component or grid.total_draws) >= 1000
        assert len(plan.seeds) >= 3


def test_the_papers_eight_models_have_one_to_four_components():
    plan = EXPERIMENTS["mnist"].scales["paper"]
    cells = {(v.model, v.size) for v in plan.variants}
    assert len(cells) == 8 * 4
    assert plan.draws_per_component == 5000
    assert EXPERIMENTS["single_cell"].scales["paper"].settings["epochs"] == 1000


def test_big_iwae_matches_mixture_parameters_and_is_a_true_iwae(tmp_path):
    plan = EXPERIMENTS["big_iwae"].scales["paper"]
    cells = plan.grid(tmp_path).cells
    count = {
        name: sum(p.numel() for p in config.build(cell.model, (1, 28, 28), torch.rand(10, 1, 28, 28)).parameters())
        for name, cell in cells.items()
        if name.endswith("seed0")
    }
    for s in (1, 2, 3):
        mixture = count[f"mixture-S{s}-seed0"]
        assert count[f"wide-IWAE-S{s}-seed0"] == pytest.approx(mixture, rel=0.01)
        assert count[f"deep-IWAE-S{s}-seed0"] == pytest.approx(mixture, rel=0.06)
        for rival in ("wide", "deep"):
            training = cells[f"{rival}-IWAE-S{s}-seed0"].training
            assert (training.bound, training.draws_per_component) == ("iwelbo", s)
            assert cells[f"{rival}-IWAE-S{s}-seed0"].model.components == 1


def test_a_claim_holds_only_if_all_differences_do():
    up, down, unsure = Gap("a", 1.0, 0.5), Gap("b", -1.0, 0.5), Gap("c", 0.4, 0.5)
    assert judge("x", [up, up]).holds is True
    assert judge("x", [up, down, unsure]).holds is False
    assert judge("x", [up, unsure]).holds is None
    assert judge("x", [up, Gap("d", 5.0, math.nan)]).holds is None
    assert judge("x", [Gap("e", -5.0, math.nan)]).holds is None
    assert judge("x", []).holds is None
    assert "a: +1 ± 0.5" in judge("x", [up]).evidence
    assert judge("x", [Gap("d", 5.0, math.nan)]).evidence == f"d: +5 ({ONE_TRAINING})"


def test_margins_of_few_seeds_are_students():
    values = np.array([1.0, 2.0, 4.0])
    error = values.std(ddof=1) / math.sqrt(3)
    low, high = t.interval(0.95, 2, values.mean(), error)
    assert error * student(2) == pytest.approx((high - low) / 2)
    assert math.isnan(student(0))


@pytest.mark.parametrize("sizes", [(2, 2), (2, 5), (1, 4), (6, 3)])
def test_error_between_trainings_is_the_t_tests(sizes):
    rng = np.random.default_rng(sum(sizes))
    new, old = (rng.normal(size=size) for size in sizes)
    gain = between_trainings({"new": new, "old": old}).difference("new", "old")
    exact = ttest_ind(new, old, equal_var=True)
    low, high = exact.confidence_interval(0.95)
    assert gain.mean == pytest.approx(new.mean() - old.mean(), abs=1e-12)
    assert gain.se == pytest.approx(gain.mean / exact.statistic, rel=1e-12)
    assert (gain.mean - gain.margin, gain.mean + gain.margin) == pytest.approx((low, high), rel=1e-9)


def test_variance_is_pooled_over_all_configurations():
    values = {"a": [1.0, 3.0], "b": [10.0, 11.0, 15.0], "c": [7.0]}
    squares = degrees = 0
    for each in values.values():
        mean = sum(each) / len(each)
        for value in each:
            squares += (value - mean) ** 2
        degrees += len(each) - 1
    between = between_trainings(values)
    assert (squares, between.degrees) == (16, degrees) == (16, 3)
    assert between.sd == pytest.approx(math.sqrt(16 / 3), rel=1e-15)
    se = math.sqrt(16 / 3 * (1 / 3 + 1 / 1))
    p = 2 * t.sf(5 / se, 3)
    assert between.difference("b", "c") == pytest.approx((5.0, se, t.ppf(0.975, 3) * se, 3, p), rel=1e-12)
    assert between.margin("a") == pytest.approx(t.ppf(0.975, 3) * math.sqrt(16 / 3 / 2), rel=1e-12)
    grand = sum(map(sum, values.values())) / 6
    effect = sum(len(each) * (sum(each) / len(each) - grand) ** 2 for each in values.values()) / 2
    assert f_oneway(*values.values()).statistic == pytest.approx(effect / between.sd**2, rel=1e-12)


def test_trainings_of_one_seed_are_not_paired():
    """Every difference within a seed is 0.1 exactly, which as a pair would have no error at all."""
    between = between_trainings({"new": [0.1, 1.1, 2.1], "old": [0.0, 1.0, 2.0]})
    p = 2 * t.sf(0.1 / math.sqrt(2 / 3), 4)
    found = between.difference("new", "old")
    assert found == pytest.approx((0.1, math.sqrt(2 / 3), t.ppf(0.975, 4) * 0.81649658, 4, p))


def test_intervals_between_trainings_cover_the_truth():
    rng, hits, trials = np.random.default_rng(0), 0, 2000
    for values in rng.normal(size=(trials, 10)):
        gain = between_trainings({"a": values[:2], "b": values[2:5], "c": values[5:]}).difference("b", "a")
        hits += abs(gain.mean) < gain.margin
    assert abs(hits / trials - 0.95) < 4 * math.sqrt(0.95 * 0.05 / trials)


def test_one_training_of_each_has_no_error():
    between = between_trainings({"new": [0.1], "old": [0.0]})
    assert between.degrees == 0
    assert between.difference("new", "old").mean == pytest.approx(0.1)
    gain = between.difference("new", "old")
    assert all(map(math.isnan, [gain.se, gain.margin, gain.p, between.margin("new"), between.sd]))
    assert math.isnan(student(0))
    with pytest.raises(ValueError, match="at least one training; old has none"):
        between_trainings({"new": [0.1], "old": []})
    with pytest.raises(ValueError, match="a difference needs two configurations; got new twice"):
        between.difference("new", "new")


def plan(seeds=(0, 1), **options):
    claims = [
        Question("rises", [(("m", 2), ("m", 1))]),
        Question("falls", [(("m", 1), ("m", 2))]),
        Question("finds classes", [(("m", 2), ("m", 1))], "svm"),
    ]
    return Trainings(
        [Variant("m", 1, "digits"), Variant("m", 2, "digits", {"model.components": 2})],
        claims, {"training.epochs": 1}, seeds=seeds, represent=True, **options,
    )  # fmt: skip


def cell(path, asked, log_px, score, draws):
    """A run as if it were trained and evaluated."""
    data = runs.open_data(asked.data)
    model = config.build(asked.model, data.shape)
    goal = {"epochs": 1, "patience": None}
    about = {"name": "digits", "origin": data.origin, "relative": None, "sizes": {"test": 400}}
    store = RunStore(path, recipe_of(asked, data), goal, {"data": about}, config=asdict(asked), text="")
    store.begin()
    rows = [{"epoch": 1, "best_epoch": 1, "validation": -2.0, "bound": -2.0, "seconds": 1}]
    progress = {"epoch": 1, "step": 0, "best_epoch": 1, "best": -2.0, "seconds": 1.0}
    store.commit(b"state", weights_to_bytes(model.state_dict()), rows, progress)
    store.close()
    run = runs.open_run(path)
    size = asked.model.components
    made = Identity(data.sha256(), "test", 400, "0", size, draws // size, 0, "refined", weights=run.weights_sha256)
    elbo = log_px - 1 / size - 0.5 * log_px  # a posterior that is better where the model is worse
    results = {
        "elbo": elbo.mean(), "nll_miselbo": 2.5, "nll_pooled": 0.1 - log_px.mean(), "nll": -log_px.mean(),
        "nll_se": 0.05, "nll_bias": 0.02, "tight": False, "kl_posterior": 0.3, "jsd": 0.1, "effective_components": 1.1,
        "parameters": 10, "train_seconds": 1800.0, "bits_per_dim": None, "pareto_k_unreliable": 0.2,
        "total_draws": 4, "examples": len(log_px), "data_sha256": "0", "data": "digits", "split": "test",
        "nll_pooled_se": 0.05, "components": size,
    }  # fmt: skip
    bounds = {"log_px": log_px, "pooled": log_px - 0.1, "elbo": elbo}
    save_evaluation(run.layout.evaluations / f"{made.key}.json", Evaluation(made, bounds, results))
    scores = {
        "identity": {"split": "test", "weights": run.weights_sha256},
        "scores": {"mean and std": {"svm": [score] * 2}},
    }
    commit(run.layout.evaluations / "representation-test-0.json", scores, {})


@pytest.fixture
def cells(tmp_path, monkeypatch):
    """Two seeds of S = 1 and 2 whose gains are known."""
    monkeypatch.setattr(pictures, "latent_pictures", lambda run, say: {})
    monkeypatch.setattr(trainings, "scores_of", lambda run: dict(runs.representations(run))["test"].scores)
    rng = np.random.default_rng(0)
    base = rng.normal(size=(2, 400))
    gain = np.array([[1.3], [1.5]]) + rng.normal(size=(2, 400))
    asked = plan().grid(tmp_path).cells
    for seed in range(2):
        for draws in (8, 1000):
            path = tmp_path / str(draws)
            cell(path / f"m-S1-seed{seed}", asked[f"m-S1-seed{seed}"], base[seed], 0.5 + 0.01 * seed, draws)
            more = base[seed] + gain[seed]
            cell(path / f"m-S2-seed{seed}", asked[f"m-S2-seed{seed}"], more, 0.6 + 0.05 * seed, draws)
    return tmp_path / "1000", base, gain


def pooled_by_loops(one, two):
    """Gain of the second of two configurations of two trainings each, and its half width."""
    s2 = sum((y - sum(ys) / 2) ** 2 for ys in (one, two) for y in ys) / 2
    return sum(two) / 2 - sum(one) / 2, math.sqrt(s2 * (1 / 2 + 1 / 2)) * t.ppf(0.975, 2)


def test_errors_of_several_seeds_are_between_trainings(cells):
    out, base, gain = cells
    found = plan().carry_out(out, runner=LOCAL, progress=SILENT)
    one, two = found.table
    assert "gain" not in one
    mean, half = pooled_by_loops(base.mean(1), (base + gain).mean(1))
    assert (two["gain"], two["gain_margin"], two["degrees_of_freedom"]) == pytest.approx((mean, half, 2))
    assert two["gain_se"] == pytest.approx(gain.mean(0).std(ddof=1) / 20), "over examples: stored, not shown"
    assert two["nll_margin"] == pytest.approx(half / math.sqrt(2))
    shown = [column.text(two) for column in found.columns]
    assert f"{mean:+.3f} ± {half:.3f}? *" in shown
    assert f"{two['nll']:.2f} ± {half / math.sqrt(2):.2f}? *".replace("-", "−") in shown
    assert {column.title.partition(" ± ")[2] for column in found.columns} == {"", "between trainings"}
    assert (two["svm"], one["svm"]) == (pytest.approx(0.625), pytest.approx(0.505))
    assert two["svm_std"] == pytest.approx(0.05 / math.sqrt(2))
    assert (two["train_seconds"], one["draws_per_step"], two["draws_per_step"]) == (1800.0, 1, 2)
    assert [verdict.holds for verdict in found.verdicts] == [None, None, True], "log p(x) is not tight"
    assert found.verdicts[0].evidence.endswith(", not tight")
    _, half = pooled_by_loops((0.50, 0.51), (0.60, 0.65))
    assert f"+0.12 ± {half:.2g}" in found.verdicts[2].evidence
    assert f"0.625 ± {half / math.sqrt(2):.3f}" in shown
    told = "m S = 1, m S = 2: not tight: estimated bias up to 0.020 nats, k̂ unreliable for up to 20% of the examples"
    assert found.draws == {"m S = 2 over m S = 1": (2, 1), "m S = 1 over m S = 2": (1, 2)}
    assert found.notes == [
        f"{told}, so that errors marked ? are not to be relied on: use more draws.",
    ]
    assert not any(ONE_TRAINING in note for note in found.notes)
    assert "between trainings" in found.figure.axes[0].get_xlabel()
    found.figure.canvas.draw()


def test_a_copy_is_no_training_of_another_seed(cells):
    """A run whose record had been given another seed was one more training."""
    out = cells[0]
    shutil.rmtree(out / "m-S2-seed1")
    shutil.copytree(out / "m-S2-seed0", out / "m-S2-seed1")
    record = read_json(out / "m-S2-seed1" / "run.json")
    record["recipe"]["identity"]["seed"] = 1
    resealed(out / "m-S2-seed1" / "run.json", record)
    with pytest.raises(
        ValueError, match="m-S2-seed1 has the weights of m-S2-seed0, which was trained with another seed"
    ):
        plan().carry_out(out, runner=LOCAL, progress=SILENT)


def test_an_evaluation_is_of_the_recipe_of_its_run(cells):
    run = cells[0] / "m-S2-seed0"
    (path,) = run.glob("evaluations/*refined.json")
    stored = read_json(path)
    own = runs.open_run(run).recipe.sha256
    for recipe, found in ((own, True), ("0" * 64, False)):
        stored["identity"]["recipe"] = recipe
        resealed(path, stored)
        assert (runs.find_evaluation(run, 1000, examples=400) is not None) is found
    with pytest.raises(FileNotFoundError, match="has no evaluation of its weights"):
        runs.evaluation_of(run)


def test_an_amendment_without_a_better_epoch_keeps_evaluations():
    """They were taken for those of other weights, which had not changed."""
    first, second = ({"epoch": epoch, "step": 0, "learning_rate": [1e-3 / (1 + epoch)]} for epoch in (0, 1))
    run = SimpleNamespace(weights_sha256="w", recipe=Recipe({"seed": 0}, (first, second)))
    for recipe, is_of in (
        (run.recipe, True), (Recipe({"seed": 0}, (first,)), True), (Recipe({"seed": 0}, (second,)), False),
        (Recipe({"seed": 1}, (first, second)), False),
    ):  # fmt: skip
        made = Identity("d", "test", 9, None, 1, 10, 0, weights="w", recipe=recipe.sha256)
        assert is_current(made, run) is is_current(asdict(made), run) is is_of
        assert not is_current({**asdict(made), "weights": "v"}, run)
    assert is_current({"weights": "w"}, run), "scores of latents do not record the recipe"
    assert not is_current(None, run)


def resealed(path, content):
    """Write a record with a checksum that is right, as its owner could."""
    content = {name: value for name, value in content.items() if name != "checksum"}
    write_json(path, content | {"checksum": checksum(canonical(content))})


def test_one_seed_decides_nothing_and_says_so(cells):
    """Claims were judged by errors over the images of a single training."""
    found = plan(seeds=(1,)).carry_out(cells[0], runner=LOCAL, progress=SILENT)
    assert [verdict.holds for verdict in found.verdicts] == [None] * 3
    assert all(ONE_TRAINING in verdict.evidence for verdict in found.verdicts)
    assert any(ONE_TRAINING in note for note in found.notes)
    assert {column.title.partition(" ± ")[2] for column in found.columns} == {"", "over examples"}
    row = found.table[1]
    assert f"{row['gain']:+.3f} ± {row['gain_se']:.3f}? *" in [column.text(row) for column in found.columns]
    assert ONE_TRAINING in found.figure.axes[0].get_xlabel().replace("\n", " ")


def test_a_report_groups_trainings_that_differ_in_seed(cells, capsys):
    out, base, gain = cells
    paths = sorted(out.glob("m-*"))
    comparison = reports.compare(paths)
    one, two = comparison.configurations
    assert [row["trainings"] for row in (one, two)] == [2, 2]
    assert [row["seeds"] for row in (one, two)] == [[0, 1], [0, 1]]
    mean, half = pooled_by_loops(base.mean(1), (base + gain).mean(1))
    assert (two["gain"], two["gain_margin"], two["gain_se"]) == pytest.approx((mean, half, half / t.ppf(0.975, 2)))
    assert one["nll"] == pytest.approx(-base.mean())
    assert "gain" not in one
    assert not any(ONE_TRAINING in note for note in comparison.warnings)
    assert any("unequal draws per step (S·L): S = 2 (2, 1)" in note for note in comparison.warnings)
    assert "between trainings" in comparison.figure.axes[0].get_xlabel()
    show_comparison(comparison)
    shown = capsys.readouterr().out
    assert f"{mean:+.3f} ± {half:.3f}" in shown
    assert "m-S2-seed0 and 1 more" in shown
    assert "gain ± over examples" not in [column.title for column in comparison.columns]
    assert max(map(len, (line for line in shown.splitlines() if not line.startswith("note: ")))) <= 120


def three_parts(base, gain):
    """ΔELBO, Δ log p(x) and −ΔKL of every training of both models, by loops: [part][model][seed]."""
    values = [[[], []], [[], []], [[], []]]
    for model, size in enumerate((1, 2)):
        for seed in range(2):
            log_px = [b + (g if size == 2 else 0.0) for b, g in zip(base[seed], gain[seed], strict=True)]
            elbo = [each - 1 / size - 0.5 * each for each in log_px]
            kl = [p - e for p, e in zip(log_px, elbo, strict=True)]
            for part, one in zip(values, (elbo, log_px, [-each for each in kl]), strict=True):
                part[model].append(math.fsum(one) / len(one))
    return values


def test_errors_of_the_split_are_each_between_trainings(cells):
    """The parts are anti-correlated, so that adding their errors in squares would be twice too much."""
    out, base, gain = cells
    row = reports.compare(sorted(out.glob("m-*"))).configurations[1]
    found = plan().carry_out(out, runner=LOCAL, progress=SILENT).table[1]
    for part, (one, two) in zip(("elbo", "model", "posterior"), three_parts(base, gain), strict=True):
        for made in (row, found):
            shown = made[f"gain_{part}"], made[f"gain_{part}_margin"]
            assert shown == pytest.approx(pooled_by_loops(one, two), rel=1e-9)
    assert row["gain_model"] + row["gain_posterior"] == pytest.approx(row["gain_elbo"], abs=1e-12)
    apart = math.hypot(row["gain_model_margin"], row["gain_posterior_margin"])
    assert row["gain_elbo_margin"] < apart / 2


def retrained(run, **changed):
    """The same run, as if it had been trained otherwise."""
    identity = run.recipe.identity
    made = Recipe({**identity, "training": {**identity["training"], **changed}}, run.recipe.journal)
    return type("Other", (type(run),), {"recipe": made})(run.path)


def test_gains_over_another_bound_are_not_split(cells):
    one, two = (runs.open_run(cells[0] / f"m-S{s}-seed0") for s in (1, 2))
    other = retrained(two, bound="mixvae.bounds.iwelbo", draws_per_component=5)
    comparison = reports.compare([one, other])
    row = comparison.table[1]
    assert "gain" in row
    assert not [key for key in row if key.startswith(("gain_elbo", "gain_model", "gain_posterior"))]
    assert not comparison.has_splits
    assert any("in log p(x) only" in note for note in comparison.warnings)
    assert row["slack"] is None, "the trained bound was not evaluated"
    assert comparison.table[0]["slack"] == pytest.approx(-comparison.table[0]["nll"] - comparison.table[0]["elbo"])
    for name, value in (("beta", 4.0), ("free_bits", 8.0)):
        other_kl = retrained(two, **{name: value})
        comparison = reports.compare([one, other_kl])
        assert not comparison.has_splits, "of another weight of the KL part"
        assert comparison.table[1]["slack"] is None, "no bound was trained"
        assert reports.compare([other_kl, retrained(one, **{name: value})]).has_splits
    more = retrained(two, bound="mixvae.bounds.iwelbo", draws_per_component=9)
    assert not reports.compare([other, more]).has_splits, "another number of draws is another bound"
    assert reports.compare([one, retrained(two, draws_per_component=9)]).has_splits, "but not of the ELBO"
    for draws, alike in ((2, True), (1, False)):
        single, mixture = (retrained(run, bound="mixvae.bounds.pooled") for run in (one, two))
        single = retrained(single, draws_per_component=draws)
        assert reports.compare([single, mixture]).has_splits == alike, "the pooled bound has S·L draws"


def test_evaluations_with_unequal_draws_are_told(cells):
    """As many draws of each component are more in all: reports said so, and experiments did not."""
    out, asked = cells[0].parent / "each", plan(draws_per_component=4)
    for name, made in asked.grid(out).cells.items():
        cell(out / name, made, cells[1][0] + made.seed, 0.5, 4 * made.model.components)
    notes = asked.carry_out(out, runner=LOCAL, progress=SILENT).notes
    [told] = [note for note in notes if note.startswith("Evaluated with unequal")]
    assert told == (
        "Evaluated with unequal total draws: m S = 2 over m S = 1 (8, 4); m S = 1 over m S = 2 (4, 8): a gain may be "
        "that of the evaluation."
    )


def test_a_configuration_of_one_training_is_told(cells):
    """Five warm starts were five configurations of one training each, whose errors were those of the others."""
    several = sorted(cells[0].glob("m-*"))
    assert not any("One training of" in note for note in reports.compare(several).warnings)
    [told] = [note for note in reports.compare(several[:3]).warnings if "One training of" in note]
    assert told.startswith("One training of m-S2-seed0: its error is that of the other configurations.")


def test_what_is_not_tight_is_marked_in_table_page_and_plot(cells, tmp_path, capsys):
    paths = sorted(cells[0].glob("m-*-seed0"))
    comparison = reports.compare(paths)
    show_comparison(comparison)
    shown = capsys.readouterr().out
    assert f"{comparison.table[0]['nll']:.2f} ± 0.05? *".replace("-", "−") in shown
    assert "* not tight" in shown
    assert "this error is not to be relied on" in shown
    for figure in (comparison.figure, comparison.splits):
        assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == [
            "S\u00a0=\u00a02 (not tight;\nbar unreliable)"
        ]
    first, columns = comparison.table[0], comparison.columns
    trainings = {"columns": columns, "rows": reports.table(columns, comparison.table)}
    rest = {"configurations": None, "warnings": [], "gains": "", "splits": "", "curves": "", "sections": []}
    page = reports.render("report.html", tmp_path / "r.html", first=first, trainings=trainings, **rest)
    assert page.read_text().count(">not tight</span>") == 2 + 1 + 2 + 2, "NLL, gain, its parts and slack"
    main(["list", str(cells[0])])
    assert "? *" in capsys.readouterr().out


def test_columns_without_a_value_are_not_shown(capsys):
    columns = [reports.Column("run", "run"), reports.Column("S", "S", digits=0), reports.Column("gain", "gain")]
    show_rows([*columns, reports.Column("JSD", "jsd")], [{"run": "a", "S": 2, "jsd": 0.5}], "title")
    shown = capsys.readouterr().out
    assert "0.50" in shown
    assert "gain" not in shown


def test_single_trainings_are_told_to_say_nothing(cells, capsys):
    comparison = reports.compare(sorted(cells[0].glob("m-*-seed0")))
    assert not comparison.has_several
    show_comparison(comparison)
    shown = capsys.readouterr().out
    assert "gain ± over examples" in [column.title for column in comparison.columns]
    assert shown.count(ONE_TRAINING) == 1
    assert ONE_TRAINING in comparison.figure.axes[0].get_xlabel().replace("\n", " ")
    assert ONE_TRAINING in repr(comparison)
    alone = reports.compare([cells[0] / "m-S1-seed0"])
    assert not any(ONE_TRAINING in note for note in alone.warnings), "nothing is compared"


def test_copies_of_a_training_are_one_training(cells, tmp_path):
    """A copy would bring a degree of freedom and no variance."""
    own, copy = cells[0] / "m-S1-seed0", tmp_path / "copy"
    shutil.copytree(own, copy)
    comparison = reports.compare([own, copy, cells[0] / "m-S2-seed0"])
    assert [row["trainings"] for row in comparison.configurations] == [1, 1]
    assert any("m-S1-seed0, copy: the same recipe and seed" in note for note in comparison.warnings)
    assert any(ONE_TRAINING in note for note in comparison.warnings)


def test_a_configuration_is_a_recipe_but_for_its_seed():
    def run(seed=0, latent=2, rate=1e-3, epochs=9, epoch=9, is_done=True):
        entry = {"epoch": 0, "step": 0, "learning_rate": [rate], "weight_decay": [0.0], "clip": None}
        recipe = Recipe({"model": {"latent": latent}, "seed": seed}, (entry,))
        manifest = {"goal": {"epochs": epochs, "patience": None}}
        return SimpleNamespace(recipe=recipe, manifest=manifest, is_done=is_done, epoch=epoch)

    own = configuration_of(run())
    assert configuration_of(run(seed=1)) == own
    assert configuration_of(run(epoch=7)) == own, "it stopped early by its patience"
    for other in (run(latent=3), run(rate=1e-2), run(epochs=18), run(epoch=7, is_done=False)):
        assert configuration_of(other) != own


def test_some_models_bring_the_claims_about_them_and_no_others():
    plan = EXPERIMENTS["big_iwae"].scales["paper"]
    some = plan.changed(Changes(models=["mixture", "deep IWAE"]))
    assert {variant.model for variant in some.variants} == {"mixture", "deep IWAE"}
    assert [pair for question in some.questions for pair in question.pairs] == [
        (("mixture", s), ("deep IWAE", s)) for s in (1, 2, 3)
    ]
    assert plan.changed(Changes(models=["mixture"])).questions == []
    with pytest.raises(ValueError, match="deep IWAE is compared with mixture: name both"):
        plan.changed(Changes(models=["deep IWAE"]))


def test_table_wider_than_the_terminal_is_split_and_never_cut(cells, capsys):
    out = cells[0]
    found = plan().carry_out(out, runner=LOCAL, progress=SILENT)
    show_rows([*found.columns, *found.columns[2:], *found.columns[2:]], found.table, "title")
    shown = capsys.readouterr().out
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) <= PAGE
    blocks = [[line for line in block.split("┡")[0].splitlines() if "┃" in line] for block in shown.split("┏")[1:]]
    cells = [zip(*(line.split("┃")[1:-1] for line in lines), strict=True) for lines in blocks]
    heads = [[" ".join(" ".join(cell).split()) for cell in head] for head in cells]
    assert len(heads) > 1
    assert all(head[:2] == ["model", "S"] for head in heads)
    kept = [column.title for column in found.columns[2:] if not column.page_only]
    assert [cell for head in heads for cell in head[2:]] == kept * 3


def test_commands_are_those_of_the_cells(cells):
    out = cells[0].parent / "8"
    commands = plan(total_draws=8).carry_out(out, runner=LOCAL, progress=SILENT).commands
    assert len(commands) == 8
    assert (
        commands[2] == f"mixvae train digits --training.epochs=1 --model.components=2 --seed=0 --out {out}/m-S2-seed0"
    )
    assert commands[3] == f"mixvae evaluate {out}/m-S2-seed0 --total-draws 8 --representation"


@pytest.mark.usefixtures("cells_here")
@pytest.mark.parametrize("name", TRAINED)
def test_every_model_can_be_named_alone(name):
    """`--models` was split at the comma of `rotated, latent 2`."""
    known = [variant.model for variant in TRAINED[name].scales["small"].variants]
    for model in dict.fromkeys(known):
        assert Changes(models=names(model)).models_of(known) == [model]


def test_what_is_done_is_not_done_again_and_the_page_says_it(tmp_path, capsys, monkeypatch):
    out = tmp_path / "latents"
    words = ["reproduce", "latents", "--scale", "smoke", "--out", str(out)]
    main(words)
    shown = capsys.readouterr().out
    assert "exploratory, not decided: The likelihood rises" in shown
    assert "says nothing about the claims" in shown
    assert ONE_TRAINING in shown
    trained = {path: path.stat().st_mtime_ns for path in out.glob("*-seed*/*") if path.is_file()}
    assert len(trained) >= 8
    results = read_json(out / "results.json")
    assert results["command"] == f"mixvae reproduce latents --scale smoke --out {out}"
    assert {verdict["verdict"] for verdict in results["verdicts"]} == {"not decided"}
    assert [row["size"] for row in results["table"]] == [1, 2]
    assert results["table"][1]["gain_se"] > 0
    page = (out / "report.html").read_text()
    assert EXPERIMENTS["latents"].claim.replace("'", "&#39;") in page
    assert f"{results['table'][1]['nll']:.2f}" in page
    assert (out / "figures" / "gains.png").stat().st_size > 5000
    main(words)
    assert trained == {path: path.stat().st_mtime_ns for path in out.glob("*-seed*/*") if path in trained}
    seen = browse(out / "report.html", tmp_path)
    assert (seen["faults"], seen["requests"]) == ([], [])
    assert all(seen["decoded"])
    assert len(seen["decoded"]) >= 6
    prints_without_weights(out, words, results, capsys, monkeypatch)


def prints_without_weights(out, words, results, capsys, monkeypatch):
    """What is published of an experiment gives the same table, and trains nothing."""
    published, begun = out.parent / "published", out / "vanilla-S1-seed9"
    begun.mkdir()
    shutil.copy(out / "vanilla-S1-seed0" / "run.json", begun)  # trained, and not evaluated
    monkeypatch.syspath_prepend(PUBLISH.parent)
    runpy.run_path(str(PUBLISH))["publish"](out, published)
    assert not (published / begun.name).exists()
    assert not list(published.rglob("*.safetensors"))
    assert sum(path.stat().st_size for path in published.rglob("*")) < 200_000
    with pytest.raises(SystemExit, match="published exists: delete it, or choose another"):
        runpy.run_path(str(PUBLISH))["publish"](out, published)
    lacking = shutil.copytree(published, out.parent / "lacking")
    shutil.rmtree(lacking / "vanilla-S2-seed0")
    with pytest.raises(SystemExit, match="lacking lacks vanilla-S2-seed0: train it"):
        runpy.run_path(str(TABLES))["found_in"](lacking)
    more = shutil.copytree(published, out.parent / "more")
    shutil.copytree(more / "vanilla-S1-seed0", more / "vanilla-S1-seed7")  # of a call with other seeds
    for script, name, arguments in ((TABLES, "found_in", (more,)), (PUBLISH, "publish", (more, out.parent / "new"))):
        shutil.copy(out / "results.json", more)
        with pytest.raises(SystemExit, match="more also holds vanilla-S1-seed7, which the command does not ask for"):
            runpy.run_path(str(script))[name](*arguments)
    for kind, fault in (("test", "no evaluation as"), ("representation", "no scores of latents as")):
        damaged = shutil.copytree(published, out.parent / f"damaged {kind}")
        (evaluation,) = (damaged / "vanilla-S1-seed0" / "evaluations").glob(f"{kind}-*.json")
        evaluation.write_text(evaluation.read_text()[:-40])
        before = {path: path.read_bytes() for path in damaged.rglob("*") if path.is_file()}
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main([*words[:-2], "--out", str(damaged)])
        assert end.value.code == 2
        assert f"vanilla-S1-seed0 has no weights and {fault} asked for, or" in capsys.readouterr().err.splitlines()[-1]
        assert before == {path: path.read_bytes() for path in damaged.rglob("*") if path.is_file()}
    command = (published / "command.txt").read_text().split()
    assert command == ["mixvae", *words[:-2]]
    main([*command[1:], "--out", str(published)])
    shown = capsys.readouterr().out
    assert "training" not in [line.partition(": ")[2] for line in shown.splitlines()]
    assert "Without weights, and hence without pictures: vanilla-S1-seed0" in shown
    again = read_json(published / "results.json")
    for old, new in zip(results["table"], again["table"], strict=True):
        assert old.keys() == new.keys()
        for name, value in old.items():
            if isinstance(value, float):
                assert new[name] == pytest.approx(value, rel=1e-5, abs=1e-5, nan_ok=True), name
            elif name != "each":
                assert new[name] == value


def refused(capsys, *words):
    with pytest.raises(SystemExit) as end:
        main(list(words))
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def test_bad_input_is_one_line(tmp_path, capsys):
    assert "unknown experiment 'latent': did you mean latents?" in refused(capsys, "reproduce", "latent")
    assert "--seeds takes numbers" in refused(capsys, "reproduce", "latents", "--seeds", "a,b")
    assert "unknown model 'vanila': did you mean vanilla?" in refused(
        capsys, "reproduce", "mnist", "--models", "vanila,vamp"
    )
    for words, told in (
        (["--seeds", "0,0"], "seeds must be different numbers"), (["--seeds="], "seeds must be different numbers"),
        (["--models="], "models must name at least one"), (["--epochs", "0"], "epochs must be at least 1"),
        (["--warmup=-1"], "warmup must be at least 0"),
    ):  # fmt: skip
        out = str(tmp_path / "refused")
        assert told in refused(capsys, "reproduce", "latents", "--scale", "smoke", "--out", out, *words)
    assert not (tmp_path / "refused").exists()
    assert "--seeds takes numbers" in refused(capsys, "reproduce", "latents", "--seeds", "²")
    assert "--seeds takes numbers" in refused(capsys, "reproduce", "latents", "--seeds", "١,٢")
    for sizes in ("²", "1,²", "١,٢", "0", "a", ""):
        assert "--components takes positive numbers" in refused(capsys, "toy", "ring", f"--components={sizes}")
    assert "seeds must be below 2**63" in refused(capsys, "reproduce", "digits", "--seeds", f"0,{2**63}")
    assert "seed must be below 2**63" in refused(capsys, "train", "digits", "--seed", str(2**63))
    (tmp_path / "taken").mkdir()
    for content in ('{"experiment": "digits", "seconds": 9}', '{"nll": 3}', "[]", "3"):
        (tmp_path / "taken" / "results.json").write_text(content)
        told = refused(capsys, "reproduce", "latents", "--scale", "smoke", "--out", str(tmp_path / "taken"))
        assert "not of latents: choose another --out" in told
    assert len(list((tmp_path / "taken").iterdir())) == 1
    assert "trains no models of data" in refused(capsys, "reproduce", "toys", "--epochs", "3")
    assert "jobs must be at least 1" in refused(
        capsys, "reproduce", "latents", "--jobs", "0", "--scale", "smoke", "--out", str(tmp_path / "x")
    )


def test_all_are_listed(capsys):
    main(["reproduce", "--list"])
    shown = capsys.readouterr().out
    assert all(name in shown for name in EXPERIMENTS)


@pytest.mark.usefixtures("cells_here")
def test_a_training_that_fails_is_told_and_the_rest_stays(tmp_path):
    wild = {"model.components": 2, "training.optimizer.lr": 1e20}
    small = {"data.limit": 100, "training.epochs": 2, "model.latent": 2}
    failing = Trainings(
        [Variant("m", 1, "digits"), Variant("m", 2, "digits", wild)], [], small, total_draws=4, examples=10
    )
    with pytest.raises(Failed, match="m-S2-seed0: "):
        failing.carry_out(tmp_path, runner=LOCAL, progress=SILENT)
    assert runs.find_evaluation(tmp_path / "m-S1-seed0", 4, examples=10) is not None
