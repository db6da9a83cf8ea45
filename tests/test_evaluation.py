"""Numbers that do not depend on how they were computed, with errors that are errors."""

import json
import math
import subprocess
import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conftest import binary, tiny_model
from mixvae.analysis import active_units, encode
from mixvae.bounds import Terms, elbo, jsd, log_weights, miselbo
from mixvae.distributions import keyed_normal
from mixvae.evaluation import (
    Accumulator,
    Estimate,
    Evaluation,
    Gain,
    Identity,
    differences,
    evaluate,
    fingerprint,
    mismatch,
    paired_gain,
    split_gain,
    standard_error,
)
from mixvae.evaluation._sums import _pareto_k, tail_length
from mixvae.priors import VampPrior
from mixvae.proposals import keyed_uniform, systematic_counts


def vamp(q, shape, latent):
    return VampPrior(q, shape, 3)


@pytest.mark.parametrize("pi", [None, [3.0, 2.0, 1.0], [30.0, 2.0, 0.001]])
def test_one_pass_equals_the_bounds_of_all_draws_at_once(pi):
    model, x = tiny_model(3, weights=pi, prior=vamp), binary(4)
    found = evaluate(model, x, 298, chunk=200, seed=5, proposal="posterior")
    assert found.total_draws == 300
    terms = model(x, 300, noise=keyed_normal(5, range(4), 0, 300, (3, 2)))
    log_w = log_weights(terms).detach()
    for bound, values in ((elbo, found.elbo), (miselbo, found.miselbo)):
        np.testing.assert_allclose(values, bound(log_w[:100], terms.weight).detach(), atol=1e-10)
    first = model(x, 100, noise=keyed_normal(5, range(4), 0, 100, (3, 2)))
    np.testing.assert_allclose(found.jsd, jsd(first).detach(), atol=1e-10)
    for b in range(4):  # draws in proportion to the weights, each with weight 1/n
        counts = systematic_counts(terms.weight.detach().numpy(), 300, keyed_uniform(5, b))
        w = np.concatenate([log_w[:n, s, b].exp().numpy() for s, n in enumerate(counts)])
        assert len(w) == 300
        np.testing.assert_allclose(found.pooled[b], np.log(w.mean()), atol=1e-10)
        np.testing.assert_allclose(found.ess[b], w.sum() ** 2 / (w**2).sum(), rtol=1e-5)
        np.testing.assert_allclose(found.pareto_k[b], _pareto_k(np.sort(np.log(w))[::-1], 300))


def test_the_pooled_bound_is_unbiased_for_any_weights():
    """Proportional draws of three components average to p(x) by quadrature, with one draw and a half of the first."""
    model, x = tiny_model(3, weights=[3.0, 2.0, 1.0]), binary(1)
    grid = torch.linspace(-8, 8, 161, dtype=torch.float64)
    with torch.no_grad():
        z = torch.cartesian_prod(grid, grid).unsqueeze(1)
        exact = float((model.log_likelihood(x, z) + model.prior().log_prob(z)).logsumexp(0)) + 2 * math.log(0.1)
    ratio = np.exp(evaluate(model, x.expand(4000, 1, 2, 2), 3, proposal="posterior").pooled - exact)
    assert abs(ratio.mean() - 1) < 4 * ratio.std(ddof=1) / math.sqrt(len(ratio))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-3), (torch.float64, 1e-9)])
def test_results_do_not_depend_on_chunk_batch_or_order(dtype, tolerance):
    model, x = tiny_model(3, shape=(1, 4, 4), prior=vamp, dtype=dtype), binary(9, (1, 4, 4), dtype=dtype)
    whole = evaluate(model, x, 240, chunk=100_000).arrays()
    order = np.random.default_rng(0).permutation(9)
    shuffled = evaluate(model, x[order], 240, chunk=64, examples=order).arrays()
    for name, values in whole.items():
        if name != "pareto_k" or dtype == torch.float64:
            np.testing.assert_allclose(shuffled[name], values[order], atol=tolerance, rtol=tolerance, err_msg=name)
    alone = evaluate(model, x[4:5], 240, chunk=7, examples=[4])
    np.testing.assert_allclose(alone.pooled, whole["pooled"][4:5], atol=tolerance)


def test_the_seed_changes_the_draws_and_nothing_else_does():
    model, x = tiny_model(), binary(3)
    first = evaluate(model, x, 60, seed=1)
    torch.manual_seed(99)
    assert np.array_equal(first.pooled, evaluate(model, x, 60, seed=1).pooled)
    assert not np.isclose(first.pooled, evaluate(model, x, 60, seed=2).pooled).any()


def test_monte_carlo_errors_are_those_of_repeated_evaluations():
    model, x, repeats = tiny_model(3, weights=[3.0, 2.0, 1.0]), binary(2), 100
    runs = [evaluate(model, x, 120, seed=s, proposal="posterior") for s in range(repeats)]
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
    evaluate(model, x, 30)
    encode(model, x)
    model.sample(2)
    assert model.training
    assert model.decoder.network[0].training


def test_draws_are_split_among_components_or_given_for_each():
    model, x = tiny_model(3), binary(2)
    assert evaluate(model, x, 10).total_draws == 12, "never fewer than requested"
    assert evaluate(model, x, 1).total_draws == 3
    assert evaluate(model, x, draws_per_component=4).total_draws == 12


@pytest.mark.parametrize("bad", [{"total_draws": 0}, {"chunk": 0}, {"seed": -1}, {"examples": [1]}])
def test_numbers_out_of_range_are_refused(bad):
    with pytest.raises(ValueError, match=r"at least|negative"):
        evaluate(tiny_model(), binary(2), **bad)


def test_one_draw_has_no_error_and_json_can_hold_the_summary():
    summary = evaluate(tiny_model(), binary(1), 1).summary()
    assert summary["nll_pooled_mc_se"] is None
    assert summary["nll_pooled_se"] is None
    json.dumps(summary, allow_nan=False)


def test_effective_components_are_one_if_equal_and_s_if_distant():
    model, x = tiny_model(4), binary(3)
    for encoder in model.posterior.encoders:
        encoder.load_state_dict(model.posterior.encoders[0].state_dict())
    assert evaluate(model, x, 400).summary()["effective_components"] == pytest.approx(1)
    for i, encoder in enumerate(model.posterior.encoders):
        encoder.head.bias.data[:2] += 100 * i
    assert evaluate(model, x, 400).summary()["effective_components"] == pytest.approx(4)


def test_pareto_k_tells_reliable_weights_from_unreliable_ones():
    """Draws from a proposal much narrower than the posterior have weights of infinite variance."""
    model, x = tiny_model(1), binary(4)
    good = evaluate(model, x, 2000, proposal="posterior").pareto_k
    model.posterior.encoders[0].head.bias.data[2:] = -6.0
    bad = evaluate(model, x, 2000, proposal="posterior").pareto_k
    refined = evaluate(model, x, 2000).pareto_k
    assert (good < 0.7).all()
    assert (bad > 0.7).all()
    assert (refined < 0.7).all(), "the proposal is not the posterior's"


@pytest.mark.parametrize("k", [0.2, 0.5, 0.9, 1.5])
def test_pareto_k_recovers_the_shape_of_pareto_weights(k):
    """The maximum-likelihood error of k̂ from a tail of M weights is (1 + k)/√M."""
    n = 40_000
    log_w = -k * np.log(np.random.default_rng(0).uniform(size=n))
    tail = tail_length(n)
    largest = np.sort(log_w)[::-1][: tail + 1]
    assert abs(_pareto_k(largest, n) - k) < 4 * (1 + k) / tail**0.5


@pytest.mark.parametrize("log_w", [np.linspace(0, -1e5, 1000), np.where(np.arange(1000) < 20, 0.0, -np.inf)])
def test_the_worst_weights_are_unreliable(log_w):
    """Weights that are zero beside the largest made k̂ 0.05, or unknown."""
    tail = tail_length(len(log_w))
    assert _pareto_k(log_w[: tail + 1], len(log_w)) == math.inf
    assert math.isnan(_pareto_k(np.zeros(tail + 1), len(log_w))), "equal weights have no tail"
    bound, zero = np.array([-2.0, -4.0]), np.zeros(2)
    made = Estimate(
        *[bound] * 3, *[zero] * 4, bound, *[zero] * 3, np.array([0.1, math.inf]), components=1,
        draws_per_component=1000, seed=0,
    )  # fmt: skip
    summary = made.summary()
    assert (summary["pareto_k_unreliable"], summary["pareto_k"], summary["tight"]) == (0.5, None, False)
    assert "50%" in made.figure.axes[1].get_title(loc="left")


def test_a_component_with_one_draw_leaves_an_error():
    """Under unequal weights one draw of a rare component made the error of all examples unknown."""
    draws, log_w = torch.tensor([[3], [1]]), torch.tensor([[0.0, 1.0, 0.5], [2.0, 0.0, 0.0]]).T[:, :, None]
    weight, zero = torch.tensor([0.75, 0.25]), torch.zeros(3, 2, 1)
    accumulator = Accumulator(3, draws)
    accumulator.add(Terms(log_w, zero, zero[:, None].expand(3, 2, 2, 1), weight.log(), weight, torch.arange(2)))
    found = accumulator.result()
    w = log_w[:, 0, 0].tolist() + [2.0]
    w = np.exp(np.array(w) - 0.0)
    overall = w.var(ddof=1) / 4 / w.mean() ** 2
    assert found["pooled"][0] == pytest.approx(np.log(w.mean()))
    assert found["pooled_mc_se"][0] == pytest.approx(math.sqrt(overall))


def identity(**changed):
    values = {"data": "d" * 64, "split": "test", "examples": 3, "observations": "o" * 64, "components": 2}
    return Identity(**(values | {"draws_per_component": 5, "seed": 0} | changed))


@pytest.mark.parametrize("n", [26, 224, 226, 500, 5000])
def test_the_tail_is_as_long_as_in_the_paper(n):
    """⌈min(n/5, 3 √n)⌉ largest weights (Vehtari et al.), where arviz rounds down: compare with the fit itself."""
    from arviz_stats.base.array import array_stats

    log_w = np.sort(-0.4 * np.log(np.random.default_rng(n).uniform(size=n)))[::-1]
    tail = math.ceil(min(n / 5, 3 * math.sqrt(n)))
    excess = np.exp(log_w[:tail]) - np.exp(log_w[tail])
    k, _ = array_stats._gpdfit(np.sort(excess))
    assert _pareto_k(log_w[: tail + 1], n) == pytest.approx(float(k), abs=1e-6)


def evaluation(log_px=(1.0, 2.0, 4.0), **changed):
    log_px = np.array(log_px)
    return Evaluation(identity(examples=len(log_px)) if not changed else identity(**changed), {"log_px": log_px}, {})


def test_paired_gain_has_the_error_of_the_differences():
    rng = np.random.default_rng(0)
    base = rng.normal(size=500) * 10
    gain = rng.normal(0.3, 0.1, size=500)
    mean, error = paired_gain(evaluation(base + gain), evaluation(base))
    assert mean == pytest.approx(gain.mean())
    assert error == pytest.approx(gain.std(ddof=1) / 500**0.5)
    assert error < standard_error(base) / 20
    np.testing.assert_allclose(differences(evaluation(base + gain), evaluation(base)), gain)


NATS = st.floats(-1e6, 1e6)


@given(st.lists(st.tuples(NATS, NATS), min_size=1, max_size=20))
def test_paired_gain_is_the_plain_loop(pairs):
    gains = [new - old for new, old in pairs]
    gain = paired_gain(*(evaluation(values) for values in zip(*pairs, strict=True)))
    assert isinstance(gain, Gain)
    assert gain.mean == pytest.approx(math.fsum(gains) / len(gains), abs=1e-6)
    if len(gains) == 1:
        assert math.isnan(gain.se)
    else:
        squares = math.fsum((each - gain.mean) ** 2 for each in gains)
        assert gain.se == pytest.approx(math.sqrt(squares / (len(gains) - 1) / len(gains)), rel=1e-6, abs=1e-6)


DIFFERENT = {
    "data": ("e" * 64, r"different data sets \(dddddddd and eeeeeeee\)"),
    "split": ("train", r"different splits \(test and train\)"),
    "examples": (4, r"different numbers of examples \(3 and 4\)"),
    "observations": ("p" * 64, r"different observations \(oooooooo and pppppppp\)"),
    "legacy": (True, "legacy results pair with each other only"),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_evaluations_of_different_examples_are_not_paired(name):
    value, message = DIFFERENT[name]
    one = evaluation()
    other = evaluation(np.zeros(value) if name == "examples" else np.zeros(3), **{name: value})
    for pair in ((one, other), (other, one)):
        with pytest.raises(ValueError, match="the same examples; these evaluations are of "):
            paired_gain(*pair)
    with pytest.raises(ValueError, match=message) as error:
        differences(one, other)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"data": None, "split": None}, {}),  # an estimate of the same observations
        ({"observations": None}, {}),  # the same part of the same data
        ({"weights": "1", "recipe": "2"}, {"weights": "3", "recipe": "4"}),  # this is what a gain is of
        ({"seed": 1, "components": 1, "draws_per_component": 10}, {}),
        ({"legacy": True, "data": None, "observations": None}, {"legacy": True, "split": None, "observations": None}),
    ],
)
def test_evaluations_of_same_examples_pair_without_a_warning(one, other):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert paired_gain(evaluation(**one), evaluation(**other)).mean == 0


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"data": None, "observations": None}, {}),
        ({"data": None, "split": None}, {"observations": None}),  # neither record is on both sides
        ({"split": None, "observations": None}, {}),  # some part of the same data
        ({"data": None, "observations": None}, {"data": None, "observations": None}),
    ],
)
def test_unknown_examples_are_not_taken_for_the_same(one, other):
    for pair in ((one, other), (other, one)):
        assert mismatch(*(identity(**changed) for changed in pair)) == "unknown examples"
        with pytest.raises(ValueError, match="unknown examples"):
            paired_gain(*(evaluation(**changed) for changed in pair))


def test_legacy_evaluations_whose_records_differ_are_not_paired():
    with pytest.raises(ValueError, match="different splits"):
        paired_gain(evaluation(legacy=True), evaluation(legacy=True, split="train"))


@pytest.mark.parametrize("changed", [{"draws_per_component": 50}, {"components": 30}, {"proposal": "laplace"}])
@pytest.mark.parametrize("gain", [paired_gain, differences])
def test_different_draws_or_proposals_warn_once(changed, gain):
    with pytest.warns(UserWarning, match="part of the gain may be theirs") as caught:
        gain(evaluation(**changed), evaluation())
    assert len(caught) == 1
    gain(evaluation(**changed), evaluation(), quiet=True)


def test_a_bound_that_an_evaluation_does_not_hold_is_one_line():
    estimate = evaluate(tiny_model(), binary(3), 6)
    for bound in ("components", "jsd", "nonsense"):
        with pytest.raises(ValueError, match=f"log_px, pooled, miselbo, elbo; got {bound}"):
            paired_gain(estimate, estimate, bound)
    with pytest.raises(ValueError, match="holds: log_px; got elbo"):
        paired_gain(evaluation(), evaluation(), "elbo")


@pytest.mark.parametrize("shape", [(1,), (4,), (3, 1)])
def test_arrays_unlike_their_identity_are_not_broadcast(shape):
    with pytest.raises(ValueError, match="not one value for each of 3 examples"):
        paired_gain(Evaluation(identity(), {"log_px": np.zeros(shape)}, {}), evaluation())


def test_estimates_of_models_are_paired_by_their_observations():
    x = binary(4)
    new, old, single = (evaluate(tiny_model(s), x, 12) for s in (2, 3, 1))
    assert paired_gain(new, old).mean == pytest.approx(float((new.log_px - old.log_px).mean()))
    assert paired_gain(new, single, "elbo").mean == pytest.approx(float((new.elbo - single.elbo).mean()))
    with pytest.raises(ValueError, match="different observations"):
        paired_gain(new, evaluate(tiny_model(3), binary(4, seed=2), 12))
    with pytest.raises(ValueError, match="numbers of examples"):
        paired_gain(new, evaluate(tiny_model(3), x[:3], 12))
    known = identity(examples=4, observations=fingerprint(x), draws_per_component=6, proposal="refined")
    assert paired_gain(new, Evaluation(known, old.arrays(), {})).mean == paired_gain(new, old).mean
    with pytest.raises(ValueError, match="unknown examples"):
        paired_gain(new, replace(old, observations=None))


def test_fingerprint_depends_on_shape_and_values_not_precision():
    x = binary(5, dtype=torch.float32)
    assert len({fingerprint(x.to(kind)) for kind in (torch.bfloat16, torch.float32, torch.float64, torch.uint8)}) == 1
    grey = torch.rand(5, 1, 2, 2)
    assert fingerprint(grey) == fingerprint(grey.double())
    assert fingerprint(grey) != fingerprint(grey.bfloat16())  # these were rounded
    assert fingerprint(grey) != fingerprint(grey.flip(0))
    assert fingerprint(grey) != fingerprint(grey.reshape(5, 4))
    assert fingerprint(torch.zeros(2)) == fingerprint(-torch.zeros(2))
    many = torch.arange(5000.0)
    assert fingerprint(many) != fingerprint(many.index_fill(0, torch.tensor([4999]), 0.0))


def test_evaluation_keys_differ_for_all_that_shares_a_folder():
    changes = {"split": "train", "examples": 2, "draws_per_component": 6, "seed": 1, "proposal": "laplace"}
    assert len({identity().key, *(identity(**{name: value}).key for name, value in changes.items())}) == 6


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
    values = np.random.default_rng(0).normal(size=(12, 400))
    estimate = Estimate(*values[:4], *abs(values[4:7]), values[7], *abs(values[8:]), 2, 3, seed=7)
    summary = estimate.summary()
    assert summary["nll"] == pytest.approx(-values[7].mean())
    assert summary["nll_bias"] == pytest.approx(abs(values[9]).mean())
    assert summary["kl_posterior"] == pytest.approx((values[7] - values[0]).mean())
    assert summary["kl_posterior_se"] == pytest.approx((values[7] - values[0]).std(ddof=1) / 20)
    assert summary["nll_pooled"] == pytest.approx(-values[2].mean())
    assert summary["nll_pooled_se"] == pytest.approx(values[2].std(ddof=1) / 20)
    assert summary["nll_pooled_mc_se"] == pytest.approx(np.sqrt((values[6] ** 2).sum()) / 400)
    assert (summary["total_draws"], summary["seed"], summary["components"]) == (6, 7, 2)


@pytest.mark.slow
def test_5000_draws_of_the_papers_model_stay_under_a_gigabyte():
    """S = 4, batch 100, 28×28, latent 40, gated 300-300: peak resident memory of the whole process."""
    script = """
import torch
from mixvae import MLPDecoder, MixtureVAE, SeparateEncoders, StandardNormal, evaluate
from mixvae.networks import GatedEncoder
posterior = SeparateEncoders(lambda: GatedEncoder((1, 28, 28), 40), 4)
model = MixtureVAE(posterior, StandardNormal(40), MLPDecoder(40, (1, 28, 28)))
x = (torch.rand(100, 1, 28, 28) < 0.3).float()
evaluate(model, x, 5000, proposal="posterior")
evaluate(model, x, 500)
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(int(status["VmHWM"].split()[0]) * 1024)  # of this program; ru_maxrss counts the parent's too
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 1e9


def test_draws_rounded_to_multiples_of_components_do_not_warn(recwarn):
    """1000 draws in all are 1002 of three components and 1000 of one: no reason for a warning."""
    paired_gain(evaluation(components=3, draws_per_component=334), evaluation(components=1, draws_per_component=1000))
    assert not recwarn


def test_a_split_gain_is_the_plain_loop():
    rng = np.random.default_rng(3)
    made = [{"log_px": rng.normal(size=50), "elbo": rng.normal(size=50) - 1} for _ in range(2)]
    new, old = (Evaluation(identity(examples=50), bounds, {}) for bounds in made)
    gain = split_gain(new, old)
    parts = {"elbo": [], "model": [], "posterior": []}
    for i in range(50):
        kls = [bounds["log_px"][i] - bounds["elbo"][i] for bounds in made]
        parts["elbo"].append(made[0]["elbo"][i] - made[1]["elbo"][i])
        parts["model"].append(made[0]["log_px"][i] - made[1]["log_px"][i])
        parts["posterior"].append(-(kls[0] - kls[1]))
    for name, each in parts.items():
        mean = math.fsum(each) / 50
        error = math.sqrt(math.fsum((value - mean) ** 2 for value in each) / 49 / 50)
        assert getattr(gain, name) == pytest.approx((mean, error), rel=1e-12)
    assert gain.model.mean + gain.posterior.mean == pytest.approx(gain.elbo.mean, abs=1e-12)
    assert gain.model == paired_gain(new, old)
    assert gain.elbo == paired_gain(new, old, "elbo")


def test_errors_of_a_split_gain_are_not_added_in_squares():
    """The parts cancel on every example: the ELBO gains 1 nat exactly."""
    model = np.random.default_rng(0).normal(size=100)
    zero = np.zeros(100)
    old = Evaluation(identity(examples=100), {"log_px": zero, "elbo": zero}, {})
    new = Evaluation(identity(examples=100), {"log_px": model, "elbo": zero + 1}, {})
    gain = split_gain(new, old)
    assert gain.elbo == (1, 0)
    assert gain.model.se == pytest.approx(gain.posterior.se) == pytest.approx(standard_error(model))


@pytest.mark.parametrize("name", DIFFERENT)
def test_gains_on_different_examples_are_not_split(name):
    value, _ = DIFFERENT[name]
    other = evaluation(np.zeros(value) if name == "examples" else np.zeros(3), **{name: value})
    with pytest.raises(ValueError, match="the same examples; these evaluations are of "):
        split_gain(evaluation(), other)


def test_a_split_needs_the_elbo_and_warns_once():
    with pytest.raises(ValueError, match="bound must be one that the evaluation holds: log_px; got elbo"):
        split_gain(evaluation(), evaluation())
    bounds = {"log_px": np.zeros(3), "elbo": np.zeros(3)}
    new, old = (Evaluation(identity(proposal=proposal), bounds, {}) for proposal in ("refined", "posterior"))
    with pytest.warns(UserWarning, match="differ in proposal") as told:
        split_gain(new, old)
    assert len(told) == 1


@pytest.mark.parametrize(
    ("new", "old", "told"),
    [(False, True, "of the new evaluation"), (True, False, "of the old"), (False, False, "of the new and the old"),
     (None, True, ""), (True, True, "")],
)  # fmt: skip
def test_a_gain_split_by_a_loose_likelihood_is_told(new, old, told, recwarn):
    """What log p(x) lacks passes for a gain of the posterior's, or takes one away."""
    bounds = {"log_px": np.zeros(3), "elbo": np.zeros(3)}
    split_gain(*(Evaluation(identity(), bounds, {"tight": tight}) for tight in (new, old)))
    assert [told in str(warning.message) for warning in recwarn] == [True] * bool(told)
    split_gain(*(Evaluation(identity(), bounds, {"tight": tight}) for tight in (new, old)), quiet=True)
    assert len(recwarn) == bool(told)
