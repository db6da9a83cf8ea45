"""A mixture pushed through normalising flows."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.distributions import Transform

from mixvae._resources import make
from mixvae.distributions import Components, Flowed, with_volume
from mixvae.posteriors._base import Posterior, check_factory
from mixvae.posteriors._separate import extend_modules

FARTHEST = 6.0
"""Standard deviations out to which an inverse is tested."""
CLOSE = 1e-2
"""Relative error of an inverse that rounding or bisection can explain."""


class FlowPosterior(Posterior):
    """A posterior whose components are transformed by a flow, shared or one per component.

    With one flow per component the mixture's density at a draw needs every flow's inverse, so choose a flow
    whose inverse is fast, such as `CouplingFlow`. A shared flow is never inverted while training, so an inverse
    autoregressive one will do. On two levels the flow acts on z1.

    Monotone flows, such as neural autoregressive ones, are inverted numerically and on a bounded interval. Flows per
    component are inverted once here as a test; in evaluation mode every inverse is checked by going forward again,
    except those of flows with `fast_inverse`. A training step, which reads no values, checks nothing.

    Args:
        base: the posterior before the flow.
        build: makes one flow: a module whose `forward` returns a torch Transform of `latent` coordinates. If its
            inverse is exact and cheap, give the module an attribute `fast_inverse = True`.
        latent: how many of the last coordinates the flow transforms; the rest are unchanged.
        per_component: whether every component has its own flow.

    Raises:
        ValueError: the flow is per component and has no inverse, or one that fails within six standard deviations; or,
            in evaluation mode, an inverse fails where it matters.

    References:
        Kviman et al., Cooperation in the Latent Space (2023), https://arxiv.org/abs/2209.15514

    Example:
        >>> import torch
        >>> from mixvae import FlowPosterior, SeparateEncoders
        >>> from mixvae.flows import CouplingFlow
        >>> from mixvae.networks import GatedEncoder
        >>> base = SeparateEncoders(lambda: GatedEncoder((4,), 2, (8,)), 3)
        >>> posterior = FlowPosterior(base, lambda: CouplingFlow(2, hidden=(8,)), latent=2, per_component=True)
        >>> q = posterior(torch.ones(5, 4))
        >>> q.batch_shape, len(q.flows)
        (torch.Size([3, 5]), 3)
    """

    def __init__(self, base: Posterior, build: Callable[[], nn.Module], latent: int, *, per_component: bool = False):
        super().__init__()
        self.base = base
        check_factory(build, "a flow")
        self.build, self.per_component = build, per_component
        self.flows = nn.ModuleList(make(build, base.components if per_component else 1, "flows"))
        self.latent = latent
        if per_component:
            _check_inverse(self.flows[0], latent)

    @property
    def gathers(self) -> bool:
        """Whether components are selected by an index that stays on the device."""
        return self.base.gathers and not self.per_component

    @property
    def components(self) -> int:
        """Number of components A."""
        return self.base.components

    def log_pi(self, index: Int[Tensor, " J"] | None = None) -> Float[Tensor, " J"]:
        """Log mixture weights of the base."""
        return self.base.log_pi(index)

    def top_level(self) -> Callable[[Tensor], Components]:
        """The components after the flow; on two levels those over z2 alone, which the flow leaves unchanged."""
        top = self.base.top_level()
        return self if top is self.base else top

    def joint_prior(self, top: nn.Module, lower: nn.Module | None, latent: int) -> nn.Module:
        """The prior over all latents, as for the base."""
        return self.base.joint_prior(top, lower, latent)

    def extend(self, components: int, *, noise: float = 0.01, fresh: bool = False) -> None:
        """Add components in place, as `Posterior.extend`, each with its own flow unless one is shared."""
        old = self.components
        self.base.extend(components, noise=noise, fresh=fresh)
        if self.per_component:
            sources = [i % old for i in range(old, components)]
            extend_modules(self.flows, sources, self.build, noise, fresh=fresh)

    def forward(self, x: Float[Tensor, "B ..."], index: Int[Tensor, " J"] | None = None) -> Flowed:
        """Encode x and push the components through their flows."""
        q = self.base(x) if index is None else self.base(x, index)
        chosen = [0] if not self.per_component else range(self.components) if index is None else index.tolist()
        start = q.event_shape[0] - self.latent
        flows = [_OnTail(self.flows[i](), start) if start else self.flows[i]() for i in chosen]
        fast = bool(getattr(self.flows[0], "fast_inverse", False))
        exact = fast or bool(getattr(self.flows[0], "exact_inverse", False))
        return Flowed(q, flows, fast_inverse=fast, exact_inverse=exact, checked=not (exact or self.training))


class _OnTail(Transform):
    """A transform of the last coordinates that leaves the first ones unchanged."""

    def __init__(self, inner: Transform, start: int):
        super().__init__()
        self.inner, self.start = inner, start
        self.domain, self.codomain, self.bijective = inner.domain, inner.codomain, inner.bijective

    def _call(self, x: Tensor) -> Tensor:
        return torch.cat([x[..., : self.start], cast(Tensor, self.inner(x[..., self.start :]))], -1)

    def _inverse(self, y: Tensor) -> Tensor:
        return torch.cat([y[..., : self.start], cast(Tensor, self.inner.inv(y[..., self.start :]))], -1)

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        tail, volume = with_volume(self.inner, x[..., self.start :])
        return torch.cat([x[..., : self.start], tail], -1), volume

    @property
    def inv(self) -> Transform:
        return _OnTail(self.inner.inv, self.start)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return self.inner.log_abs_det_jacobian(x[..., self.start :], y[..., self.start :])


def _check_inverse(flow: nn.Module, latent: int) -> None:
    """Reject a flow that cannot be inverted at points out to six standard deviations."""
    name, instead = type(flow).__name__, "share it among the components, or choose one that has"
    with torch.no_grad():
        transform = flow()
        steps = torch.arange(1, latent + 1) * 0.7
        start = FARTHEST * torch.sin(torch.arange(64)[:, None] * steps)
        try:
            back = transform.inv(transform(start))
        except NotImplementedError:
            raise ValueError(
                f"{name} has no inverse, which a flow per component needs: {instead}, such as CouplingFlow"
            ) from None
        if start.is_meta:
            return
        error = ((back - start).abs() / (1 + start.abs())).nan_to_num(torch.inf).max()
        if not float(error) <= CLOSE:
            raise ValueError(
                f"the inverse of {name} misses by a relative {float(error):.2g} within {FARTHEST:g} standard "
                f"deviations, but a flow per component needs an exact one: {instead}, such as CouplingFlow"
            )
