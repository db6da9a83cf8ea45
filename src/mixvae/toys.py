"""Two-dimensional targets without an encoder: what the components of a mixture do when trained together."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor, nn

from mixvae import figures
from mixvae._failures import at_least
from mixvae._resources import check, check_count, short
from mixvae._tables import Row, Tabular
from mixvae.bounds import Terms, elbo, log_weights
from mixvae.distributions import Components, DiagonalGaussian, Flowed
from mixvae.flows import InverseAutoregressiveFlow
from mixvae.progress import SILENT, Progress

LEARNING_RATE, SAMPLES = 0.1, 100
"""Adam's rate and the draws per component of the paper."""
FLOW_LEARNING_RATE = 1e-3
"""Adam's rate for the flow, which diverges at the paper's 0.1 here."""
FRAMES = 40
FINAL = 10_000
"""Draws per component of the final estimate."""
MOST_STEPS = 10_000_000
"""Maximum number of steps, which take hours."""
GRID, EDGE = 601, 6
"""Points along each axis of the quadrature, and how many of them are its edge."""

LogDensity = Callable[[Float[Tensor, "N 2"]], Float[Tensor, " N"]]
"""An unnormalised log-density on the plane, in nats."""


def ring(z: Float[Tensor, "N 2"]) -> Float[Tensor, " N"]:
    """Ring of radius 0.9, log p(z) = −(‖z‖ − 0.9)² / 0.001 up to a constant.

    Example:
        >>> import torch
        >>> from mixvae.toys import ring
        >>> ring(torch.tensor([[0.8, 0.0], [0.0, 1.1]])).numpy().round(2).tolist()
        [-10.0, -40.0]
    """
    return -(z.norm(dim=-1) - 0.9).square() / 0.001


def bigaussian(z: Float[Tensor, "N 2"]) -> Float[Tensor, " N"]:
    """Two Gaussians, 0.2 · N(−1, 0.5² I) + 0.8 · N(+1, 0.5² I).

    Example:
        >>> import torch
        >>> from mixvae.toys import bigaussian
        >>> ratio = bigaussian(torch.ones(1, 2)) - bigaussian(-torch.ones(1, 2))
        >>> round(float(ratio.exp()), 4)
        4.0
    """
    logs = [
        np.log(weight) - (z - centre).square().sum(-1) / (2 * 0.5**2) - np.log(2 * np.pi * 0.5**2)
        for weight, centre in ((0.2, -1.0), (0.8, 1.0))
    ]
    return torch.logaddexp(*logs)


class FreeMixture(nn.Module):
    """Components with free parameters instead of an encoder; all start at N(0, I).

    Args:
        components: number of components S.
        flow: a flow that they share; none by default.

    Example:
        >>> from mixvae.toys import FreeMixture
        >>> FreeMixture(3)().mean.shape  # components, batch, latents
        torch.Size([3, 1, 2])
    """

    def __init__(self, components: int, flow: nn.Module | None = None):
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(components, 1, 2))
        self.log_var = nn.Parameter(torch.zeros(components, 1, 2))
        self.flow = flow

    def forward(self) -> Components:
        """Return the components, for a batch of one."""
        q = DiagonalGaussian(self.mean, self.log_var)
        return q if self.flow is None else Flowed(q, [self.flow()])


@dataclass(frozen=True)
class Frame:
    """The components at one step: their means and standard deviations (S, 2), and some draws of the mixture (N, 2)."""

    step: int
    mean: np.ndarray
    std: np.ndarray
    draws: np.ndarray
    flowed: bool


@dataclass(frozen=True)
class Fit:
    """One approximation of a target.

    Args:
        name: what it is.
        components: number of components S.
        bound: ELBO of the mixture in nats, from many draws; at most log Z.
        bound_se: its standard error.
        covered: share of the target's mass that the mixture covers, ∫ min(p, q), from 0 to 1.
        density: density of the mixture on the target's grid.
        frames: how it developed in training.
    """

    name: str
    components: int
    bound: float
    bound_se: float
    covered: float
    density: np.ndarray = field(repr=False)
    frames: list[Frame] = field(repr=False)


@dataclass(frozen=True)
class Target:
    """A log-density on a square of the plane, with its normaliser by quadrature.

    Args:
        name: its name.
        log_density: the unnormalised log-density.
        span: the square reaches from −span to span.
        log_z: log ∫ p, in nats.
        density: normalised density on the grid, (GRID, GRID), rows along the second coordinate.
    """

    name: str
    log_density: LogDensity
    span: float
    log_z: float
    density: np.ndarray


def quadrature(log_density: LogDensity, name: str = "target", span: float = 3.0) -> Target:
    """Measure a target on a grid.

    Raises:
        ValueError: the log-density fails, returns another shape, NaN or plus infinity, or has no mass on the square or
            much at its edge.

    Example:
        >>> from mixvae.toys import bigaussian, quadrature
        >>> target = quadrature(bigaussian, "bigaussian", span=4.0)
        >>> abs(target.log_z) < 1e-3, target.density.shape
        (True, (601, 601))
    """
    if not 0 < span < math.inf:
        raise ValueError(f"span must be a positive number; got {span}")
    points = _grid(span)
    try:
        with torch.no_grad():
            values = log_density(points)
    except Exception as error:  # a user's density may raise anything
        what = " ".join(f"{type(error).__name__} {error}".split())
        raise ValueError(f"{name} fails at points {tuple(points.shape)}: {what}") from error
    if not isinstance(values, Tensor) or values.shape != points.shape[:1]:
        got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(f"{name} must map points (N, 2) to log-densities (N,); for N = {len(points)} it gave {got}")
    if bool(values.isnan().any()) or float(values.max()) == float("inf"):
        where = points[values.isnan() | (values == float("inf"))][0].tolist()
        raise ValueError(
            f"{name} is NaN or infinite at z = {where}: a log-density is finite, or −inf where there is no mass"
        )
    log_z = float((values.double() + 2 * np.log(2 * span / (GRID - 1))).logsumexp(0))
    if not np.isfinite(log_z):
        raise ValueError(f"{name} has no mass between −{span} and {span}: give another span")
    density = (values.double() - log_z).exp().reshape(GRID, GRID).numpy()
    inside = density[EDGE:-EDGE, EDGE:-EDGE].sum() / density.sum()
    if inside < 0.99:
        raise ValueError(
            f"{name} reaches the edge of the square from −{span:g} to {span:g}, where {1 - inside:.0%} of its mass "
            "lies: give a larger span"
        )
    return Target(name, log_density, span, log_z, density)


def _grid(span: float) -> Float[Tensor, "N 2"]:
    axis = torch.linspace(-span, span, GRID)
    return torch.cartesian_prod(axis, axis).flip(-1)


def approximate(
    target: Target,
    components: int = 1,
    *,
    steps: int = 5000,
    flow: bool = False,
    transforms: int = 30,
    seed: int = 0,
    progress: Callable[[int], object] | None = None,
) -> Fit:
    """Train a mixture against a target by its ELBO, as in Figure 1 of the paper: Adam 0.1, 100 draws per component.

    Args:
        target: what to approximate.
        components: number of Gaussians S.
        steps: steps of the optimiser.
        flow: push them through an inverse autoregressive flow, the paper's rival with one component.
        transforms: number of transforms of that flow, of 10 hidden units each.
        seed: seed of everything.
        progress: called with the number of each step.

    Raises:
        ValueError: a number is not positive.

    References:
        Kviman et al., Cooperation in the Latent Space (2023), https://arxiv.org/abs/2209.15514

    Example:
        >>> from mixvae.toys import approximate, bigaussian, quadrature
        >>> fit = approximate(quadrature(bigaussian), components=1, steps=3)
        >>> fit.name, fit.density.shape, [frame.step for frame in fit.frames]
        ('S = 1', (601, 601), [0, 1, 2, 3])
    """
    at_least(1, components=components, steps=steps)
    at_least(0, seed=seed)
    check_count(steps, MOST_STEPS, "steps", "the optimisation has converged long before")
    check(4 * FINAL * components**2, f"the density of {short(components)} components", "give fewer components")
    torch.manual_seed(seed)
    model = FreeMixture(components, _gentle(InverseAutoregressiveFlow(2, transforms, (10,))) if flow else None)
    optimizer = torch.optim.Adam(model.parameters(), FLOW_LEARNING_RATE if flow else LEARNING_RATE)
    shown = set(np.unique(np.geomspace(1, steps, FRAMES).round().astype(int)).tolist())
    frames = [_frame(model, 0)]
    for step in range(1, steps + 1):
        log_w, weight = _log_weights(model(), target.log_density, SAMPLES)
        optimizer.zero_grad()
        (-elbo(log_w, weight).mean()).backward()
        optimizer.step()
        if step in shown:
            frames.append(_frame(model, step))
        if progress is not None:
            progress(step)
    with torch.no_grad():
        log_w, weight = _log_weights(model(), target.log_density, FINAL)
        parts = [model().mixture().log_prob(part[:, None])[:, 0] for part in _grid(target.span).split(2**16)]
    density = torch.cat(parts).double().exp().reshape(GRID, GRID).numpy()
    covered = np.minimum(density, target.density).sum() * (2 * target.span / (GRID - 1)) ** 2
    error = float((weight.square() @ log_w[..., 0].var(0) / len(log_w)).sqrt())
    name = f"IAF, T = {transforms}" if flow else f"S = {components}"
    return Fit(name, components, float(elbo(log_w, weight)), error, float(covered), density, frames)


@torch.no_grad()
def _gentle(flow: nn.Module) -> nn.Module:
    """Start a flow near the identity: thirty random transforms in a row would scatter draws far away."""
    for p in flow.parameters():
        p *= 0.1
    return flow


def _log_weights(q: Components, log_density: LogDensity, draws: int) -> tuple[Tensor, Tensor]:
    """Log weights of draws against a target: `Terms` whose likelihood is the target and whose prior is flat."""
    own = torch.arange(q.batch_shape[0])
    z, log_q = q.rsample_and_cross_log_prob((draws,), own)
    log_p = log_density(z.reshape(-1, 2)).reshape(z.shape[:-1])
    terms = Terms(log_p, torch.zeros_like(log_p), log_q, q.log_pi, q.log_pi.exp(), own)
    return log_weights(terms), terms.weight


@torch.no_grad()
def _frame(model: FreeMixture, step: int) -> Frame:
    state = torch.get_rng_state()  # pictures do not change the training
    draws = model().mixture().sample((400,))[:, 0]
    torch.set_rng_state(state)
    std = (0.5 * model.log_var[:, 0]).exp()
    return Frame(step, model.mean[:, 0].clone().numpy(), std.numpy(), draws.numpy(), model.flow is not None)


TARGETS: dict[str, LogDensity] = {"ring": ring, "bigaussian": bigaussian}
"""The paper's targets by name."""


@dataclass(frozen=True, repr=False)
class Comparison(Tabular):
    """Approximations of one target.

    Args:
        target: the target.
        fits: one per size, and the flow; see `compare`.
    """

    target: Target
    fits: list[Fit]

    @property
    def table(self) -> list[Row]:
        """One row per approximation: name, components, bound, bound_se, log_z, gap and covered."""
        return [
            {
                "name": fit.name, "components": fit.components, "bound": fit.bound, "bound_se": fit.bound_se,
                "log_z": self.target.log_z, "gap": self.target.log_z - fit.bound, "covered": fit.covered,
            }
            for fit in self.fits
        ]  # fmt: skip

    @property
    def figure(self) -> Figure:
        """Components over the density, one panel per approximation."""
        return self.at(-1)

    def at(self, frame: int) -> Figure:
        """The panels as they stood at one of the frames."""
        titles = [fit.name for fit in self.fits]
        if frame == -1:
            titles = [f"{fit.name}: {fit.bound:.2f} nats, {fit.covered:.0%}" for fit in self.fits]
        shown = [fit.frames[frame] for fit in self.fits]
        centre = np.zeros(2)
        panels = [
            figures.Panel(
                title, self.target.density, centre, self.target.span,
                None if state.flowed else (state.mean, state.std), state.draws,
            )
            for title, state in zip(titles, shown, strict=True)
        ]  # fmt: skip
        return figures.planes(panels, f"{self.target.name}, step {shown[0].step}")

    def animation(self) -> bytes:
        """The training of all approximations as an animated GIF."""
        return figures.gif([self.at(frame) for frame in range(len(self.fits[0].frames))])


def compare(
    target: Target,
    components: Sequence[int] = (1, 2, 5, 30),
    *,
    steps: int = 5000,
    rival: bool = True,
    seed: int = 0,
    progress: Progress = SILENT,
) -> Comparison:
    """Approximate a target by mixtures of several sizes, and by the flow that is the paper's rival.

    Args:
        target: what to approximate.
        components: the sizes S.
        steps: steps of each optimisation.
        rival: whether the flow takes part.
        seed: seed of each.
        progress: where progress is reported; silent by default.
    """
    fits: list[Fit] = []
    runs = [*((s, False) for s in components), *([(1, True)] if rival else [])]

    def advance(step: int) -> None:
        progress.update(len(fits) * steps + step, len(runs) * steps, "training")

    for s, flow in runs:
        fits.append(approximate(target, s, steps=steps, flow=flow, seed=seed, progress=advance))
        fit = fits[-1]
        reached = f"bound {fit.bound:.3f} ± {fit.bound_se:.3f} nats of log Z = {target.log_z:.3f}"
        progress.announce(f"{fit.name}: {reached}, {fit.covered:.0%} covered")
    return Comparison(target, fits)
