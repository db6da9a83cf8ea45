"""Components transformed by normalising flows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.distributions import Transform

from mixvae.distributions._components import Components, Points


class Flowed(Components):
    """Components pushed through flows: z_T = f_s(z_0) with z_0 ~ q_s, log q_s(z_T) = log q_s(z_0) − log |∂f_s/∂z_0|.

    Sampling goes forward; scoring inverts flow j, so component j is scored at f_j⁻¹(z_T), never at the z_0 that
    another component's flow started from. Draws of a shared flow keep their z_0, which is then the inverse under every
    component: such a flow is never inverted while training.

    Args:
        base: the components before the flow.
        flows: one flow that all components share, or one per component. A flow is a torch Transform with
            event dimension 1 whose forward direction samples.

    Raises:
        ValueError: the number of flows is neither 1 nor S.

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

    def __init__(self, base: Components, flows: Sequence[Transform]):
        components = base.batch_shape[0]
        if len(flows) not in (1, components):
            raise ValueError(f"{components} components take 1 shared flow or {components} flows; got {len(flows)}")
        self.base = base
        self.flows = tuple(flows)
        super().__init__(base.batch_shape, base.event_shape, base.log_pi)

    @property
    def shared(self) -> bool:
        """Whether all components share one flow."""
        return len(self.flows) == 1

    def rsample(self, sample_shape: Sequence[int] = (), noise: Tensor | None = None) -> Tensor:
        """Draw from every component and push the draw through its flow: (*sample_shape, S, B, D)."""
        return self._forward(self.base.rsample(sample_shape, noise))[0]

    def log_prob(self, value: Points) -> Float[Tensor, "... S B"]:
        """Log-density in nats at f_j⁻¹(value) for every component j."""
        start, log_volume = self._inverse(value)
        return self.base.log_prob(start) + log_volume

    def noise_of(self, value: Points) -> Float[Tensor, "... S B D"]:
        """Noise of a value: that of f_j⁻¹(value) under the base."""
        return self.base.noise_of(self._inverse(value)[0])

    def select(self, index: Int[Tensor, " K"]) -> Flowed:
        """Return the components with these positions, each with its own flow."""
        flows = self.flows if self.shared else [self.flows[i] for i in index.tolist()]
        return Flowed(self.base.select(index), flows)

    def cross_log_prob(self, z: Float[Tensor, "L S B D"]) -> Float[Tensor, "L S J B"]:
        """Log-density of every draw under every component of its own example."""
        if not self.shared:
            return super().cross_log_prob(z)
        start, log_volume = self._inverse(z)
        return self.base.cross_log_prob(start) + log_volume.unsqueeze(-2)

    def pairwise_log_prob(self, z: Float[Tensor, "N D"]) -> Float[Tensor, "N S B"]:
        """Log-density of every point under every component of every example."""
        if not self.shared:
            return super().pairwise_log_prob(z)
        start, log_volume = self._inverse(z)
        return self.base.pairwise_log_prob(start) + log_volume[:, None, None]

    def rsample_and_cross_log_prob(
        self, sample_shape: Sequence[int], own: Int[Tensor, " S"] | None = None, noise: Tensor | None = None
    ) -> tuple[Float[Tensor, "L S B D"], Float[Tensor, "L S J B"]]:
        """Draw and score; draws of a shared flow are scored without inverting it."""
        if not self.shared:
            return super().rsample_and_cross_log_prob(sample_shape, own, noise)
        start, log_base = self.base.rsample_and_cross_log_prob(sample_shape, own, noise)
        z, log_volume = with_volume(self.flows[0], start)
        return z, log_base - log_volume.unsqueeze(-2)

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
