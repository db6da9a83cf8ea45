"""Results print as short tables, whatever they hold, and say what is in them."""

import re

import numpy as np
import pytest

from conftest import binary, tiny_model
from mixvae import _tables as tables
from mixvae import figures
from mixvae.analysis import Representation, overlap
from mixvae.cli.output import show_rows, show_scores
from mixvae.evaluation import Evaluation, evaluate
from mixvae.evaluation._evaluations import identity_of
from mixvae.progress import muted
from mixvae.reports import COLUMNS, CONFIGURATIONS, Column, Comparison, meanings, scores


@pytest.fixture(scope="module")
def estimate():
    """Of more examples than a screen has lines."""
    made = evaluate(tiny_model(), binary(300), 6)
    for values in made.arrays().values():
        values.setflags(write=False)
    return made


def test_an_estimate_of_many_examples_prints_in_a_few_lines(estimate):
    """It was 36,779 characters of arrays."""
    lines = repr(estimate).splitlines()
    made = "3 components, 2 draws of each, seed 0, proposal refined"
    assert lines[0] == f"Estimate of 300 examples, nats, lower is better: {made}"
    assert lines[1].split() == ["bound", "nats", "se", "mc_se"]
    assert [line.split()[0] for line in lines[2:]] == ["NLL", "pooled", "MISELBO", "−ELBO"]
    assert f"{-estimate.log_px.mean():.2f}" in lines[2]


def test_the_elbo_beside_nlls_is_named_with_its_sign(estimate):
    """A row "ELBO" held −ELBO, and nothing said which way was better."""
    rows = {row["bound"]: row["nats"] for row in estimate.table}
    assert list(rows) == ["NLL", "pooled NLL", "MISELBO NLL", "−ELBO"]
    assert rows["−ELBO"] == pytest.approx(-estimate.elbo.mean(), rel=1e-12)
    assert rows["−ELBO"] >= rows["NLL"] > 0
    assert estimate.summary()["elbo"] == pytest.approx(estimate.elbo.mean()), "results keep the bound's own sign"


def test_one_of_a_thing_has_no_plural():
    """It said "1 samples"."""
    alone = evaluate(tiny_model(1), binary(1), 1, proposal="posterior")
    labels = [
        figures.images(np.zeros((1, 1, 4, 4))),
        figures.reconstructions(np.zeros((1, 1, 4, 4)), np.zeros((1, 1, 1, 4, 4))),
        figures.latent_means(np.zeros((1, 2, 2)), None),
        figures.embedding(np.zeros((1, 2)), {"batch": np.zeros(1)}, "UMAP"),
        figures.likelihoods(np.zeros(1), np.full(1, np.nan), 0.7),
        figures.overlap(np.zeros((1, 1)), np.ones(1)),
        figures.spread(np.zeros(1), np.ones((1, 1))),
    ]
    columns, rows = scores(Representation({"1 samples": {"knn": [0.5]}, "4 samples": {"knn": [0.5]}}).table)
    assert [row["features"] for row in rows] == ["1 sample", "4 samples"]
    for text in (alone.title, *(label.get_label() for label in labels), columns[1].hint):
        assert re.search(r"\b1 (example|original|picture|component|repetition)\b", text), text
        assert not re.search(r"\b1 [a-z]+s\b", text), text


def test_abbreviations_under_a_table_are_explained_once(capsys):
    """KNN, JSD and the rest stood there alone."""
    row = {"run": "a", "components": 2, "nll": 9.0, "nll_se": 0.1, "nll_tight": False, "effective_components": 1.5}
    show_rows(COLUMNS, [row, row | {"run": "b", "gain": 0.5, "gain_se": 0.1}], "nats")
    shown = capsys.readouterr().out
    words = " ".join(shown.partition("\nS: ")[2].split())
    assert words.startswith("components of the mixture; NLL: −log p(x), estimated from above, nats, lower is better;")
    assert words.count("exp(JSD), how many components differ, 1 to S") == words.count("±: standard error over") == 1
    assert "MISELBO" not in words, "no word of a column that is not there"
    assert "* not tight, or too few draws to know: " in words
    assert max(map(len, shown.splitlines())) <= 120
    with muted():
        show_rows(COLUMNS, [row], "nats")
    shown = capsys.readouterr().out
    assert "exp(JSD)" not in shown
    assert "* not tight, or too few draws to know: " in shown


def test_a_comparison_prints_what_a_screen_holds():
    """It printed every result, some forty columns."""
    row = {"run": "S1", "components": 2, "nll": 9.0, "nll_se": 0.1, "jsd": 0.5, **{f"more{i}": i for i in range(40)}}
    lines = repr(Comparison([row, row | {"run": "S2", "gain": 0.5, "gain_se": 0.25}], [])).splitlines()
    assert lines[0].startswith("Comparison; gain_se is over examples of one training")
    assert lines[1].split() == "run S NLL ± over examples gain ± over examples".split()
    assert lines[3].split() == "S2 2 9.00 ± 0.10 +0.500 ± 0.250".split()


def test_scores_of_a_representation_fit_and_are_explained(capsys):
    metrics = dict.fromkeys(("knn", "svm", "mlp", "qda", "ari", "nmi", "asw"), [0.75, 1.0])
    show_scores(Representation({"mean and std": metrics, "1 samples": metrics}).table, "S1")
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 120
    assert shown.count("0.875 ± 0.177") == 14
    assert [line.count("0.875") for line in shown.splitlines() if "1 sample" in line] == [4, 3], "parts of like width"
    words = " ".join(shown.split())
    for word in ("KNN: accuracy of k nearest", "ARI: adjusted Rand", "ASW: average silhouette", "over 2 repetitions"):
        assert words.count(word) == 1
    assert "1 sample " in words


def test_every_heading_of_reports_has_a_meaning():
    for columns in (COLUMNS, CONFIGURATIONS):
        plain = {column.title for column in columns if not column.meaning}
        assert plain <= {"run", "parameters"}
        assert all(column.error_about for column in columns if column.error)
        assert not any(";" in word for word in meanings(columns).values()), "they are joined by it"


def test_a_second_table_explains_only_what_is_new():
    one, two = Column("JSD", "jsd"), Column("gain ± over examples", "gain", about="a gain", error_about="an error")
    assert set(meanings([one, two])) == {"JSD", "gain", "±"}
    assert meanings([one, two], [one]) == {"gain": "a gain", "±": "an error"}
    assert meanings([one], [one, two]) == {}
    other = Column("NLL", "nll", error_about="another error")
    assert set(meanings([other, two])) == {"NLL", "gain", "± of NLL", "± of gain"}


def test_an_evaluation_and_an_overlap_print_alike(estimate):
    evaluation = Evaluation(identity_of(estimate), estimate.arrays(), {})
    assert repr(evaluation).startswith("Evaluation of 300 examples in nats: 3 components, 2 draws of each, seed 0\n")
    assert len(repr(evaluation)) < 400
    assert len(repr(overlap(tiny_model(), binary(50)))) < 600


def test_a_frame_holds_the_rows_of_the_table(estimate):
    pytest.importorskip("pandas")
    frame = estimate.to_frame()
    assert list(frame["bound"]) == ["NLL", "pooled NLL", "MISELBO NLL", "−ELBO"]
    np.testing.assert_allclose(frame["nats"], [row["nats"] for row in estimate.table])


def test_text_aligns_columns_and_counts_what_it_leaves_out():
    rows = [{"name": f"row {i}", "nats": float("nan") if i else 1234.5678, "k": None} for i in range(30)]
    lines = tables.text(rows).splitlines()
    assert len({len(line) for line in lines[:-1]}) == 1
    assert lines[1].split() == ["row", "0", "1234.57", "–"]
    assert lines[2].split() == ["row", "1", "–", "–"]
    assert lines[-1] == "… 10 more"
    assert tables.text([]) == ""
