"""Honest evaluation: bounds on log p(x) per example with their standard errors, and diagnostics of the mixture.

Every number is computed in evaluation mode with noise keyed by (seed, example, draw block), so it depends neither
on the batch size nor on the chunk nor on the order of the examples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from mixvae import figures
from mixvae.bounds import Terms, jsd, log_weights
from mixvae.distributions import DRAW_BLOCK, Components, keyed_normal
from mixvae.model import MixtureVAE, evaluating

LARGEST_BATCH = 256
ACTIVE_VARIANCE = 0.01
"""A latent unit is active if its posterior mean varies more than this over the data (Burda et al., 2015)."""
MOMENT_DRAWS = 128
"""Draws that the moments of components without closed ones are measured on."""
UNRELIABLE_K = 0.7
"""Pareto k̂ above which importance sampling is not to be trusted (Vehtari et al., 2024)."""


@dataclass(frozen=True)
class Estimate:
    """Bounds and diagnostics of every example, in nats; arrays have shape (N,).

    Args:
        elbo: evidence lower bound of the mixture.
        miselbo: multiple-importance-sampling ELBO.
        pooled: pooled bound, the best estimate of log p(x).
        jsd: Jensen–Shannon divergence of the components.
        elbo_mc_se: Monte-Carlo standard error of `elbo`; NaN for a single draw per component.
        miselbo_mc_se: the same of `miselbo`, by the delta method.
        pooled_mc_se: the same of `pooled`.
        ess: effective sample size of the pooled weights, (Σ w)² / Σ w², at most `draws`.
        pareto_k: Pareto k̂ of the largest weights; NaN for fewer than 25 draws or constant weights.
        components: number of components S.
        draws_per_component: draws L from each.
        seed: seed of the noise.
    """

    elbo: np.ndarray
    miselbo: np.ndarray
    pooled: np.ndarray
    jsd: np.ndarray
    elbo_mc_se: np.ndarray
    miselbo_mc_se: np.ndarray
    pooled_mc_se: np.ndarray
    ess: np.ndarray
    pareto_k: np.ndarray
    components: int
    draws_per_component: int
    seed: int

    @property
    def draws(self) -> int:
        """Draws per example, L·S."""
        return self.components * self.draws_per_component

    def arrays(self) -> dict[str, np.ndarray]:
        """The per-example values by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, np.ndarray)}

    def summary(self) -> dict[str, float | int | None]:
        """Means over the examples; `_se` is the standard error of sampling examples, `_mc_se` that of drawing."""
        rows: dict[str, float | int | None] = {}
        for name, values, errors in (
            ("elbo", self.elbo, self.elbo_mc_se),
            ("nll_miselbo", -self.miselbo, self.miselbo_mc_se),
            ("nll_pooled", -self.pooled, self.pooled_mc_se),
        ):
            rows[name] = float(values.mean())
            rows[f"{name}_se"] = _finite(standard_error(values))
            rows[f"{name}_mc_se"] = _finite(math.sqrt((errors**2).sum()) / len(errors))
        measured = self.pareto_k[np.isfinite(self.pareto_k)]
        return rows | {
            "jsd": float(self.jsd.mean()),
            "jsd_se": _finite(standard_error(self.jsd)),
            "effective_components": math.exp(self.jsd.mean()),
            "ess": float(self.ess.mean()),
            "pareto_k": float(measured.mean()) if len(measured) else None,
            "pareto_k_unreliable": float((measured > UNRELIABLE_K).mean()) if len(measured) else None,
            "components": self.components,
            "draws": self.draws,
            "draws_per_component": self.draws_per_component,
            "examples": len(self.elbo),
            "seed": self.seed,
        }

    @property
    def table(self) -> list[dict[str, Any]]:
        """One row per bound as negative log-likelihood: its mean, and errors of sampling examples and of drawing."""
        summary = self.summary()
        rows = []
        for bound, name, sign in (("ELBO", "elbo", -1), ("MISELBO", "nll_miselbo", 1), ("pooled", "nll_pooled", 1)):
            value, se, mc_se = (summary[f"{name}{suffix}"] for suffix in ("", "_se", "_mc_se"))
            rows.append({"bound": bound, "nats": sign * cast("float", value), "se": se, "mc_se": mc_se})
        return rows

    @property
    def figure(self) -> Figure:
        """Pooled NLL of every example, and where it is not tight."""
        return figures.likelihoods(self.pooled, self.pareto_k, UNRELIABLE_K)


def _finite(value: float) -> float | None:
    """Return a value that JSON can hold."""
    return float(value) if math.isfinite(value) else None


def standard_error(values: np.ndarray) -> float:
    """Standard error of the mean over examples; NaN for a single one."""
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan


def paired_gain(new: np.ndarray, old: np.ndarray) -> tuple[float, float]:
    """Mean gain in nats of one model over another on the same examples, and its standard error.

    Raises:
        ValueError: the models were not evaluated on the same number of examples.
    """
    if new.shape != old.shape:
        raise ValueError(f"a paired gain needs the same examples; got {new.shape[0]} and {old.shape[0]}")
    gain = new - old
    return float(gain.mean()), standard_error(gain)


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
    for name, value in (("draws", draws), ("draws_per_component", draws_per_component), ("chunk", chunk)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1; got {value}")
    if seed < 0:
        raise ValueError(f"seed must not be negative; got {seed}")
    keys = np.arange(len(x)) if examples is None else np.asarray(examples)
    if len(x) == 0 or len(keys) != len(x):
        raise ValueError(f"evaluation needs at least one example, each with one number; got {len(x)} and {len(keys)}")
    done: list[dict[str, np.ndarray]] = []
    with torch.no_grad(), evaluating(model):
        prior = model.prior()
        components = model.posterior(x[:1]).batch_shape[0]
        each = draws_per_component or max(1, round(draws / components))
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
    return Estimate(**arrays, components=components, draws_per_component=each, seed=seed)


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

    if _tail(draws) < 5 or not np.isfinite(largest).all() or largest[0] - largest[-2] < 1e-9:
        return math.nan
    weights = np.full(draws, largest[-1])
    weights[: len(largest)] = largest
    # `psislw` takes −log w, as of leave-one-out; `pareto_khat(log_weights=True)` of 0.8 fits log w itself
    with np.errstate(all="ignore"):  # smoothing the weights, which is not used, overflows for a large k̂
        return float(np.asarray(array_stats.psislw(-weights, r_eff=1, axis=-1)[1]))


@torch.no_grad()
def encode(model: MixtureVAE, x: Float[Tensor, "N ..."]) -> tuple[Float[Tensor, "N S D"], Float[Tensor, "N S D"]]:
    """Mean and standard deviation of every component of q(z|x), on the CPU.

    Components without closed moments, such as flows and chains, are measured on `MOMENT_DRAWS` keyed draws.
    """
    with evaluating(model):
        parts = [
            _moments(model.posterior(batch), range(first, first + len(batch)))
            for first, batch in zip(range(0, len(x), LARGEST_BATCH), x.split(LARGEST_BATCH), strict=True)
        ]
    mean, std = (torch.cat(part, 1).transpose(0, 1) for part in zip(*parts, strict=True))
    return mean, std


@torch.no_grad()
def draw_latents(model: MixtureVAE, x: Float[Tensor, "N ..."], draws: int, *, seed: int = 0) -> Float[Tensor, "N K D"]:
    """Draw some latents of every example, on the CPU; draw k is of component k mod S.

    Args:
        model: the model.
        x: observations on the model's device, in its dtype.
        draws: draws K per example.
        seed: seed of the noise.
    """
    if draws < 1:
        raise ValueError(f"draws must be at least 1; got {draws}")
    parts = []
    with evaluating(model):
        for first, batch in zip(range(0, len(x), LARGEST_BATCH), x.split(LARGEST_BATCH), strict=True):
            q = model.posterior(batch)
            size, numbers = q.batch_shape[0], np.arange(first, first + len(batch))
            noise = keyed_normal(seed, numbers, 0, draws, (size, q.event_shape[0])).to(batch.device)
            k = torch.arange(draws)
            parts.append(q.rsample((draws,), noise.to(batch.dtype))[k, k % size].transpose(0, 1).cpu())
    return torch.cat(parts)


def _moments(q: Components, examples: range) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, (S, B, D)."""
    try:
        mean, variance = q.mean, q.variance
    except NotImplementedError:
        noise = keyed_normal(0, examples, 0, MOMENT_DRAWS, (q.batch_shape[0], q.event_shape[0]))
        variance, mean = torch.var_mean(q.rsample((MOMENT_DRAWS,), noise.to(q.log_pi)), 0)
    return mean.cpu(), variance.sqrt().cpu()


def active_units(mean: Float[Tensor, "N S D"], weight: Float[Tensor, " S"] | None = None) -> int:
    """Number of latent units whose posterior mean varies over the data, Var_x(E_q[z_d]) > 0.01.

    Args:
        mean: mean of every component, as `encode` gives it.
        weight: mixture weights; uniform by default.

    References:
        Burda et al., Importance Weighted Autoencoders (2015), https://arxiv.org/abs/1509.00519
    """
    if len(mean) < 2:
        raise ValueError(f"active units need at least 2 examples; got {len(mean)}")
    overall = mean.mean(1) if weight is None else torch.einsum("nsd,s->nd", mean, weight.to(mean))
    return int((overall.var(0) > ACTIVE_VARIANCE).sum())
