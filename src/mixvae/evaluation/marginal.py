"""ELBO, MISELBO and pooled bound on log p(x) per example, with their standard errors, in one pass over the draws.

Every number is computed in evaluation mode with noise keyed by (seed, example, draw block), so it depends neither
on the batch size nor on the chunk nor on the order of the examples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mixvae.bounds import Terms, jsd, log_weights
from mixvae.distributions import DRAW_BLOCK, keyed_normal
from mixvae.evaluation.estimate import Estimate, fingerprint
from mixvae.failures import at_least
from mixvae.model import MixtureVAE, evaluating
from mixvae.resources import check, check_count, device_memory, short

LARGEST_BATCH = 256
SHORTEST_TAIL = 5
"""Weights of a tail that k̂ can be fitted to."""
MOST_DRAWS = 100_000_000
"""Draws per example, which take a minute or more of every example."""
WEIGHTS = 4
"""Copies of all weights of an example that are made to fit k̂."""


def log_marginal(
    model: MixtureVAE,
    x: Float[Tensor, "N ..."],
    draws: int = 5000,
    *,
    draws_per_component: int | None = None,
    chunk: int = 1024,
    seed: int = 0,
    examples: Sequence[int] | np.ndarray | None = None,
    progress: Callable[[int], object] | None = None,
) -> Estimate:
    """Estimate ELBO, MISELBO and the pooled bound of every example in one pass over the draws.

    Memory depends on `chunk` only: bounds, errors and diagnostics are accumulated as draws come. Every component
    is drawn from equally often; `draws` is rounded to a multiple of S, at least one draw each.

    Args:
        model: evaluated in evaluation mode, and put back into its own mode afterwards.
        x: observations on the model's device, in the model's dtype.
        draws: total draws per example, L·S, so that models with different S are compared at equal cost.
        draws_per_component: L itself, the paper's protocol; overrides `draws`.
        chunk: latents decoded at once.
        seed: seed of the noise.
        examples: numbers of the examples, which key their noise; by default their positions in x.
        progress: called with the number of examples done after each batch.

    Raises:
        ValueError: there are no examples, or a number is not positive.

    References:
        Kviman et al., Multiple Importance Sampling ELBO (2022), https://arxiv.org/abs/2202.10951
        Vehtari et al., Pareto Smoothed Importance Sampling (2024), https://arxiv.org/abs/1507.02646
    """
    check_draws(draws, draws_per_component, chunk, seed)
    keys = np.arange(len(x)) if examples is None else np.asarray(examples)
    if len(x) == 0 or len(keys) != len(x):
        raise ValueError(f"evaluation needs at least one example, each with one number; got {len(x)} and {len(keys)}")
    done: list[dict[str, np.ndarray]] = []
    with torch.no_grad(), evaluating(model):
        prior = model.prior()
        components = model.posterior(x[:1]).batch_shape[0]
        each = draws_of_each(components, draws, draws_per_component)
        _check_memory(x, prior.event_shape.numel(), components, each, chunk)
        size = min(max(1, chunk // (components * min(each, DRAW_BLOCK))), LARGEST_BATCH)
        for first in range(0, len(x), size):
            batch, numbers = x[first : first + size], keys[first : first + size]
            q = model.posterior(batch)
            accumulator = Accumulator(each)
            for start, stop in chunks(each, chunk // (components * len(batch))):
                noise = keyed_normal(seed, numbers, start, stop, (components, q.event_shape[0]))
                accumulator.add(model.terms(batch, q, prior, stop - start, noise=noise.to(batch.device)))
            done.append(accumulator.result())
            if progress is not None:
                progress(len(batch))
    arrays = {name: np.concatenate([part[name] for part in done]) for name in done[0]}
    return Estimate(**arrays, components=components, draws_per_component=each, seed=seed, observations=fingerprint(x))


def check_draws(draws: int, draws_per_component: int | None = None, chunk: int = 1, seed: int = 0) -> None:
    """Refuse settings of an evaluation that are out of range.

    Raises:
        ValueError: one is.
    """
    at_least(1, draws=draws, draws_per_component=draws_per_component, chunk=chunk)
    at_least(0, seed=seed)
    _check_weights(draws if draws_per_component is None else draws_per_component)


def _check_memory(x: Tensor, latent: int, components: int, each: int, chunk: int) -> None:
    """Refuse draws that do not fit into memory: a chunk of them, or the weights of one example, which k̂ needs.

    Raises:
        ValueError: they do not fit.
    """
    batch = min(max(1, chunk // (components * min(each, DRAW_BLOCK))), LARGEST_BATCH, len(x))
    at_once = components * batch * min(each, max(1, chunk // (components * batch)))
    needed = at_once * (8 * latent + (latent + x[0].numel() + components) * x.element_size())  # noise, z, p(x|z), log q
    check(needed, f"evaluating {short(at_once)} latents at once", "give a smaller chunk", device_memory(x.device))
    _check_weights(components * each)


def _check_weights(draws: int) -> None:
    """Refuse draws of an example whose weights k̂ cannot be fitted to, or that would take all too long."""
    if _tail(draws) >= SHORTEST_TAIL:
        remedy = "give fewer draws; time grows with their number too"
        check(WEIGHTS * 8 * draws, f"Pareto k̂ of {short(draws)} draws", remedy)
    check_count(draws, MOST_DRAWS, "draws per example", "give fewer draws")


def draws_of_each(components: int, draws: int, draws_per_component: int | None) -> int:
    """Draws L of each component: as asked, or its share of the draws in all, at least one."""
    return draws_per_component or max(1, round(draws / components))


def chunks(draws: int, most: int) -> Iterator[tuple[int, int]]:
    """Ranges that cover all draws, at most so many at once, whole blocks where that is possible."""
    step = max(1, most)
    step -= step % DRAW_BLOCK if step > DRAW_BLOCK else 0
    for start in range(0, draws, step):
        yield start, min(draws, start + step)


class Accumulator:
    """Sums over draws, in float64, of what the bounds of one batch are made of."""

    def __init__(self, draws: int):
        self.draws = draws
        self.sums: dict[str, Tensor] = {}
        self.largest: Tensor | None = None
        self.weight = torch.ones(0)

    def add(self, terms: Terms) -> None:
        """Take in some draws."""
        log_w = log_weights(terms).double()  # (L, S, B)
        self.weight = terms.weight.double()
        self._sum("log_w", log_w.sum(0))
        self._sum("log_w_squared", log_w.square().sum(0))
        self._sum("jsd", jsd(terms).double() * len(log_w))
        self._log_sum("w", log_w.logsumexp(0))
        self._log_sum("w_squared", (2 * log_w).logsumexp(0))
        weighted = (log_w + self.weight.log()[:, None]).flatten(0, 1)
        if self.largest is not None:
            weighted = torch.cat([self.largest, weighted])
        total = self.draws * len(self.weight)
        self.largest = weighted.topk(min(_tail(total) + 1, len(weighted)), 0).values

    def _sum(self, name: str, value: Tensor) -> None:
        self.sums[name] = self.sums[name] + value if name in self.sums else value

    def _log_sum(self, name: str, value: Tensor) -> None:
        self.sums[name] = torch.logaddexp(self.sums[name], value) if name in self.sums else value

    def result(self) -> dict[str, np.ndarray]:
        """Bounds and diagnostics of the batch."""
        draws, weight, sums = self.draws, self.weight, self.sums
        unbiased = draws / (draws - 1) if draws > 1 else math.nan
        mean_log = sums["log_w"] / draws  # (S, B)
        variance_log = (sums["log_w_squared"] / draws - mean_log.square()).clamp(min=0) * unbiased
        log_mean = sums["w"] - math.log(draws)
        log_mean_squared = sums["w_squared"] - math.log(draws)
        relative = ((log_mean_squared - 2 * log_mean).exp() - 1).clamp(min=0) * unbiased  # Var w / (E w)²
        pooled = (log_mean + weight.log()[:, None]).logsumexp(0)
        share = (log_mean + weight.log()[:, None] - pooled).exp()  # of the estimate, by component
        squared = (log_mean_squared + 2 * weight.log()[:, None]).logsumexp(0)
        total = draws * len(weight)
        values = {
            "elbo": weight @ mean_log,
            "miselbo": weight @ log_mean,
            "pooled": pooled,
            "jsd": sums["jsd"] / draws,
            "elbo_mc_se": (weight.square() @ variance_log / draws).sqrt(),
            "miselbo_mc_se": (weight.square() @ relative / draws).sqrt(),
            "pooled_mc_se": ((share.square() * relative).sum(0) / draws).sqrt(),
            "ess": draws * (2 * pooled - squared).exp(),
        }
        assert self.largest is not None
        arrays = {name: value.cpu().numpy() for name, value in values.items()}
        return arrays | {"pareto_k": np.array([_pareto_k(row, total) for row in self.largest.T.cpu().numpy()])}


def _tail(draws: int) -> int:
    """Number of weights in the tail that k̂ is fitted to (Vehtari et al., 2024)."""
    return int(3 * math.sqrt(draws)) if draws > 225 else draws // 5


def _pareto_k(largest: np.ndarray, draws: int) -> float:
    """Pareto k̂ of the largest log weights of so many draws; the rest lies below them and does not enter."""
    from arviz_stats.base.array import array_stats

    if _tail(draws) < SHORTEST_TAIL or not np.isfinite(largest).all() or largest[0] - largest[-2] < 1e-9:
        return math.nan
    weights = np.full(draws, largest[-1])
    weights[: len(largest)] = largest
    # `psislw` takes −log w, as of leave-one-out; `pareto_khat(log_weights=True)` of 0.8 fits log w itself
    with np.errstate(all="ignore"):  # smoothing the weights, which is not used, overflows for a large k̂
        return float(np.asarray(array_stats.psislw(-weights, r_eff=1, axis=-1)[1]))
