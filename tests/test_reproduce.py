"""Experiments of the paper by name: all are there, claims are judged rightly, and what is done is not done again."""

import math
from dataclasses import asdict

import numpy as np
import pytest
import torch
from scipy.stats import t

from browser import browse
from mixvae import config, runs
from mixvae._failures import Failed
from mixvae.cli import main
from mixvae.cli.output import PAGE, show_rows
from mixvae.evaluation import Evaluation, Identity
from mixvae.files import commit, read_json, weights_to_bytes
from mixvae.progress import SILENT
from mixvae.reproduce import EXPERIMENTS, Gap, judge, trainings
from mixvae.reproduce.findings import Changes, margin
from mixvae.reproduce.trainings import Question, Trainings, Variant
from mixvae.runs import RunStore
from mixvae.runs._recipe import recipe_of
from mixvae.runs._stored import save_evaluation

TRAINED = {name: e for name, e in EXPERIMENTS.items() if isinstance(e.scales["paper"], Trainings)}


def test_every_row_of_the_paper_is_there_at_three_scales():
    assert set(EXPERIMENTS) == {
        "toys", "mnist", "fashion_mnist", "cifar10", "big_iwae", "single_cell", "integration", "latents", "ablation",
    }  # fmt: skip
    assert all(list(e.scales) == ["smoke", "small", "paper"] for e in EXPERIMENTS.values())
    assert all(plan.cost for e in EXPERIMENTS.values() for plan in e.scales.values())


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("scale", ["smoke", "small", "paper"])
def test_every_cell_is_valid_and_every_claim_is_about_cells(tmp_path, name, scale):
    plan = TRAINED[name].scales[scale]
    grid = plan.grid(tmp_path)
    assert len(grid.cells) == len(plan.variants) * len(plan.seeds)
    keys = {variant.key for variant in plan.variants}
    for question in plan.questions:
        assert question.pairs
        assert {key for pair in question.pairs for key in pair} <= keys
    assert {plan.baseline(variant) for variant in plan.variants} <= keys
    if scale == "paper":
        assert grid.draws_per_component
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
    assert judge("x", [up, Gap("e", 1.0, 0.5, agreed=False)]).holds is None
    assert judge("x", [Gap("f", -1.0, 0.5, agreed=False)]).holds is None
    assert judge("x", []).holds is None
    assert "a: +1 ± 0.5" in judge("x", [up]).evidence


def test_margins_of_few_seeds_are_students():
    values = np.array([1.0, 2.0, 4.0])
    error = values.std(ddof=1) / math.sqrt(3)
    low, high = t.interval(0.95, 2, values.mean(), error)
    assert margin(error, 3) == pytest.approx((high - low) / 2)
    assert math.isnan(margin(error, 1))


def plan(**options):
    claims = [
        Question("rises", [(("m", 2), ("m", 1))]),
        Question("falls", [(("m", 1), ("m", 2))]),
        Question("finds classes", [(("m", 2), ("m", 1))], "svm"),
    ]
    return Trainings(
        [Variant("m", 1, "digits"), Variant("m", 2, "digits", {"model.components": 2})],
        claims, {"training.epochs": 1}, seeds=(0, 1), represent=True, **options,
    )  # fmt: skip


def cell(path, asked, pooled, score, draws):
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
    made = Identity(data.sha256(), "test", 400, "0", size, draws // size, 0, weights=run.weights_sha256)
    results = {
        "elbo": -3.0, "nll_miselbo": 2.5, "nll_pooled": -pooled.mean(), "jsd": 0.1, "effective_components": 1.1,
        "parameters": 10, "train_seconds": 1800.0, "bits_per_dim": None, "pareto_k_unreliable": 0.2,
        "total_draws": 4, "examples": len(pooled), "data_sha256": "0",
    }  # fmt: skip
    save_evaluation(run.layout.evaluations / f"{made.key}.json", Evaluation(made, {"pooled": pooled}, results))
    scores = {
        "identity": {"split": "test", "weights": run.weights_sha256},
        "scores": {"mean and std": {"svm": [score] * 2}},
    }
    commit(run.layout.evaluations / "representation-test-0.json", scores, {})


@pytest.fixture
def cells(tmp_path, monkeypatch):
    """Two seeds of S = 1 and 2 whose gains are known."""
    monkeypatch.setattr(trainings, "latent_pictures", lambda run, say: {})
    monkeypatch.setattr(trainings, "_represent", lambda run: dict(runs.representations(run))["test"].scores)
    rng = np.random.default_rng(0)
    base = rng.normal(size=(2, 400))
    gain = np.array([[0.3], [0.5]]) + rng.normal(size=(2, 400))
    asked = plan().grid(tmp_path).cells
    for seed in range(2):
        for draws in (8, 1000):
            path = tmp_path / str(draws)
            cell(path / f"m-S1-seed{seed}", asked[f"m-S1-seed{seed}"], base[seed], 0.5 + 0.01 * seed, draws)
            more = base[seed] + gain[seed]
            cell(path / f"m-S2-seed{seed}", asked[f"m-S2-seed{seed}"], more, 0.6 + 0.05 * seed, draws)
    return tmp_path / "1000", gain


def test_gains_are_paired_within_seeds_and_examples(cells):
    out, gain = cells
    found = plan().carry_out(out, jobs=1, progress=SILENT)
    one, two = found.table
    assert "gain" not in one
    assert two["gain"] == pytest.approx(gain.mean())
    assert two["gain_se"] == pytest.approx(gain.mean(0).std(ddof=1) / 20)
    assert two["gain_seed_se"] == pytest.approx(gain.mean(1).std(ddof=1) / math.sqrt(2))
    np.testing.assert_allclose(two["gain_by_seed"], gain.mean(1))
    assert (two["svm"], one["svm"]) == (pytest.approx(0.625), pytest.approx(0.505))
    assert two["svm_std"] == pytest.approx(0.05 / math.sqrt(2))
    assert two["hours"] == 0.5
    assert [verdict.holds for verdict in found.verdicts] == [True, False, None]
    assert "+0.12 ± 0.25" in found.verdicts[2].evidence  # by Student's t with one degree of freedom: 12.7 × 0.02
    assert any("Pareto k̂ exceeds 0.7 for up to 20 %" in note for note in found.notes)
    found.figure.canvas.draw()


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
    out, _ = cells
    found = plan().carry_out(out, jobs=1, progress=SILENT)
    show_rows([*found.columns, *found.columns[2:], *found.columns[2:]], found.table, "title")
    shown = capsys.readouterr().out
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) <= PAGE
    heads = [[cell.strip() for cell in line.split("┃")[1:-1]] for line in shown.splitlines() if "model" in line]
    assert len(heads) > 1
    assert all(head[:2] == ["model", "S"] for head in heads)
    assert [cell for head in heads for cell in head[2:]] == [column.title for column in found.columns[2:]] * 3


def test_commands_are_those_of_the_cells(cells):
    out = cells[0].parent / "8"
    commands = plan(total_draws=8).carry_out(out, jobs=1, progress=SILENT).commands
    assert len(commands) == 8
    assert (
        commands[2] == f"mixvae train digits --training.epochs=1 --model.components=2 --seed=0 --out {out}/m-S2-seed0"
    )
    assert commands[3] == f"mixvae evaluate {out}/m-S2-seed0 --total-draws 8 --representation"


def test_what_is_done_is_not_done_again_and_the_page_says_it(tmp_path, capsys):
    out = tmp_path / "latents"
    words = ["reproduce", "latents", "--scale", "smoke", "--out", str(out)]
    main(words)
    shown = capsys.readouterr().out
    assert "not decided: The likelihood rises" in shown
    assert "says nothing about the claims" in shown
    trained = {path: path.stat().st_mtime_ns for path in out.glob("*-seed*/*") if path.is_file()}
    assert len(trained) >= 8
    results = read_json(out / "results.json")
    assert results["command"] == f"mixvae reproduce latents --scale smoke --out {out}"
    assert {verdict["verdict"] for verdict in results["verdicts"]} == {"not decided"}
    assert [row["size"] for row in results["table"]] == [1, 2]
    assert results["table"][1]["gain_se"] > 0
    page = (out / "report.html").read_text()
    assert EXPERIMENTS["latents"].claim.replace("'", "&#39;") in page
    assert f"{results['table'][1]['nll_pooled']:.2f}" in page
    assert (out / "figures" / "gains.png").stat().st_size > 5000
    main(words)
    assert trained == {path: path.stat().st_mtime_ns for path in out.glob("*-seed*/*") if path in trained}
    seen = browse(out / "report.html", tmp_path)
    assert (seen["faults"], seen["requests"]) == ([], [])
    assert all(seen["decoded"])
    assert len(seen["decoded"]) >= 6


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
    assert "trains no models of data" in refused(capsys, "reproduce", "toys", "--epochs", "3")
    assert "jobs must be at least 1" in refused(
        capsys, "reproduce", "latents", "--jobs", "0", "--scale", "smoke", "--out", str(tmp_path / "x")
    )


def test_all_are_listed(capsys):
    main(["reproduce", "--list"])
    shown = capsys.readouterr().out
    assert all(name in shown for name in EXPERIMENTS)


def test_a_training_that_fails_is_told_and_the_rest_stays(tmp_path):
    wild = {"model.components": 2, "training.optimizer.lr": 1e20}
    small = {"data.limit": 100, "training.epochs": 2, "model.latent": 2}
    failing = Trainings(
        [Variant("m", 1, "digits"), Variant("m", 2, "digits", wild)], [], small, total_draws=4, examples=10
    )
    with pytest.raises(Failed, match="m-S2-seed0: "):
        failing.carry_out(tmp_path, jobs=1, progress=SILENT)
    assert runs.find_evaluation(tmp_path / "m-S1-seed0", 4, examples=10) is not None
