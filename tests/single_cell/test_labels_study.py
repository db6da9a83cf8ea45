"""The transfer of labels: scores against scikit-learn, what is hidden stays hidden, and results that are read again."""

import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.special import softmax
from sklearn import metrics

from mixvae import cli
from mixvae.evaluation import Evaluation, Identity
from mixvae.reports import student
from mixvae.reproduce import EXPERIMENTS
from mixvae.reproduce.cells import labels
from mixvae.reproduce.cells.label_plan import SCORES, label_table
from mixvae.reproduce.cells.label_scores import calibration_error, label_scores
from mixvae.reproduce.cells.labels import Settings, Source, hide, transfer, transfers
from mixvae.reproduce.findings import Changes
from mixvae.runs._stored import read_evaluation, save_evaluation
from mixvae.single_cell import runs

DOCS = Path(__file__).parents[2] / "docs"
SETTINGS = Settings(epochs=2, warmup=1, label_epochs=2)
LISTED = transfers(["few"], [0.2, 0.5], [2], [3])


def of(cells, key="kind"):
    return {"few": Source(lambda: cells.copy(), key)}


@pytest.fixture(scope="module")
def transferred(real, tmp_path_factory):
    """Folder and results of a few transfers; not to be changed."""
    folder = tmp_path_factory.mktemp("labels")
    return folder, tuple(transfer(folder, LISTED, SETTINGS, sources=of(real)))


@pytest.fixture
def copied(transferred, tmp_path):
    """A copy of the results, without the pretrained models."""
    for path in transferred[0].glob("few-hidden*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


@pytest.fixture
def unpretrained(monkeypatch):
    """Training a model without labels is an error."""

    def fit(*args, **kwargs):
        raise AssertionError("it trains")

    monkeypatch.setattr(runs, "fit", fit)


def files(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("cells", [1, 7, 400])
def test_scores_of_labels_are_scikit_learns(cells):
    rng = np.random.default_rng(cells)
    probability = softmax(rng.normal(0, 2, (cells, 6)) - [0, 0, 0, 0, 0, 50], 1)
    label = rng.integers(0, 4, cells)  # one class has no cell, the last is not predicted either
    scores = label_scores(probability, label)
    predicted = probability.argmax(1)
    assert scores["accuracy"] == pytest.approx(metrics.accuracy_score(label, predicted), abs=1e-12)
    assert scores["f1"] == pytest.approx(metrics.f1_score(label, predicted, average="macro"), abs=1e-12)
    assert scores["log_loss"] == pytest.approx(metrics.log_loss(label, probability, labels=range(6)), abs=1e-12)
    brier = metrics.brier_score_loss(label, probability, labels=range(6), scale_by_half=False)
    assert scores["brier"] == pytest.approx(brier, abs=1e-12)


def test_calibration_error_is_that_of_a_loop_over_bins():
    rng = np.random.default_rng(0)
    probability = softmax(rng.normal(0, 2, (300, 4)), 1)
    probability[:20] = np.eye(4)[rng.integers(0, 4, 20)]  # on the last edge
    probability[20:30] = [0.5, 0.5, 0.0, 0.0]  # on an edge of four bins
    label = np.where(probability.max(1) < 0.5, probability.argmax(1), rng.integers(0, 4, 300))
    label[20:30] = 3  # too sure on the edge, in a bin that is not sure enough
    for bins in (1, 4, 15):
        expected = 0.0
        for b in range(bins):
            inside = [
                (p.max(), p.argmax() == y)
                for p, y in zip(probability, label, strict=True)
                if b / bins < p.max() <= (b + 1) / bins
            ]
            if inside:
                confidence, right = np.mean(inside, 0)
                expected += len(inside) / 300 * abs(right - confidence)
        assert calibration_error(probability, label, bins) == pytest.approx(expected, abs=1e-12)


def test_a_probability_of_zero_has_a_finite_log_loss():
    scores = label_scores(np.array([[1.0, 0.0]], np.float32), np.array([1]))
    assert scores["log_loss"] == pytest.approx(126 * math.log(2))
    with pytest.raises(ValueError, match="need cells with labels from 0 to 1"):
        label_scores(np.ones((1, 2)), np.array([2]))


def test_labels_are_hidden_by_type_and_never_all():
    types = np.array(["B"] * 40 + ["T"] * 25 + ["rare"] * 2 + ["single"])
    for share in (0.1, 0.5, 0.9):
        hidden = hide(types, share, seed=1)
        for name, count in zip(*np.unique(types, return_counts=True), strict=True):
            assert hidden[types == name].sum() == min(round(share * count), count - 1)
        assert (hidden == hide(types, share, seed=1)).all()
        assert (hidden != hide(types, share, seed=2)).any()
    with pytest.raises(ValueError, match="must be between 0 and 1; got 1"):
        hide(types, 1, seed=0)


def test_stored_predictions_give_the_scores_again(transferred, real):
    kinds = real.obs["kind"].to_numpy()
    for one, made in zip(LISTED, transferred[1], strict=True):
        hidden = hide(kinds, one.hidden, 3)
        assert (np.flatnonzero(hidden) == made.bounds["cell"]).all()
        assert (np.array(made["types"])[made.bounds["label"]] == kinds[hidden]).all()
        assert np.allclose(made.bounds["probability"].sum(1), 1, atol=1e-5)
        scores = label_scores(made.bounds["probability"], made.bounds["label"])
        assert scores == {name: made[name] for name in SCORES}


def test_models_of_one_seed_share_their_hidden_cells(transferred):
    results = transferred[1]
    assert [one.job.kind for one in LISTED] == ["scvi", "scvi", "mixture", "mixture"]
    for scanvi, mixture in zip(results[:2], results[2:], strict=True):
        assert scanvi["hidden_sha256"] == mixture["hidden_sha256"]
        assert (scanvi.bounds["probability"] != mixture.bounds["probability"]).any()


def test_hidden_labels_do_not_reach_the_model(transferred, real, tmp_path, monkeypatch):
    kinds = real.obs["kind"].to_numpy()
    hidden = hide(kinds, 0.5, 3)
    monkeypatch.setattr(labels, "hide", lambda *_: hidden)
    other = real.copy()
    other.obs["kind"] = np.where(hidden, kinds[::-1], kinds)
    assert (other.obs["kind"] != kinds).any()
    for one, made in zip(LISTED[1::2], transferred[1][1::2], strict=True):
        again = transfer(tmp_path, [one], SETTINGS, sources=of(other))[0]
        assert (again.bounds["probability"] == made.bounds["probability"]).all()
        assert again["log_loss"] != made["log_loss"]


def test_a_copy_of_the_results_is_read_without_cells(copied, transferred, unpretrained):
    before = files(copied)
    again = transfer(copied, LISTED, SETTINGS, sources={})
    assert [one.results for one in again] == [one.results for one in transferred[1]]
    assert files(copied) == before


def test_a_lost_transfer_is_made_again_bit_for_bit(transferred, real, tmp_path, unpretrained):
    folder = shutil.copytree(transferred[0], tmp_path / "labels")
    for one, made in zip(LISTED[::3], transferred[1][::3], strict=True):
        path = folder / f"{one.name}.npz"
        path.write_bytes(path.read_bytes()[:-10])
        again = transfer(folder, LISTED, SETTINGS, sources=of(real))[LISTED.index(one)]
        assert (again.bounds["probability"] == made.bounds["probability"]).all()
        assert again.identity == made.identity


def test_a_transfer_from_other_weights_is_made_again(transferred, real, tmp_path):
    """Once its pretrained model was trained anew, its old result was believed."""
    folder = shutil.copytree(transferred[0], tmp_path / "labels")
    first = LISTED[0]
    path = folder / f"{first.name}.json"
    old = read_evaluation(path)
    save_evaluation(path, replace(old, identity=replace(old.identity, weights="0" * 64)))
    again = transfer(folder, LISTED, SETTINGS, sources=of(real))[0]
    assert again.identity == old.identity


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"label_epochs": 3}, "label_epochs is 2, not 3"),
        ({"epochs": 4}, "epochs is 2, not 4"),
        ({"per_label": 5}, "per_label is 100, not 5"),
    ],
)
def test_transfers_of_other_settings_are_refused(copied, unpretrained, changed, what):
    with pytest.raises(ValueError, match=rf"few-hidden20-scvi-S1-seed3.json was made with something else: {what}"):
        transfer(copied, LISTED, Settings(**{"epochs": 2, "warmup": 1, "label_epochs": 2} | changed), sources={})


def test_transfers_of_other_cells_or_labels_are_refused(copied, real, unpretrained):
    (copied / f"{LISTED[-1].name}.json").unlink()
    for cells, key, what in ((real[::-1], "kind", "observations is"), (real, "donor", "labels_sha256 is")):
        with pytest.raises(ValueError, match=what):
            transfer(copied, LISTED, SETTINGS, sources=of(cells, key))


def made_up(data, hidden, kind, seed, accuracy, *, observations="a"):
    identity = Identity("d", "hidden", 10, observations, 1, draws_per_component=0, seed=seed)
    results = dict.fromkeys(SCORES, accuracy) | {
        "data": data,
        "hidden": hidden,
        "job": {"kind": kind, "components": 1 if kind == "scvi" else 3, "seed": seed},
        "observations": observations,
        "labels_sha256": "l",
        "examples": 10,
    }
    return Evaluation(identity, {}, results)


def test_changes_pool_variances_within_a_setting_only():
    values = {
        (0.1, "scvi"): [0.7, 0.8, 0.6],
        (0.1, "mixture"): [0.8, 0.8, 0.7],
        (0.5, "scvi"): [0.75, 0.76, 0.74],
        (0.5, "mixture"): [0.74, 0.76, 0.75],
    }
    rows = label_table(
        [made_up("few", share, kind, seed, v) for (share, kind), vs in values.items() for seed, v in enumerate(vs)]
    )
    assert [(row["setting"], row["model"], row["seeds"]) for row in rows] == [
        ("few, 10 %", "scANVI", 3), ("few, 10 %", "mixture, S = 3", 3),
        ("few, 50 %", "scANVI", 3), ("few, 50 %", "mixture, S = 3", 3),
    ]  # fmt: skip
    for row, share in ((rows[1], 0.1), (rows[3], 0.5)):
        old, new = np.array(values[share, "scvi"]), np.array(values[share, "mixture"])
        sd = math.sqrt((old.var(ddof=1) + new.var(ddof=1)) / 2)
        assert row["accuracy_margin"] == pytest.approx(student(4) * sd / math.sqrt(3))
        assert row["accuracy_change"] == pytest.approx(new.mean() - old.mean())
        assert row["accuracy_change_margin"] == pytest.approx(student(4) * sd * math.sqrt(2 / 3))
        assert row["accuracy_paired_margin"] == pytest.approx(student(2) * (new - old).std(ddof=1) / math.sqrt(3))
    with pytest.raises(ValueError, match="some results of few are of others"):
        label_table([made_up("few", 0.1, "scvi", 0, 0.5), made_up("few", 0.1, "scvi", 1, 0.5, observations="b")])


def test_the_experiment_on_labels_is_one_command(copied, monkeypatch, capsys, unpretrained, as_users_run):
    plan = EXPERIMENTS["labels"].scales["small"]
    assert [one.name for one in transfers(plan.data, plan.hidden, plan.sizes, plan.seeds)][:4] == [
        "pbmc68k-hidden10-scvi-S1-seed0", "pbmc68k-hidden50-scvi-S1-seed0",
        "pbmc68k-hidden10-mixture-S3-seed0", "pbmc68k-hidden50-mixture-S3-seed0",
    ]  # fmt: skip
    assert plan.changed(Changes(seeds=[7], epochs=9)).settings == {"epochs": 9}
    assert Settings(**plan.settings) == Settings()
    assert set(EXPERIMENTS["labels"].scales["paper"].data) == set(labels.SOURCES)
    with pytest.raises(ValueError, match="leave out models"):
        plan.changed(Changes(models=["mixture"]))
    accuracies = {"scvi": (0.5, 0.51), "mixture": (0.75, 0.76)}
    rows = [made_up("few", 0.5, kind, seed, v) for kind, each in accuracies.items() for seed, v in enumerate(each)]
    monkeypatch.setattr(labels, "transfer", lambda *_, **__: rows)
    cli.main(["reproduce", "labels", "--out", str(copied)])
    text = capsys.readouterr().out
    assert "holds: Hidden labels are predicted better by a mixture (accuracy). (few, 50 % hidden, S = 3" in text
    assert "does not hold: The mixture's probabilities are better (log loss)." in text


def test_the_table_of_labels_in_the_docs_is_that_of_the_data(tmp_path, unpretrained):
    folder = shutil.copytree(DOCS / "data" / "labels", tmp_path / "labels")
    listed = transfers(["pbmc68k", "cortex"], (0.1, 0.5), (3,), range(5))
    rows = label_table(transfer(folder, listed))
    page = (DOCS / "results.md").read_text()
    printed = [
        line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith(("| pbmc68k, ", "| cortex, "))
    ]
    expected = []
    for row in rows:
        shown = [f"{row[key]:.3f} ± {row[f'{key}_margin']:.3f}" for key in SCORES]
        expected.append([row["setting"], str(row["cells"]), row["model"], *shown])
        if "accuracy_change" in row:
            shown = [f"{row[f'{key}_change']:+.3f} ± {row[f'{key}_change_margin']:.3f}" for key in SCORES]
            expected.append([row["setting"], str(row["cells"]), "mixture − scANVI", *shown])
    assert printed == expected
