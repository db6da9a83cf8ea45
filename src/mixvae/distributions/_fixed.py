"""A distribution as a prior in place of a module, and the support of a distribution."""

from __future__ import annotations

from torch import Tensor
from torch.distributions import Distribution, constraints

from mixvae.parts import Part


class Fixed(Part):
    """Any torch Distribution as a prior that is not trained.

    Args:
        distribution: batch shape () and event shape (D,). Its tensors stay on the device they were created on.

    Raises:
        ValueError: the shape is different, or one of its tensors requires gradients, which no optimiser would find.

    Example:
        >>> import torch
        >>> from torch.distributions import Independent, Laplace
        >>> from mixvae.distributions import Fixed
        >>> prior = Fixed(Independent(Laplace(torch.zeros(2), torch.ones(2)), 1))
        >>> prior().event_shape, list(prior.parameters())
        (torch.Size([2]), [])
    """

    def __init__(self, distribution: Distribution):
        super().__init__()
        if len(distribution.batch_shape) or len(distribution.event_shape) != 1:
            raise ValueError(
                f"a prior has batch shape () and event shape (D,); got {tuple(distribution.batch_shape)} and "
                f"{tuple(distribution.event_shape)}: Independent(…, 1) turns the last axis of a batch into an event"
            )
        if name := _trainable(distribution):
            raise ValueError(
                f"{name} of the prior requires gradients, but a bare {type(distribution).__name__} has no parameters "
                "that an optimiser finds: give an nn.Module that holds them and returns the distribution"
            )
        self.distribution = distribution

    def forward(self) -> Distribution:
        """Return the distribution."""
        return self.distribution


def _trainable(distribution: Distribution) -> str | None:
    """Name of a tensor within a distribution that requires gradients."""
    for name, value in vars(distribution).items():
        if isinstance(value, Tensor) and value.requires_grad:
            return name
        if isinstance(value, Distribution) and (inner := _trainable(value)):
            return inner
    return None


def same_everywhere(support: constraints.Constraint) -> bool:
    """Whether a support has the same bounds for all distributions of a batch; of a single one it is not known.

    Example:
        >>> import torch
        >>> from torch.distributions import Independent, Uniform
        >>> from mixvae.distributions import same_everywhere
        >>> low = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
        >>> [same_everywhere(Independent(Uniform(a, a + 2), 1).support) for a in (low, torch.zeros(2, 2))]
        [False, True]
    """
    while isinstance(support, constraints.independent):
        bounds = [value for value in vars(support.base_constraint).values() if isinstance(value, Tensor)]
        axes = support.reinterpreted_batch_ndims
        for bound in bounds:
            each = bound.flatten(0, -axes - 1) if bound.dim() > axes else bound[None]
            if bound.dim() > axes and (len(each) == 1 or bool((each != each[:1]).any())):
                return False
        support = support.base_constraint
    return True


def support_of(p: Distribution) -> constraints.Constraint | None:
    """The support of a distribution; None if it does not define one.

    Example:
        >>> import torch
        >>> from mixvae.distributions import support_of
        >>> bare = torch.distributions.Distribution(validate_args=False)
        >>> support_of(torch.distributions.Bernoulli(0.5)).is_discrete, support_of(bare)
        (True, None)
    """
    try:
        return p.support
    except NotImplementedError:
        return None
