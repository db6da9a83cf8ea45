"""Priors of cells compared: every change is over the standard normal prior of as many components."""

import numpy as np
import pytest
from scipy import stats

from mixvae.evaluation import Evaluation, Identity
from mixvae.reproduce import reproduce
from mixvae.reproduce.cells.prior_plan import prior_table

VALUES = {
    ("mixture", 1): (-5.0, -5.2),
    ("vamp", 1): (-4.1, -4.3),
    ("mixture", 3): (-4.6, -4.9),
    ("vamp", 3): (-4.7, -4.2),
}


def result(kind, size, seed, log_px, observations="3f"):
    identity = Identity("d1", "test", 2, observations, size, 5, 0, proposal="refined")
    results = {
        "job": {"kind": kind, "components": size, "seed": seed},
        "nll": -log_px,
        "elbo": log_px - 1,
        "pareto_k_unreliable": 0.01,
        "tight": True,
        "seconds": 10.0 + seed,
    }
    return Evaluation(identity, {"log_px": np.full(2, log_px)}, results)


def results():
    return [result(*key, seed, value) for key, values in VALUES.items() for seed, value in enumerate(values)]


def test_changes_are_over_the_normal_prior_of_the_same_size():
    rows = {(row["prior"], row["size"]): row for row in prior_table(results())}
    standard = "standard normal"
    assert list(rows) == [(standard, 1), ("VampPrior", 1), (standard, 3), ("VampPrior", 3)]
    sd = np.sqrt(np.mean([np.var(values, ddof=1) for values in VALUES.values()]))
    for size in (1, 3):
        row = rows["VampPrior", size]
        assert row["log_px_change"] == pytest.approx(np.mean(VALUES["vamp", size]) - np.mean(VALUES["mixture", size]))
        assert row["log_px_change_margin"] == pytest.approx(stats.t.ppf(0.975, 4) * sd)
        assert "log_px_change" not in rows[standard, size]
        assert row["seconds"] == 10, "of the quickest"


def test_priors_are_not_compared_over_other_cells():
    with pytest.raises(ValueError, match="one table needs the same cells"):
        prior_table([*results(), result("vamp", 3, 2, -4.0, observations="00")])


def test_every_model_of_the_experiment_has_its_prior(tmp_path):
    found = reproduce("cell_priors", "smoke", tmp_path)
    assert [(row["prior"], row["size"], row["seeds"]) for row in found.table] == [
        ("standard normal", 2, 2),
        ("VampPrior", 2, 2),
    ]
    for name, prior in (("mixture-S2-seed0", "standard_normal"), ("vamp-S2-seed1", "vamp")):
        assert f'"prior": "{prior}"' in (tmp_path / name / "run.json").read_text()
    assert len(found.verdicts) == 1
