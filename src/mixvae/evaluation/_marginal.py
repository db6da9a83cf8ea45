"""ELBO, MISELBO and pooled bound on log p(x) per example, with their standard errors, in one pass over the draws.

Every number is computed in evaluation mode with noise keyed by (seed, example, draw block), so it does not
depend on batch size, chunk, or order of the examples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mixvae._failures import at_least
from mixvae._resources import check, check_count, device_memory, short
from mixvae.bounds import Terms, jsd, log_weights
from mixvae.distributions import DRAW_BLOCK, keyed_normal
from mixvae.evaluation._estimate import Estimate, fingerprint
from mixvae.model import MixtureVAE, evaluating
from mixvae.progress import SILENT, Progress

LARGEST_BATCH = 256
SHORTEST_TAIL = 5
"""Fewest weights in a tail that k̂ can be fitted to."""
MOST_DRAWS = 100_000_000
"""Most draws per example; they already take a minute or more each."""
WEIGHTS = 4
"""Copies of an example's weights that fitting k̂ makes."""


def evaluate(
    model: MixtureVAE,
    x: Float[Tensor, "N ..."],
    total_draws: int = 5000,
    *,
    draws_per_component: int | None = None,
    chunk: int = 1024,
    seed: int = 0,
    examples: Sequence[int] | np.ndarray | None = None,
    progress: Progress = SILENT,
) -> Estimate:
    """Estimate ELBO, MISELBO and the pooled bound of every example in one pass over the draws.

    Memory depends on `chunk` only: bounds, errors and diagnostics are accumulated over the draws. Every
    component is drawn from equally often; `total_draws` is rounded to a multiple of S, at least one draw each.

    Args:
        model: put into evaluation mode, and back into its own mode afterwards.
        x: observations on the model's device, in the model's dtype.
        total_draws: total draws per example, L·S, so that models with different S are compared at equal cost.
        draws_per_component: L itself, the paper's protocol; overrides `total_draws`.
        chunk: latents decoded at once.
        seed: seed of the noise.
        examples: numbers of the examples, which key their noise; their positions in x by default.
        progress: where progress is reported, such as `mixvae.progress.Terminal()`; silent by default.

    Raises:
        ValueError: there are no examples, or a number is not positive.

    References:
        Kviman et al., Multiple Importance Sampling ELBO (2022), https://arxiv.org/abs/2202.10951
        Vehtari et al., Pareto Smoothed Importance Sampling (2024), https://arxiv.org/abs/1507.02646

    Example:
        >>> import torch
        >>> from mixvae import MixtureVAE, MLPDecoder, SeparateEncoders, StandardNormal, evaluate
        >>> from mixvae.networks import GatedEncoder
        >>> posterior = SeparateEncoders(lambda: GatedEncoder((4,), 2, (5,)), 3)
        >>> model = MixtureVAE(posterior, StandardNormal(2), MLPDecoder(2, (4,), (5,)))
        >>> estimate = evaluate(model, torch.ones(6, 4), total_draws=30)
        >>> estimate.pooled.shape, estimate.draws_per_component
        ((6,), 10)
    """
    check_draws(total_draws, draws_per_component, chunk, seed)
    keys = np.arange(len(x)) if examples is None else np.asarray(examples)
    if len(x) == 0 or len(keys) != len(x):
        raise ValueError(f"evaluation needs at least one example, each with one number; got {len(x)} and {len(keys)}")
    done: list[dict[str, np.ndarray]] = []
    with torch.no_grad(), evaluating(model):
        prior = model.prior()
        components = model.posterior(x[:1]).batch_shape[0]
        each = draws_of_each(components, total_draws, draws_per_component)
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
            progress.update(first + len(batch), len(x), "evaluating")
    arrays = {name: np.concatenate([part[name] for part in done]) for name in done[0]}
    return Estimate(**arrays, components=components, draws_per_component=each, seed=seed, observations=fingerprint(x))


def check_draws(total_draws: int, draws_per_component: int | None = None, chunk: int = 1, seed: int = 0) -> None:
    """Refuse evaluation settings that are out of range.

    Raises:
        ValueError: one is.

    Example:
        >>> from mixvae.evaluation import check_draws
        >>> check_draws(0)
        Traceback (most recent call last):
        ValueError: total_draws must be at least 1; got 0
    """
    at_least(1, total_draws=total_draws, draws_per_component=draws_per_component, chunk=chunk)
    at_least(0, seed=seed)
    _check_weights(total_draws if draws_per_component is None else draws_per_component)


def _check_memory(x: Tensor, latent: int, components: int, each: int, chunk: int) -> None:
    """Refuse draws that do not fit into memory: one chunk, or all weights of one example, which k̂ needs.

    Raises:
        ValueError: they do not fit.
    """
    batch = min(max(1, chunk // (components * min(each, DRAW_BLOCK))), LARGEST_BATCH, len(x))
    at_once = components * batch * min(each, max(1, chunk // (components * batch)))
    needed = at_once * (8 * latent + (latent + x[0].numel() + components) * x.element_size())  # noise, z, p(x|z), log q
    check(needed, f"evaluating {short(at_once)} latents at once", "give a smaller chunk", device_memory(x.device))
    _check_weights(components * each)


def _check_weights(draws: int) -> None:
    """Refuse draws per example that are too many to fit k̂ to, or that would take too long."""
    if _tail(draws) >= SHORTEST_TAIL:
        remedy = "give fewer draws; time grows with their number too"
        check(WEIGHTS * 8 * draws, f"Pareto k̂ of {short(draws)} draws", remedy)
    check_count(draws, MOST_DRAWS, "draws per example", "give fewer draws")


def draws_of_each(components: int, total_draws: int, draws_per_component: int | None) -> int:
    """Draws L per component: the given number, or its share of the total, at least one.

    Example:
        >>> from mixvae.evaluation import draws_of_each
        >>> draws_of_each(3, 100, None), draws_of_each(3, 100, 7)
        (33, 7)
    """
    return draws_per_component or max(1, round(total_draws / components))


def chunks(draws: int, most: int) -> Iterator[tuple[int, int]]:
    """Ranges that cover all draws, each at most `most` long, in whole blocks where possible.

    Example:
        >>> from mixvae.evaluation import chunks
        >>> list(chunks(10, 4))
        [(0, 4), (4, 8), (8, 10)]
    """
    step = max(1, most)
    step -= step % DRAW_BLOCK if step > DRAW_BLOCK else 0
    for start in range(0, draws, step):
        yield start, min(draws, start + step)


class Accumulator:
    """Sums over draws, in float64, that the bounds of one batch are computed from.

    Args:
        draws: draws L per component, over all calls of `add`.

    Example:
        >>> import torch
        >>> from mixvae.bounds import Terms
        >>> from mixvae.evaluation import Accumulator
        >>> accumulator, zero, half = Accumulator(4), torch.zeros(2, 2, 1), torch.full((2,), 0.5)
        >>> for log_px in (zero, zero - 1):  # two draws of two components for one example each time
        ...     accumulator.add(Terms(log_px, zero, torch.zeros(2, 2, 2, 1), half.log(), half, torch.arange(2)))
        >>> accumulator.result()["elbo"].round(4).tolist()
        [-0.5]
    """

    def __init__(self, draws: int):
        self.draws = draws
        self.sums: dict[str, Tensor] = {}
        self.largest: Tensor | None = None
        self.weight = torch.ones(0)

    def add(self, terms: Terms) -> None:
        """Add some of the draws."""
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
    """Pareto k̂ of the largest log weights among `draws` draws; the rest lies below them and does not matter."""
    from arviz_stats.base.array import array_stats

    if _tail(draws) < SHORTEST_TAIL or not np.isfinite(largest).all() or largest[0] - largest[-2] < 1e-9:
        return math.nan
    weights = np.full(draws, largest[-1])
    weights[: len(largest)] = largest
    # `psislw` takes −log w, as in leave-one-out; `pareto_khat(log_weights=True)` of 0.8 fits log w itself
    with np.errstate(all="ignore"):  # smoothing the weights, which is not used, overflows for a large k̂
        return float(np.asarray(array_stats.psislw(-weights, r_eff=1, axis=-1)[1]))
