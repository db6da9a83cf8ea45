"""Components transformed by normalising flows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.distributions import Transform

from mixvae.distributions._components import Components, Points

ROUND_TRIP = 1e-3
"""Largest |f(f⁻¹(z)) − z| / (1 + |z|) at which an inverse is trusted; in half precision a few rounding errors."""
NEGLIGIBLE = 30.0
"""A component this many nats below another cannot change the mixture's density by more than 10⁻¹³."""


class Flowed(Components):
    """Components pushed through flows: z_T = f_s(z_0) with z_0 ~ q_s, log q_s(z_T) = log q_s(z_0) − log |∂f_s/∂z_0|.

    Sampling goes forward; scoring inverts flow j, so component j is scored at f_j⁻¹(z_T), never at the z_0 that
    another component's flow started from. Draws of a shared flow keep their z_0, which is then the inverse under every
    component: such a flow is never inverted while training. With flows per component and without a fast inverse, a draw
    is scored at its z_0 under its own component, and by inverses only under the others.

    Args:
        base: the components before the flow.
        flows: one flow that all components share, or one per component. A flow is a torch Transform with
            event dimension 1 whose forward direction samples.
        fast_inverse: whether the flows' inverses are exact and about as cheap as sampling.
        exact_inverse: whether the inverses are exact up to rounding, whatever they cost.
        checked: whether to verify each inverse by going forward again, which reads values: some flows are inverted
            numerically, on a bounded interval. A failed inverse is ignored where its component cannot matter beside the
            others, even at the nearest point found.

    Attributes:
        scores_anywhere: whether the density at any point, not only at the components' own draws, is exact:
            `exact_inverse`, if that of the base is too.

    Raises:
        ValueError: the number of flows is neither 1 nor S; or, later and if checked, an inverse fails where it matters.

    References:
        Kingma et al., Improving Variational Inference with Inverse Autoregressive Flow (2016),
        https://arxiv.org/abs/1606.04934

    Example:
        >>> import torch
        >>> from mixvae.distributions import DiagonalGaussian, Flowed
        >>> from torch.distributions import AffineTransform
        >>> base = DiagonalGaussian(torch.zeros(1, 1, 1), torch.zeros(1, 1, 1))
        >>> q = Flowed(base, [AffineTransform(torch.tensor([3.0]), torch.tensor([2.0]), event_dim=1)])  # N(3, 2²)
        >>> q.log_prob(torch.full((1, 1, 1), 3.0))  # −½ log 2π − log 2
        tensor([[-1.6121]])
    """

    def __init__(
        self,
        base: Components,
        flows: Sequence[Transform],
        *,
        fast_inverse: bool = False,
        exact_inverse: bool = False,
        checked: bool = False,
    ):
        components = base.batch_shape[0]
        if len(flows) not in (1, components):
            raise ValueError(f"{components} components take 1 shared flow or {components} flows; got {len(flows)}")
        self.base = base
        self.flows = tuple(flows)
        self.fast_inverse, self.exact_inverse, self.checked = fast_inverse, fast_inverse or exact_inverse, checked
        self.scores_anywhere = self.exact_inverse and base.scores_anywhere
        super().__init__(base.batch_shape, base.event_shape, base.log_pi)

    @property
    def shared(self) -> bool:
        """Whether all components share one flow."""
        return len(self.flows) == 1

    def rsample(self, sample_shape: Sequence[int] = (), noise: Tensor | None = None) -> Tensor:
        """Draw from every component and push the draw through its flow: (*sample_shape, S, B, D)."""
        return self._forward(self.base.rsample(sample_shape, noise))[0]

    def log_prob(self, value: Points) -> Float[Tensor, "... S B"]:
        """Log-density in nats at f_j⁻¹(value) for every component j.

        Raises:
            ValueError: inverses are checked, and one fails where it matters.
        """
        log_q, failed = self._score(value)
        if value.shape[-3] == 1:
            self._check(log_q, failed)
        elif failed is not None:
            _refuse(failed)
        return log_q

    def noise_of(self, value: Points) -> Float[Tensor, "... S B D"]:
        """Noise of a value: that of f_j⁻¹(value) under the base."""
        return self.base.noise_of(self._start(value)[0])

    def select(self, index: Int[Tensor, " K"]) -> Flowed:
        """Return the components with these positions, each with its own flow."""
        flows = self.flows if self.shared else [self.flows[i] for i in index.tolist()]
        kind = {"fast_inverse": self.fast_inverse, "exact_inverse": self.exact_inverse, "checked": self.checked}
        return Flowed(self.base.select(index), flows, **kind)

    def cross_log_prob(self, z: Float[Tensor, "L S B D"]) -> Float[Tensor, "L S J B"]:
        """Log-density of every draw under every component of its own example."""
        if not self.shared:
            return super().cross_log_prob(z)
        start, log_volume = self._start(z)
        return self.base.cross_log_prob(start) + log_volume.unsqueeze(-2)

    def pairwise_log_prob(self, z: Float[Tensor, "N D"]) -> Float[Tensor, "N S B"]:
        """Log-density of every point under every component of every example."""
        if not self.shared:
            return super().pairwise_log_prob(z)
        start, log_volume = self._start(z)
        return self.base.pairwise_log_prob(start) + log_volume[:, None, None]

    def rsample_and_cross_log_prob(
        self, sample_shape: Sequence[int], own: Int[Tensor, " S"] | None = None, noise: Tensor | None = None
    ) -> tuple[Float[Tensor, "L S B D"], Float[Tensor, "L S J B"]]:
        """Draw and score; draws are scored without an inverse where their starting points are known.

        Raises:
            ValueError: inverses are checked, and one fails where it matters.
        """
        if not self.shared:
            return self._draw_from_each(sample_shape, own, noise)
        start, log_base = self.base.rsample_and_cross_log_prob(sample_shape, own, noise)
        z, log_volume = with_volume(self.flows[0], start)
        return z, log_base - log_volume.unsqueeze(-2)

    def _draw_from_each(
        self, sample_shape: Sequence[int], own: Int[Tensor, " S"] | None, noise: Tensor | None
    ) -> tuple[Float[Tensor, "L S B D"], Float[Tensor, "L S J B"]]:
        """Draw and score with flows per component."""
        if self.fast_inverse:
            return super().rsample_and_cross_log_prob(sample_shape, own, noise)
        drawn = cast(Flowed, self.drawn(own))
        start = drawn.base.rsample(sample_shape, noise)
        z, log_volume = drawn._forward(start)
        known = drawn.base.log_prob(start) - log_volume
        every = torch.arange(len(self.flows), device=z.device)
        is_own = ((every if own is None else own.to(z.device))[:, None] == every).unsqueeze(-1)  # (S, J, 1)
        log_q, failed = self._score(z.unsqueeze(-3))
        log_q = torch.where(is_own, known.unsqueeze(-2), log_q)
        self._check(log_q, None if failed is None else failed & ~is_own)
        return z, log_q

    def _score(self, value: Tensor) -> tuple[Tensor, Tensor | None]:
        """Log-density by inverses, (…, S, B), and, if checked, where the inverses fail."""
        start, log_volume = self._inverse(value)
        return self.base.log_prob(start) + log_volume, self._failed(value, start) if self.checked else None

    def _start(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """As `_inverse`; refuses any inverse that fails, if checked."""
        start, log_volume = self._inverse(value)
        if self.checked:
            _refuse(self._failed(value, start))
        return start, log_volume

    def _check(self, log_q: Tensor, failed: Tensor | None) -> None:
        """Refuse inverses that fail, except for components that cannot matter beside the others at the same point."""
        if failed is not None:
            joint = (log_q + self.log_pi[:, None]).nan_to_num(math.inf)
            best = joint.masked_fill(failed, -math.inf).amax(-2, keepdim=True)
            _refuse(failed & (joint > best - NEGLIGIBLE))

    @torch.no_grad()
    def _failed(self, value: Tensor, start: Tensor) -> Tensor:
        """Where a flow does not lead from the start back to the value, (…, S or 1, B)."""
        error = ((self._forward(start)[0] - value).abs() / (1 + value.abs())).amax(-1)
        return ~(error <= max(ROUND_TRIP, 8 * torch.finfo(value.dtype).eps))

    def _forward(self, start: Tensor) -> tuple[Tensor, Tensor]:
        """Push (…, S, B, D) through each component's own flow."""
        if self.shared:
            return with_volume(self.flows[0], start)
        parts = [with_volume(flow, start[..., s, :, :]) for s, flow in enumerate(self.flows)]
        return torch.stack([z for z, _ in parts], -3), torch.stack([ladj for _, ladj in parts], -2)

    def _inverse(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Points that each component's flow maps to the value, and the log-volume of its inverse."""
        if self.shared:
            return with_volume(self.flows[0].inv, value)
        own = value.shape[-3] == len(self.flows)
        parts = [with_volume(flow.inv, value[..., s if own else 0, :, :]) for s, flow in enumerate(self.flows)]
        return torch.stack([z for z, _ in parts], -3), torch.stack([ladj for _, ladj in parts], -2)


def _refuse(failed: Tensor) -> None:
    """Refuse points whose inverse fails.

    Raises:
        ValueError: there are any.
    """
    if bool(failed.any()):
        raise ValueError(
            f"the numeric inverse of a flow fails at {int(failed.sum())} of {failed.numel()} densities, so that they "
            "would be wrong: share the flow, or use CouplingFlow or an affine autoregressive transform"
        )


def with_volume(flow: Transform, x: Tensor) -> tuple[Tensor, Tensor]:
    """Apply a flow, and return the result with the log-determinant of its Jacobian.

    Example:
        >>> import torch
        >>> from mixvae.distributions import with_volume
        >>> from torch.distributions import AffineTransform
        >>> with_volume(AffineTransform(0.0, torch.tensor([2.0]), event_dim=1), torch.ones(3, 1))[1]  # log 2 each
        tensor([0.6931, 0.6931, 0.6931])
    """
    if hasattr(flow, "call_and_ladj"):  # zuko's, which computes both at once
        return flow.call_and_ladj(x)  # pyright: ignore[reportAttributeAccessIssue]
    y = cast(Tensor, flow(x))
    return y, flow.log_abs_det_jacobian(x, y)
