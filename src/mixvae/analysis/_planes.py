"""The exact posterior of a model with two latents, by quadrature, with the components over it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor
from torch.distributions import Distribution

from mixvae import figures
from mixvae._tables import Row, Tabular
from mixvae._trying import Observations, observations
from mixvae.distributions import keyed_normal
from mixvae.model import MixtureVAE, evaluating

SPAN = 8.0
"""Mass is searched for from −SPAN to SPAN."""
VISIBLE = 12.0
"""The window around the mass includes all points within this many nats of the maximum."""
DRAWN = 400
"""Draws shown for components without closed-form moments."""
AT_ONCE = 2**14
"""Points decoded at once."""


@dataclass(frozen=True)
class Posterior:
    """The exact posterior of one example on a square window of the latent plane.

    Args:
        example: number of the example.
        centre: middle of the window, (2,).
        span: half its width.
        log_px: log p(x) in nats, by quadrature over the window.
        elbo: ELBO of the mixture in nats, by the same quadrature; log p(x) − elbo = KL(q ‖ p(z|x)).
        covered: share of the posterior's mass that the mixture covers, ∫ min(p, q), from 0 to 1.
        exact: density of p(z|x) on the grid, (G, G), rows along the second coordinate.
        mixture: density of q(z|x) on the same grid.
        gaussians: mean and standard deviation of every component, (S, 2) each, or None without a closed form.
        draws: draws of the mixture, (N, 2).
    """

    example: int
    centre: np.ndarray
    span: float
    log_px: float
    elbo: float
    covered: float
    exact: np.ndarray = field(repr=False)
    mixture: np.ndarray = field(repr=False)
    gaussians: tuple[np.ndarray, np.ndarray] | None = field(repr=False)
    draws: np.ndarray = field(repr=False)


@dataclass(frozen=True, repr=False)
class Plane(Tabular):
    """Exact posteriors of some examples.

    Args:
        posteriors: one per example; see `exact_posteriors`.
    """

    posteriors: list[Posterior]

    @property
    def table(self) -> list[Row]:
        """One row per example: log_px, elbo, kl = KL(q ‖ p(z|x)) in nats, covered."""
        return [
            {"example": p.example, "log_px": p.log_px, "elbo": p.elbo, "kl": p.log_px - p.elbo, "covered": p.covered}
            for p in self.posteriors
        ]

    @property
    def figure(self) -> Figure:
        """The exact posteriors, overlaid with the components: ellipses at two standard deviations, or draws."""
        return figures.planes(
            [
                figures.Panel(
                    f"example {p.example}:\nKL {p.log_px - p.elbo:.2f} nats, {p.covered:.0%}",
                    p.exact, p.centre, p.span, p.gaussians, p.draws,
                )
                for p in self.posteriors
            ],
            "Grey: the exact p(z|x). Ellipses or dots: the components of q(z|x), at two standard "
            "deviations. Titles: KL(q ‖ p), and the share of the mass that q covers.",
        )  # fmt: skip


@torch.no_grad()
def exact_posteriors(
    model: MixtureVAE, x: Observations, *, points: int = 241, seed: int = 0, span: float = SPAN
) -> Plane:
    """Compute p(z|x) = p(x|z) p(z) / p(x) of a model with D = 2 on a grid around its mass, for each example.

    The window is found on a coarse grid over the whole plane, so that a mode that no component covers is not missed.

    Args:
        model: a model with two latents in total.
        x: observations, an array or tensor of numbers.
        points: points along each axis of the grid.
        seed: seed of the draws that are shown.
        span: mass is searched for from −span to span.

    Raises:
        ValueError: the latent size is not two, or there are no examples.

    Example:
        >>> import torch
        >>> from mixvae import MixtureVAE, MLPDecoder, SeparateEncoders, StandardNormal
        >>> from mixvae.networks import GatedEncoder
        >>> from mixvae.analysis import exact_posteriors
        >>> posterior = SeparateEncoders(lambda: GatedEncoder((4,), 2, (5,)), 3)
        >>> model = MixtureVAE(posterior, StandardNormal(2), MLPDecoder(2, (4,), (5,)))
        >>> plane = exact_posteriors(model, torch.ones(2, 4), points=21)
        >>> [row["example"] for row in plane.table], plane.posteriors[0].exact.shape
        ([0, 1], (21, 21))
    """
    x = observations(x, model)
    if points < 3 or len(x) == 0:
        raise ValueError(f"a plane needs at least 3 points and one example; got {points} and {len(x)}")
    with evaluating(model):
        prior = model.prior()
        (size,) = prior.event_shape
        if size != 2:
            raise ValueError(f"the exact posterior needs 2 latents; this model has {size}: train one with latent 2")
        return Plane([_posterior(model, prior, x[i : i + 1], i, points, seed, span) for i in range(len(x))])


def _posterior(
    model: MixtureVAE, prior: Distribution, x: Tensor, example: int, points: int, seed: int, span: float
) -> Posterior:
    """Exact posterior of one example (1, ...)."""
    q = model.posterior(x)
    try:
        gaussians = q.mean[:, 0], q.variance[:, 0].sqrt()
    except NotImplementedError:
        gaussians = None
    noise = keyed_normal(seed, [example], 0, DRAWN, (q.batch_shape[0], 2)).to(x)
    draws = q.rsample((DRAWN,), noise)[:, :, 0]  # (L, S, 2)

    def log_joint(z: Tensor) -> Tensor:
        parts = [model.log_likelihood(x, part[:, None])[:, 0] + prior.log_prob(part) for part in z.split(AT_ONCE)]
        return torch.cat(parts).double()

    coarse = _grid(x, torch.zeros(2), span, points)
    first = log_joint(coarse)
    visible = torch.cat([coarse[first > first.max() - VISIBLE], draws.flatten(0, 1)])
    low, high = visible.min(0).values, visible.max(0).values
    centre, half = (low + high) / 2, float((high - low).max()) / 2 + 2 * span / points
    grid = _grid(x, centre, half, points)
    log_cell = 2 * math.log(2 * half / (points - 1))
    log_p = log_joint(grid)
    log_px = float((log_p + log_cell).logsumexp(0))
    log_q = torch.cat([q.mixture().log_prob(part[:, None])[:, 0] for part in grid.split(AT_ONCE)]).double()
    p, density = (log_p - log_px).exp(), log_q.exp()
    mass = density.sum() * math.exp(log_cell)
    elbo = float((density * (log_p - log_q)).nan_to_num(0.0).sum() * math.exp(log_cell) / mass)
    shown = [draws[: round(DRAWN * float(weight)), j] for j, weight in enumerate(q.log_pi.exp())]
    return Posterior(
        example=example,
        centre=centre.cpu().numpy(),
        span=half,
        log_px=log_px,
        elbo=elbo,
        covered=float(torch.minimum(p, density).sum() * math.exp(log_cell)),
        exact=p.reshape(points, points).cpu().numpy(),
        mixture=density.reshape(points, points).cpu().numpy(),
        gaussians=None if gaussians is None else (gaussians[0].cpu().numpy(), gaussians[1].cpu().numpy()),
        draws=torch.cat(shown).cpu().numpy(),
    )


def _grid(like: Tensor, centre: Tensor, half: float, points: int) -> Float[Tensor, "N 2"]:
    """Points of a square, the first coordinate varying fastest."""
    axis = torch.linspace(-half, half, points).to(like)
    return torch.cartesian_prod(axis, axis).flip(-1) + centre.to(like)
