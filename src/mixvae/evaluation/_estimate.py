"""Bounds of every example, their means and errors."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, cast

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from mixvae import figures
from mixvae._tables import Row, Tabular, counted
from mixvae.evaluation._sums import unreliable_k

MOST_BIAS = 0.01
"""Mean bias in nats up to which a likelihood counts as tight."""
NO_BIAS = 1e-6
"""Mean bias in nats that is due to rounding of weights that are all equal."""
MOST_UNRELIABLE = 0.05
"""Share of examples with an unreliable k̂ up to which a likelihood counts as tight."""
FINGERPRINTED = 1024
"""Examples hashed at once, which bounds the memory of a checksum."""


BOUNDS_SHOWN = (
    ("NLL", "nll", 1),
    ("pooled NLL", "nll_pooled", 1),
    ("MISELBO NLL", "nll_miselbo", 1),
    ("−ELBO", "elbo", -1),
)
"""Upper bounds on −log p(x): displayed name, name in results, and the sign that turns the result into the bound."""


@dataclass(frozen=True, repr=False)
class Estimate(Tabular):
    """Bounds and diagnostics of every example, in nats; arrays have shape (N,).

    Args:
        elbo: evidence lower bound of the mixture.
        miselbo: multiple-importance-sampling ELBO.
        pooled: pooled bound, by draws from the posterior.
        jsd: Jensen–Shannon divergence of the components.
        elbo_mc_se: Monte-Carlo standard error of `elbo`; NaN for a single draw per component.
        miselbo_mc_se: the same for `miselbo`, by the delta method.
        pooled_mc_se: the same for `pooled`.
        log_px: the headline, a lower bound on log p(x) from draws of the proposal.
        log_px_mc_se: its Monte-Carlo standard error, by the delta method: too small with few draws (with 10 we measured
            0.027 where repeated evaluations spread by 0.041), and not to be relied on where k̂ is unreliable.
        bias: how far `log_px` is expected to lie below log p(x), CV²/2n with the weights' coefficient of variation.
        ess: effective sample size of the headline's weights, (Σ w)² / Σ w², at most `total_draws`.
        pareto_k: Pareto k̂ of the headline's largest weights; NaN for fewer than 21 draws or constant weights.
        components: number of components S.
        draws_per_component: draws L from each.
        seed: seed of the noise.
        observations: checksum of the observations that were scored, by `fingerprint`; None if unknown.
        proposal: where the headline's draws came from, refined or posterior.
        proposal_notes: settings of the refined proposals, and numbers of examples, such as those whose search failed.

    Example:
        >>> import numpy as np
        >>> from mixvae.evaluation import Estimate
        >>> bound, zero = np.array([-2.0, -4.0]), np.zeros(2)
        >>> made = {"components": 3, "draws_per_component": 2, "seed": 0}
        >>> Estimate(bound - 1, bound, bound, *[zero] * 4, bound, *[zero] * 4, **made)
        Estimate of 2 examples, nats, lower is better: 3 components, 2 draws of each, seed 0, proposal posterior
              bound  nats    se  mc_se
                NLL  3.00  1.00  0
         pooled NLL  3.00  1.00  0
        MISELBO NLL  3.00  1.00  0
             −ELBO  4.00  1.00  0
    """

    elbo: np.ndarray
    miselbo: np.ndarray
    pooled: np.ndarray
    jsd: np.ndarray
    elbo_mc_se: np.ndarray
    miselbo_mc_se: np.ndarray
    pooled_mc_se: np.ndarray
    log_px: np.ndarray
    log_px_mc_se: np.ndarray
    bias: np.ndarray
    ess: np.ndarray
    pareto_k: np.ndarray
    components: int
    draws_per_component: int
    seed: int
    observations: str | None = None
    proposal: str = "posterior"
    proposal_notes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def total_draws(self) -> int:
        """Draws per example, L·S."""
        return self.components * self.draws_per_component

    @property
    def kl_posterior(self) -> np.ndarray:
        """KL(q(z|x) ‖ p(z|x)) = log p(x) − ELBO: what the posterior costs; an estimate of it may be negative."""
        return self.log_px - self.elbo

    def arrays(self) -> dict[str, np.ndarray]:
        """The per-example values by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        arrays = {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
        return arrays | {"kl_posterior": self.kl_posterior}

    def summary(self) -> dict[str, float | int | None]:
        """Means over the examples; `_se` is the standard error over examples, `_mc_se` over draws."""
        rows: dict[str, float | int | None] = {}
        for name, values, errors in (
            ("nll", -self.log_px, self.log_px_mc_se),
            ("elbo", self.elbo, self.elbo_mc_se),
            ("nll_miselbo", -self.miselbo, self.miselbo_mc_se),
            ("nll_pooled", -self.pooled, self.pooled_mc_se),
        ):
            rows[name] = float(values.mean())
            rows[f"{name}_se"] = _finite(standard_error(values))
            rows[f"{name}_mc_se"] = _finite(math.sqrt((errors**2).sum()) / len(errors))
        measured = self.pareto_k[~np.isnan(self.pareto_k)]
        unreliable = float((measured > unreliable_k(self.total_draws)).mean()) if len(measured) else None
        return rows | {
            "nll_bias": _finite(self.bias.mean()),
            "tight": is_tight(_finite(self.bias.mean()), unreliable),
            "kl_posterior": float(self.kl_posterior.mean()),
            "kl_posterior_se": _finite(standard_error(self.kl_posterior)),
            "jsd": float(self.jsd.mean()),
            "jsd_se": _finite(standard_error(self.jsd)),
            "effective_components": math.exp(self.jsd.mean()),
            "ess": float(self.ess.mean()),
            "pareto_k": _finite(measured.mean()) if len(measured) else None,
            "pareto_k_unreliable": unreliable,
            "components": self.components,
            "total_draws": self.total_draws,
            "draws_per_component": self.draws_per_component,
            "examples": len(self.elbo),
            "seed": self.seed,
            "proposal": self.proposal,
            "proposal_notes": dict(self.proposal_notes),
        }

    @property
    def title(self) -> str:
        """How many examples and draws, and which way is better."""
        return (
            f"{type(self).__name__} of {counted(len(self.elbo), 'example')}, nats, lower is better: "
            f"{counted(self.components, 'component')}, {counted(self.draws_per_component, 'draw')} of each, "
            f"seed {self.seed}, proposal {self.proposal}"
        )

    @property
    def table(self) -> list[Row]:
        """One row per upper bound on −log p(x): its mean, and its standard errors over examples and draws."""
        summary = self.summary()
        rows = []
        for bound, name, sign in BOUNDS_SHOWN:
            value, se, mc_se = (summary[f"{name}{suffix}"] for suffix in ("", "_se", "_mc_se"))
            rows.append({"bound": bound, "nats": sign * cast("float", value), "se": se, "mc_se": mc_se})
        return rows

    @property
    def figure(self) -> Figure:
        """NLL of every example, and which ones are not tight."""
        return figures.likelihoods(self.log_px, self.pareto_k, unreliable_k(self.total_draws))


def is_tight(bias: float | None, unreliable: float | None) -> bool | None:
    """Whether a likelihood is tight: its mean bias is at most 0.01 nats, and k̂ is unreliable for at most 5 %.

    None if there were too few draws to know the bias or k̂, and the other does not rule it out. Weights that are all
    equal have no k̂ and no bias: their mean is p(x).

    Example:
        >>> from mixvae.evaluation import is_tight
        >>> is_tight(0.002, 0.01), is_tight(0.002, 0.3), is_tight(0.002, None), is_tight(0.0, None)
        (True, False, None, True)
    """
    if (unreliable or 0) > MOST_UNRELIABLE:
        return False
    if bias is None:
        return None
    if bias > MOST_BIAS:
        return False
    return True if unreliable is not None or bias <= NO_BIAS else None


def _finite(value: float) -> float | None:
    """The value, or None if JSON cannot hold it."""
    return float(value) if math.isfinite(value) else None


def standard_error(values: np.ndarray) -> float:
    """Standard error of the mean over examples; NaN for a single one.

    Example:
        >>> import numpy as np
        >>> from mixvae.evaluation import standard_error
        >>> round(standard_error(np.array([1.0, 2.0, 3.0])), 4)
        0.5774
    """
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan


def fingerprint(x: Tensor) -> str:
    """SHA-256 of observations as a model receives them: their shape and exact values.

    The same values have the same checksum in every precision that holds them, so that models of different precision
    can be paired on, say, binary images.

    Example:
        >>> import torch
        >>> from mixvae.evaluation import fingerprint
        >>> x = torch.tensor([[0.0, 1.0]])
        >>> fingerprint(x) == fingerprint(x.double()), fingerprint(x) == fingerprint(x.T)
        (True, False)
    """
    digest = Fingerprint(x.shape)
    for part in x.split(FINGERPRINTED) if x.ndim else (x,):
        digest.add(part)
    return digest.hexdigest()


class Fingerprint:
    """The `fingerprint` of observations that arrive in parts.

    Args:
        shape: shape of all of them.

    Example:
        >>> import torch
        >>> from mixvae.evaluation import Fingerprint, fingerprint
        >>> x = torch.tensor([[0.0, 1.0], [1.0, 1.0]])
        >>> digest = Fingerprint(x.shape)
        >>> for row in x:
        ...     digest.add(row)
        >>> digest.hexdigest() == fingerprint(x)
        True
    """

    def __init__(self, shape: Sequence[int]):
        self._digest = hashlib.sha256(str(tuple(shape)).encode())

    def add(self, part: Tensor) -> None:
        """Add the next observations."""
        values = (part.detach().cpu().double() + 0.0).numpy()  # −0 is 0
        self._digest.update(values.astype("<f8", copy=False).tobytes())

    def hexdigest(self) -> str:
        """The checksum."""
        return self._digest.hexdigest()
