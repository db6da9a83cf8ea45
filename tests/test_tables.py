"""Results print as short tables, whatever they hold."""

import numpy as np
import pytest

from conftest import binary, tiny_model
from mixvae import _tables as tables
from mixvae.analysis import overlap
from mixvae.evaluation import Evaluation, evaluate
from mixvae.evaluation._evaluations import identity_of


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
    assert lines[0] == "Estimate of 300 examples in nats: 3 components, 2 draws of each, seed 0, proposal refined"
    assert lines[1].split() == ["bound", "nats", "se", "mc_se"]
    assert [line.split()[0] for line in lines[2:]] == ["NLL", "pooled", "MISELBO", "ELBO"]
    assert f"{-estimate.log_px.mean():.2f}" in lines[2]


def test_an_evaluation_and_an_overlap_print_alike(estimate):
    evaluation = Evaluation(identity_of(estimate), estimate.arrays(), {})
    assert repr(evaluation).startswith("Evaluation of 300 examples in nats: 3 components, 2 draws of each, seed 0\n")
    assert len(repr(evaluation)) < 400
    assert len(repr(overlap(tiny_model(), binary(50)))) < 600


def test_a_frame_holds_the_rows_of_the_table(estimate):
    pytest.importorskip("pandas")
    frame = estimate.to_frame()
    assert list(frame["bound"]) == ["NLL", "pooled", "MISELBO", "ELBO"]
    np.testing.assert_allclose(frame["nats"], [row["nats"] for row in estimate.table])


def test_text_aligns_columns_and_counts_what_it_leaves_out():
    rows = [{"name": f"row {i}", "nats": float("nan") if i else 1234.5678, "k": None} for i in range(30)]
    lines = tables.text(rows).splitlines()
    assert len({len(line) for line in lines[:-1]}) == 1
    assert lines[1].split() == ["row", "0", "1234.57", "–"]
    assert lines[2].split() == ["row", "1", "–", "–"]
    assert lines[-1] == "… 10 more"
    assert tables.text([]) == ""
