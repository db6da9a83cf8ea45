"""Bounds against explicit loops over draws and components."""

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from mixvae.bounds import Terms, elbo, iwelbo, jsd, log_weights, miselbo, pooled


def random_terms(draws, components, batch, seed, weighted=True):
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64) * 3

    log_pi = (normal(components) if weighted else torch.zeros(components, dtype=torch.float64)).log_softmax(0)
    return Terms(
        log_px=normal(draws, components, batch),
        log_pz=normal(draws, components, batch),
        log_q=normal(draws, components, components, batch),
        log_pi=log_pi,
        weight=log_pi.exp(),
        own=torch.arange(components),
    )


def looped(terms, beta=1.0):
    """Every log weight and JSD summand by the formulas of the paper, one number at a time."""
    draws, drawn, batch = terms.log_px.shape
    log_w = torch.empty(draws, drawn, batch, dtype=torch.float64)
    excess = torch.empty_like(log_w)
    for l in range(draws):  # noqa: E741
        for s in range(drawn):
            for b in range(batch):
                q = sum(terms.log_pi[j].exp() * terms.log_q[l, s, j, b].exp() for j in range(len(terms.log_pi)))
                log_w[l, s, b] = terms.log_px[l, s, b] + beta * (terms.log_pz[l, s, b] - q.log())
                excess[l, s, b] = terms.log_q[l, s, terms.own[s], b] - q.log()
    return log_w, excess


sizes = st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), st.integers(0, 10**6), st.booleans())


@settings(deadline=None, max_examples=25)
@given(sizes)
def test_bounds_match_their_formulas_evaluated_in_scalar_loops(size):
    terms = random_terms(*size)
    log_w, excess = looped(terms, beta=0.3)
    torch.testing.assert_close(log_weights(terms, 0.3), log_w)
    w, pi = log_w.exp(), terms.weight
    torch.testing.assert_close(elbo(log_w, pi), sum(pi[s] * log_w[:, s].mean(0) for s in range(len(pi))))
    torch.testing.assert_close(miselbo(log_w, pi), sum(pi[s] * w[:, s].mean(0).log() for s in range(len(pi))))
    torch.testing.assert_close(pooled(log_w, pi), sum(pi[s] * w[:, s].mean(0) for s in range(len(pi))).log())
    torch.testing.assert_close(jsd(terms), sum(pi[s] * excess[:, s].mean(0) for s in range(len(pi))))


@settings(deadline=None, max_examples=25)
@given(sizes)
def test_mixture_elbo_exceeds_the_mean_elbo_by_exactly_the_jsd(size):
    terms = random_terms(*size)
    own = elbo(terms.log_px + terms.log_pz - terms.log_own(), terms.weight)
    torch.testing.assert_close(elbo(log_weights(terms), terms.weight) - own, jsd(terms), atol=1e-10, rtol=0)


@settings(deadline=None, max_examples=25)
@given(sizes)
def test_bounds_are_ordered_on_the_same_draws(size):
    terms = random_terms(*size)
    log_w = log_weights(terms)
    assert (elbo(log_w, terms.weight) <= miselbo(log_w, terms.weight) + 1e-9).all()
    assert (miselbo(log_w, terms.weight) <= pooled(log_w, terms.weight) + 1e-9).all()


def test_single_component_gives_the_standard_iwae_bound():
    terms = random_terms(7, 1, 4, 0)
    log_w = log_weights(terms)
    expected = (terms.log_px + terms.log_pz - terms.log_q[:, :, 0])[:, 0].logsumexp(0) - math.log(7)
    for bound in (iwelbo, miselbo, pooled):
        torch.testing.assert_close(bound(log_w, terms.weight), expected)


def test_iwelbo_refuses_a_mixture():
    terms = random_terms(2, 3, 1, 0)
    with pytest.raises(ValueError, match="got 3: use `pooled`"):
        iwelbo(log_weights(terms), terms.weight)


def test_huge_weights_do_not_overflow():
    log_w = torch.tensor([[[1e4]], [[1e4 + 1]]])
    assert pooled(log_w, torch.ones(1)).item() == pytest.approx(1e4 + math.log((1 + math.e) / 2))


def test_shapes_of_terms_are_checked():
    terms = random_terms(2, 3, 4, 0)
    with pytest.raises(Exception, match="log_pz"):
        Terms(terms.log_px, terms.log_pz[:1], terms.log_q, terms.log_pi, terms.weight, terms.own)
