"""Sums over draws, in float64, from which bounds and their errors are computed."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mixvae.bounds import Terms, log_weights
from mixvae.distributions import Components
from mixvae.joint import Joint
from mixvae.proposals import Proposal

SHORTEST_TAIL = 5
"""Fewest weights in a tail that k̂ can be fitted to."""
WIDEST_TAIL = 700.0
"""If the weights of a tail span more nats than this, the smallest counts as zero beside the largest."""


class WeightSums:
    """Sums of weights, from their logs, that an estimate of log p(x) and its diagnostics need.

    With strata of n_k draws, the variance of the mean weight is Σ_k n_k Var_k w / n²: differences between the strata's
    means are not part of the error.

    Args:
        draws: draws n per example, over all calls of `add`.
        strata: how many strata the draws come from.

    Example:
        >>> import torch
        >>> from mixvae.evaluation import WeightSums
        >>> sums = WeightSums(4)
        >>> for w in ([[1.0], [3.0]], [[1.0], [3.0]]):  # two draws for one example each time
        ...     sums.add(torch.tensor(w).log())
        >>> arrays = sums.result()
        >>> round(float(np.exp(arrays["log_px"][0])), 4), arrays["ess"].round(2).tolist()
        (2.0, [3.2])
    """

    def __init__(self, draws: int, strata: int = 1):
        self.draws, self.strata = draws, strata
        self.sums: Tensor | None = None
        self.squares: Tensor | None = None
        self.counts: Tensor | None = None
        self.largest: Tensor | None = None

    def add(self, log_w: Float[Tensor, "N B"], stratum: Int[Tensor, "N B"] | None = None) -> None:
        """Add some of the draws, and which stratum each came from; the first one by default."""
        log_w = log_w.double()
        stratum = torch.zeros_like(log_w, dtype=torch.long) if stratum is None else stratum
        inside = stratum == torch.arange(self.strata, device=log_w.device)[:, None, None]  # (K, N, B)
        each = log_w.masked_fill(~inside, -math.inf)
        sums, squares, counts = each.logsumexp(1), (2 * each).logsumexp(1), inside.sum(1)
        if self.sums is None or self.squares is None or self.counts is None:
            self.sums, self.squares, self.counts = sums, squares, counts
        else:
            self.sums, self.squares = torch.logaddexp(self.sums, sums), torch.logaddexp(self.squares, squares)
            self.counts = self.counts + counts
        pool = log_w if self.largest is None else torch.cat([self.largest, log_w])
        self.largest = pool.topk(min(tail_length(self.draws) + 1, len(pool)), 0).values

    def result(self) -> dict[str, np.ndarray]:
        """Estimate of log p(x) with its error, estimated bias, effective draws and Pareto k̂, one value per example."""
        if self.sums is None or self.squares is None or self.counts is None or self.largest is None:
            raise ValueError("there are no weights: add some first")
        n, total = self.draws, self.sums.logsumexp(0)
        ess = (2 * total - self.squares.logsumexp(0)).exp()
        share = (self.sums - total).exp()  # of the estimate, by stratum
        within = (self.squares - 2 * total).exp() - share.square() / self.counts.clamp(min=1)  # n_k Var_k w / (n E w)²
        within = within.clamp(min=0) * self.counts / (self.counts - 1).clamp(min=1)
        alone = (self.counts == 1).any(0)
        relative = torch.where(alone, _without_strata(ess, n), within.sum(0))
        values = {"log_px": total - math.log(n), "log_px_mc_se": relative.sqrt(), "bias": relative / 2}
        arrays = {name: value.cpu().numpy() for name, value in (values | {"ess": ess}).items()}
        return arrays | {"pareto_k": pareto_ks(self.largest, n)}


def weigh(proposal: Proposal, joint: Joint, q: Components, at_once: int) -> dict[str, np.ndarray]:
    """The headline of every example: log p(x) from all draws of its proposal, with errors and diagnostics.

    Args:
        proposal: what to draw from.
        joint: log p(x, z) of the examples.
        q: their posteriors.
        at_once: draws per example decoded at once.
    """
    sums = WeightSums(proposal.draws, proposal.strata)
    for log_w, stratum in proposal.log_weights(joint, q, max(1, at_once)):
        sums.add(log_w, stratum)
    return sums.result()


class Accumulator:
    """Sums over draws from every component, from which the bounds of one batch are computed.

    ELBO and MISELBO take the same number of draws from every component, and the pooled bound takes all of these with
    weights π_s/L; under unequal mixture weights it takes draws in proportion to them, n_s of component s, each with
    weight 1/n.

    Args:
        draws: draws L per component for ELBO and MISELBO, over all calls of `add`.
        counts: draws n_s of the pooled bound from each component for each example; L of each by default.

    Example:
        >>> import torch
        >>> from mixvae.bounds import Terms
        >>> from mixvae.evaluation import Accumulator
        >>> accumulator, zero, half = Accumulator(4), torch.zeros(2, 2, 1), torch.full((2,), 0.5)
        >>> for start, log_px in ((0, zero), (2, zero - 1)):  # two draws of two components for one example each time
        ...     accumulator.add(Terms(log_px, zero, torch.zeros(2, 2, 2, 1), half.log(), half, torch.arange(2)), start)
        >>> accumulator.result()["elbo"].round(4).tolist()
        [-0.5]
    """

    def __init__(self, draws: int, counts: Int[Tensor, "S B"] | None = None):
        self.draws, self.counts = draws, counts
        self.sums: dict[str, Tensor] = {}
        self.largest: Tensor | None = None
        self.weight = torch.ones(0)

    def add(self, terms: Terms, start: int = 0) -> None:
        """Add some of the draws.

        Args:
            terms: densities of the draws; the first terms cover all components, later ones possibly only some.
            start: number of the first draw of each component.
        """
        log_w = log_weights(terms).double()  # (L, S, B)
        own = terms.own
        if not len(self.weight):
            self.weight = terms.weight.double()
        if (equal := log_w[: max(0, self.draws - start)]).numel():
            apart = (terms.log_own() - terms.log_mixture()).double()[: len(equal)]
            self._sum("log_w", own, equal.sum(0))
            self._sum("log_w_squared", own, equal.square().sum(0))
            self._sum("apart", own, apart.sum(0))
            self._log_sum("w", own, equal.logsumexp(0))
            self._log_sum("w_squared", own, (2 * equal).logsumexp(0))
        if self.counts is None:
            self._keep_largest(equal + self.weight.log()[own, None])
            return
        number = torch.arange(start, start + len(log_w), device=log_w.device)
        inside = number[:, None, None] < self.counts[own]
        counted = log_w.masked_fill(~inside, -math.inf)
        self._log_sum("p", own, counted.logsumexp(0))
        self._log_sum("p_squared", own, (2 * counted).logsumexp(0))
        self._keep_largest(counted)

    def _keep_largest(self, log_w: Float[Tensor, "L S B"]) -> None:
        """Keep the weights that k̂ is fitted to."""
        pool = log_w.flatten(0, 1)
        if self.largest is not None:
            pool = torch.cat([self.largest, pool])
        self.largest = pool.topk(min(tail_length(self._total) + 1, len(pool)), 0).values

    @property
    def _total(self) -> int:
        """Draws of the pooled bound."""
        return self.draws * len(self.weight) if self.counts is None else int(self.counts[:, 0].sum())

    def _sum(self, name: str, own: Tensor, value: Float[Tensor, "S B"]) -> None:
        if name not in self.sums:
            self.sums[name] = value.new_zeros(len(self.weight), value.shape[1])
        self.sums[name][own] += value

    def _log_sum(self, name: str, own: Tensor, value: Float[Tensor, "S B"]) -> None:
        if name not in self.sums:
            self.sums[name] = value.new_full((len(self.weight), value.shape[1]), -math.inf)
        self.sums[name][own] = torch.logaddexp(self.sums[name][own], value)

    def result(self) -> dict[str, np.ndarray]:
        """Bounds and diagnostics of the batch."""
        draws, weight, sums = self.draws, self.weight, self.sums
        unbiased = draws / (draws - 1) if draws > 1 else math.nan
        mean_log = sums["log_w"] / draws  # (S, B)
        variance_log = (sums["log_w_squared"] / draws - mean_log.square()).clamp(min=0) * unbiased
        log_mean = sums["w"] - math.log(draws)
        relative = _relative_variance(log_mean, sums["w_squared"] - math.log(draws), draws)
        pooled, pooled_variance, ess = self._pooled(log_mean, relative)
        values = {
            "elbo": weight @ mean_log,
            "miselbo": weight @ log_mean,
            "pooled": pooled,
            "jsd": weight @ sums["apart"] / draws,
            "elbo_mc_se": (weight.square() @ variance_log / draws).sqrt(),
            "miselbo_mc_se": (weight.square() @ relative / draws).sqrt(),
            "pooled_mc_se": pooled_variance.sqrt(),
            "log_px": pooled,
            "log_px_mc_se": pooled_variance.sqrt(),
            "bias": pooled_variance / 2,
            "ess": ess,
        }
        assert self.largest is not None
        arrays = {name: value.cpu().numpy() for name, value in values.items()}
        return arrays | {"pareto_k": pareto_ks(self.largest, self._total)}

    def _pooled(self, log_mean: Tensor, relative: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pooled bound, its variance by the delta method, and its effective draws."""
        if self.counts is None:
            log_share, squares, each = self.weight.log()[:, None], self.sums["w_squared"], self.draws
            each_weight = log_share - math.log(self.draws)
        else:
            each = self.counts.clamp(min=1)
            log_mean = self.sums["p"] - each.log()
            relative = _relative_variance(log_mean, self.sums["p_squared"] - each.log(), each)
            log_share, squares = (self.counts / self._total).log(), self.sums["p_squared"]
            each_weight = torch.full_like(log_share, -math.log(self._total))
        parts = log_mean + log_share
        pooled = parts.logsumexp(0)
        share = (parts - pooled).exp()  # of the estimate, by component
        variance = (share.square() * torch.where(share > 0, relative, 0.0) / each).sum(0)
        ess = (2 * pooled - (squares + 2 * each_weight).logsumexp(0)).exp()
        if self.counts is not None:
            alone = ((self.counts == 1) & (share > 0)).any(0)
            variance = torch.where(alone, _without_strata(ess, self._total), variance)
        return pooled, variance, ess


def _without_strata(ess: Float[Tensor, " B"], draws: int) -> Float[Tensor, " B"]:
    """Relative variance of a mean weight as if all draws came from one distribution; NaN for a single draw.

    It is at least that of strata, of which one with a single draw says nothing about its variance.
    """
    return (1 / ess - 1 / draws).clamp(min=0) * (draws / (draws - 1) if draws > 1 else math.nan)


def _relative_variance(log_mean: Tensor, log_mean_squared: Tensor, draws: int | Tensor) -> Tensor:
    """Var w / (E w)² from the logarithms of the means of w and w²; NaN for a single draw."""
    n = torch.as_tensor(draws, dtype=log_mean.dtype, device=log_mean.device)
    return ((log_mean_squared - 2 * log_mean).exp() - 1).clamp(min=0) * n / (n - 1).masked_fill(n == 1, math.nan)


def tail_length(draws: int) -> int:
    """Number of weights in the tail that k̂ is fitted to, ⌈min(n/5, 3 √n)⌉ (Vehtari et al., 2024)."""
    return math.ceil(min(draws / 5, 3 * math.sqrt(draws)))


def pareto_ks(largest: Float[Tensor, "M B"], draws: int) -> np.ndarray:
    """Pareto k̂ of every example from its largest log weights."""
    return np.array([_pareto_k(row, draws) for row in largest.T.cpu().numpy()])


def _pareto_k(largest: np.ndarray, draws: int) -> float:
    """Pareto k̂ of the largest log weights among `draws` draws; the rest lies below them and does not matter.

    NaN if there are too few, or if all are equal; infinite if the smallest is zero beside the largest.
    """
    from arviz_stats.base.array import array_stats

    tail = tail_length(draws)
    largest = largest[: tail + 1]
    if tail < SHORTEST_TAIL or not np.isfinite(largest[0]) or largest[0] - largest[-2] < 1e-9:
        return math.nan
    if not largest[0] - largest[-1] < WIDEST_TAIL:  # weights that are zero beside the largest, too
        return math.inf
    padded = 5 * tail if tail <= 45 else math.ceil((tail / 3) ** 2)  # whose tail arviz takes to be that long
    weights = np.full(padded, largest[-1])
    weights[: len(largest)] = largest
    # `psislw` takes −log w, as in leave-one-out; `pareto_khat(log_weights=True)` of 0.8 fits log w itself
    with np.errstate(all="ignore"):  # smoothing the weights, which is not used, overflows for a large k̂
        return float(np.asarray(array_stats.psislw(-weights, r_eff=1, axis=-1)[1]))


def unreliable_k(draws: int) -> float:
    """Pareto k̂ above which n draws are too few to rely on the estimate or its error, min(1 − 1/log₁₀ n, 0.7).

    References:
        Vehtari et al., Pareto Smoothed Importance Sampling (2024), https://arxiv.org/abs/1507.02646

    Example:
        >>> from mixvae.evaluation import unreliable_k
        >>> round(unreliable_k(500), 3), unreliable_k(5000)
        (0.629, 0.7)
    """
    return min(1 - 1 / math.log10(draws), 0.7) if draws > 1 else -math.inf
