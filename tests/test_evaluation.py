"""Numbers that do not depend on how they were computed, with errors that are errors."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from conftest import binary, tiny_model
from mixvae.bounds import elbo, jsd, log_weights, miselbo, pooled
from mixvae.distributions import keyed_normal
from mixvae.evaluation import Estimate, _pareto_k, active_units, encode, log_marginal, paired_gain, standard_error
from mixvae.priors import VampPrior


def vamp(q, shape, latent):
    return VampPrior(q, shape, 3)


def test_one_pass_equals_the_bounds_of_all_draws_at_once():
    model, x = tiny_model(3, weights=[3.0, 2.0, 1.0], prior=vamp), binary(4)
    found = log_marginal(model, x, 300, chunk=200, seed=5)
    terms = model(x, 100, noise=keyed_normal(5, range(4), 0, 100, (3, 2)))
    log_w = log_weights(terms).detach()
    for bound, values in ((elbo, found.elbo), (miselbo, found.miselbo), (pooled, found.pooled)):
        np.testing.assert_allclose(values, bound(log_w, terms.weight).detach(), atol=1e-10)
    np.testing.assert_allclose(found.jsd, jsd(terms).detach(), atol=1e-10)
    weights = (terms.weight[:, None] * log_w.exp()).flatten(0, 1)
    np.testing.assert_allclose(found.ess, (weights.sum(0).square() / weights.square().sum(0)).detach())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-3), (torch.float64, 1e-9)])
def test_results_do_not_depend_on_chunk_batch_or_order(dtype, tolerance):
    model, x = tiny_model(3, shape=(1, 4, 4), prior=vamp, dtype=dtype), binary(9, (1, 4, 4), dtype=dtype)
    whole = log_marginal(model, x, 240, chunk=100_000).arrays()
    order = np.random.default_rng(0).permutation(9)
    shuffled = log_marginal(model, x[order], 240, chunk=64, examples=order).arrays()
    for name, values in whole.items():
        if name != "pareto_k" or dtype == torch.float64:
            np.testing.assert_allclose(shuffled[name], values[order], atol=tolerance, rtol=tolerance, err_msg=name)
    alone = log_marginal(model, x[4:5], 240, chunk=7, examples=[4])
    np.testing.assert_allclose(alone.pooled, whole["pooled"][4:5], atol=tolerance)


def test_the_seed_changes_the_draws_and_nothing_else_does():
    model, x = tiny_model(), binary(3)
    first = log_marginal(model, x, 60, seed=1)
    torch.manual_seed(99)
    assert np.array_equal(first.pooled, log_marginal(model, x, 60, seed=1).pooled)
    assert not np.isclose(first.pooled, log_marginal(model, x, 60, seed=2).pooled).any()


def test_monte_carlo_errors_are_those_of_repeated_evaluations():
    model, x, repeats = tiny_model(3, weights=[3.0, 2.0, 1.0]), binary(2), 300
    runs = [log_marginal(model, x, 120, seed=s) for s in range(repeats)]
    for name in ("elbo", "miselbo", "pooled"):
        spread = np.stack([getattr(run, name) for run in runs]).std(0, ddof=1)
        stated = np.stack([getattr(run, f"{name}_mc_se") for run in runs])
        # a standard deviation of n numbers has a relative error near 1/√(2n); heavy tails add to it
        np.testing.assert_allclose(np.sqrt((stated**2).mean(0)), spread, rtol=5 / np.sqrt(2 * repeats), err_msg=name)


def test_evaluation_is_in_evaluation_mode_and_restores_the_mode():
    class Dropping(torch.nn.Dropout):
        def forward(self, input):
            assert not self.training, "dropout is active while evaluating"
            return super().forward(input)

    model, x = tiny_model(), binary(3)
    model.decoder.network = torch.nn.Sequential(Dropping(0.5), model.decoder.network)
    assert model.training
    log_marginal(model, x, 30)
    encode(model, x)
    model.sample(2)
    assert model.training
    assert model.decoder.network[0].training


def test_draws_are_shared_among_components_or_given_per_component():
    model, x = tiny_model(3), binary(2)
    assert log_marginal(model, x, 10).draws == 9
    assert log_marginal(model, x, 1).draws == 3
    assert log_marginal(model, x, draws_per_component=4).draws == 12


@pytest.mark.parametrize("bad", [{"draws": 0}, {"chunk": 0}, {"seed": -1}, {"examples": [1]}])
def test_numbers_out_of_range_are_refused(bad):
    with pytest.raises(ValueError, match=r"at least|negative"):
        log_marginal(tiny_model(), binary(2), **bad)


def test_one_draw_has_no_error_and_json_can_hold_the_summary():
    summary = log_marginal(tiny_model(), binary(1), 1).summary()
    assert summary["nll_pooled_mc_se"] is None
    assert summary["nll_pooled_se"] is None
    json.dumps(summary, allow_nan=False)


def test_effective_components_are_one_for_equal_encoders_and_s_for_distant_ones():
    model, x = tiny_model(4), binary(3)
    for encoder in model.posterior.encoders:
        encoder.load_state_dict(model.posterior.encoders[0].state_dict())
    assert log_marginal(model, x, 400).summary()["effective_components"] == pytest.approx(1)
    for i, encoder in enumerate(model.posterior.encoders):
        encoder.head.bias.data[:2] += 100 * i
    assert log_marginal(model, x, 400).summary()["effective_components"] == pytest.approx(4)


def test_pareto_k_tells_reliable_weights_from_unreliable_ones():
    """Draws from a proposal much narrower than the posterior have weights of infinite variance."""
    model, x = tiny_model(1), binary(4)
    good = log_marginal(model, x, 2000).pareto_k
    model.posterior.encoders[0].head.bias.data[2:] = -6.0
    bad = log_marginal(model, x, 2000).pareto_k
    assert (good < 0.7).all()
    assert (bad > 0.7).all()


@pytest.mark.parametrize("k", [0.2, 0.5, 0.9, 1.5])
def test_pareto_k_recovers_the_shape_of_pareto_weights(k):
    """The maximum-likelihood error of k̂ from a tail of M weights is (1 + k)/√M."""
    n = 40_000
    log_w = -k * np.log(np.random.default_rng(0).uniform(size=n))
    tail = 3 * n**0.5
    largest = np.sort(log_w)[::-1][: int(tail) + 1]
    assert abs(_pareto_k(largest, n) - k) < 4 * (1 + k) / tail**0.5


def test_paired_gain_has_the_error_of_the_differences():
    rng = np.random.default_rng(0)
    base = rng.normal(size=500) * 10
    gain = rng.normal(0.3, 0.1, size=500)
    mean, error = paired_gain(base + gain, base)
    assert mean == pytest.approx(gain.mean())
    assert error == pytest.approx(gain.std(ddof=1) / 500**0.5)
    assert error < standard_error(base) / 20
    with pytest.raises(ValueError, match="got 3 and 2"):
        paired_gain(np.zeros(3), np.zeros(2))


def test_active_units_count_the_means_that_move():
    means = torch.zeros(1000, 2, 3)
    means[..., 0] = torch.randn(1000, 1)
    means[:, 0, 1] = torch.randn(1000)  # moves in one component only
    means[:, 1, 1] = -means[:, 0, 1]
    assert active_units(means) == 1
    assert active_units(means, torch.tensor([0.9, 0.1])) == 2


def test_encode_gives_every_component_of_every_example():
    model, x = tiny_model(3), binary(5)
    mean, std = encode(model, x)
    q = model.posterior(x)
    torch.testing.assert_close(mean, q.mean.transpose(0, 1).detach())
    torch.testing.assert_close(std, q.scale.transpose(0, 1).detach())


def test_summary_reports_both_kinds_of_error():
    values = np.random.default_rng(0).normal(size=(9, 400))
    estimate = Estimate(*values[:4], *abs(values[4:]), components=2, draws_per_component=3, seed=7)
    summary = estimate.summary()
    assert summary["nll_pooled"] == pytest.approx(-values[2].mean())
    assert summary["nll_pooled_se"] == pytest.approx(values[2].std(ddof=1) / 20)
    assert summary["nll_pooled_mc_se"] == pytest.approx(np.sqrt((values[6] ** 2).sum()) / 400)
    assert (summary["draws"], summary["seed"], summary["components"]) == (6, 7, 2)


def test_five_thousand_draws_of_the_papers_model_stay_under_a_gigabyte():
    """S = 4, batch 100, 28×28, latent 40, gated 300-300: peak resident memory of the whole process."""
    script = """
import torch
from mixvae import GatedEncoder, MLP, MixtureVAE, SeparateEncoders, StandardNormal, log_marginal
model = MixtureVAE(SeparateEncoders(lambda: GatedEncoder((1, 28, 28), 40), 4), StandardNormal(40), MLP(40, (1, 28, 28)))
x = (torch.rand(100, 1, 28, 28) < 0.3).float()
log_marginal(model, x, 5000)
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(int(status["VmHWM"].split()[0]) * 1024)  # of this program; ru_maxrss counts the parent's too
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 1e9
