"""Normalising flows built from zuko's transforms, shared by all components or one per component."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Transform, constraints

from mixvae._resources import make
from mixvae.distributions import with_volume
from mixvae.parts import Part

_validate_args = Distribution._validate_args
import zuko.distributions  # noqa: E402, F401
import zuko.flows  # noqa: E402
from zuko.transforms import CouplingTransform  # noqa: E402

Distribution.set_default_validate_args(_validate_args)  # zuko switches torch's validation off globally


class Composed(Transform):
    """Composition of transforms of vectors; the log-determinants of their Jacobians add up.

    Like zuko's own composition, but built without inspecting event dimensions, so that it compiles.

    Args:
        steps: transforms of R^D, in the order in which they are applied.
    """

    domain = codomain = constraints.real_vector

    def __init__(self, steps: Sequence[Transform]):
        super().__init__()
        self.steps = tuple(steps)
        self.bijective = all(step.bijective for step in self.steps)

    @property
    def inv(self) -> Composed:
        """The inverses in reverse."""
        return Composed([step.inv for step in reversed(self.steps)])

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Apply all, and return the result with the log-determinant of their Jacobian."""
        x, total = with_volume(self.steps[0], x)
        for step in self.steps[1:]:
            x, more = with_volume(step, x)
            total = total + more
        return x, total

    def _call(self, x: Tensor) -> Tensor:
        for step in self.steps:
            x = step(x)  # pyright: ignore[reportAssignmentType]
        return x

    def _inverse(self, y: Tensor) -> Tensor:
        for step in reversed(self.steps):
            y = step.inv(y)  # pyright: ignore[reportAssignmentType]
        return y

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Log-determinant of the Jacobian at x."""
        del y
        return self.call_and_ladj(x)[1]


class ZukoFlow(Part):
    """A sequence of zuko's transforms, whose forward direction samples.

    Transforms that zuko inverts by bisection, between −10 and 10 (monotone networks, sums of squares, Bernstein
    polynomials), are best shared by all components: a density at points outside is refused in evaluation.

    Args:
        latent: latent size D.
        transform: makes one of zuko's lazy transforms over `features` coordinates, such as
            `zuko.flows.MaskedAutoregressiveTransform`; or any module whose `forward()` returns a torch Transform.
        transforms: number of transforms T.
        options: further arguments of `transform`.

    Attributes:
        fast_inverse: whether the inverse is exact and about as cheap as sampling, so that the density is available at
            any point and not only at the flow's own draws. False unless a subclass says otherwise; set it to True on a
            flow of transforms for which it holds.
        exact_inverse: whether the inverse is exact up to rounding, whatever it costs, as for an affine autoregressive
            transform: refined likelihoods then draw from the posterior too.

    Raises:
        ValueError: there are no transforms.

    References:
        Rozet et al., zuko (2022), https://github.com/probabilists/zuko

    Example:
        >>> import torch
        >>> from mixvae.flows import ZukoFlow
        >>> from zuko.flows import MaskedAutoregressiveTransform
        >>> flow = ZukoFlow(2, MaskedAutoregressiveTransform, transforms=3, hidden_features=(8,))
        >>> flow()(torch.zeros(5, 2)).shape
        torch.Size([5, 2])
    """

    fast_inverse: bool = False

    def __init__(self, latent: int, transform: Callable[..., nn.Module], transforms: int = 2, **options: object):
        super().__init__()
        if transforms < 1:
            raise ValueError(f"a flow needs at least 1 transform; got {transforms}")
        numbers = itertools.count()
        self.steps = nn.ModuleList(
            make(
                lambda: transform(features=latent, **options, **self.options_of(next(numbers), latent)),
                transforms,
                "transforms",
            )
        )

    def options_of(self, step: int, latent: int) -> dict[str, object]:
        """Options of a single transform: none by default."""
        del step, latent
        return {}

    def forward(self) -> Transform:
        """Return the flow."""
        return Composed([step() for step in self.steps])


class InverseAutoregressiveFlow(ZukoFlow):
    """Inverse autoregressive flow: one pass to sample, D passes to invert. Meant to be shared by all components.

    Args:
        latent: latent size D.
        transforms: number of transforms T; the order of the coordinates is reversed after each.
        hidden: widths of the masked layers.

    References:
        Kingma et al., Improving Variational Inference with Inverse Autoregressive Flow (2016),
        https://arxiv.org/abs/1606.04934

    Example:
        >>> import torch
        >>> from mixvae.flows import InverseAutoregressiveFlow
        >>> transform = InverseAutoregressiveFlow(3, hidden=(8,))()
        >>> z = torch.randn(5, 3)
        >>> torch.allclose(transform.inv(transform(z)), z, atol=1e-5)
        True
    """

    exact_inverse: bool = True

    def __init__(self, latent: int, transforms: int = 2, hidden: Sequence[int] = (320,)):
        make: Callable[..., nn.Module] = zuko.flows.MaskedAutoregressiveTransform
        super().__init__(latent, make, transforms, hidden_features=tuple(hidden), activation=nn.ELU)

    def options_of(self, step: int, latent: int) -> dict[str, object]:
        """Every second transform visits the coordinates in reverse order."""
        order = torch.arange(latent)
        return {"order": order.flip(0) if step % 2 else order}


class _Coupling(zuko.flows.GeneralCouplingTransform):
    """zuko's coupling with the indices of its halves computed once, not at every call as in zuko."""

    kept: Tensor
    changed: Tensor

    def __init__(self, features: int, **options: Any):
        super().__init__(features, **options)
        mask = cast(Tensor, self.mask)
        self.register_buffer("kept", mask.nonzero().squeeze(-1), persistent=False)
        self.register_buffer("changed", (~mask).nonzero().squeeze(-1), persistent=False)

    def forward(self, c: Any = None) -> Transform:
        """Return the transform."""
        return _Halves(partial(self.meta, c), self.kept, self.changed)


class _Halves(CouplingTransform):
    """A coupling transform whose halves are given by index."""

    def __init__(self, meta: Callable[[Tensor], Transform], kept: Tensor, changed: Tensor):
        Transform.__init__(self)
        self.meta, self.idx_a, self.idx_b = meta, kept, changed


class CouplingFlow(ZukoFlow):
    """Affine coupling flow: one pass to sample and one to invert, so that every component may have its own.

    Args:
        latent: latent size D, even.
        transforms: number of transforms T; the halves swap after each.
        hidden: widths of the layers.

    Raises:
        ValueError: the latent size is odd.

    References:
        Dinh et al., Density estimation using Real NVP (2016), https://arxiv.org/abs/1605.08803

    Example:
        >>> import torch
        >>> from mixvae.flows import CouplingFlow
        >>> transform = CouplingFlow(4, hidden=(8,))()
        >>> z = torch.randn(5, 4)
        >>> torch.allclose(transform.inv(transform(z)), z, atol=1e-5)
        True
    """

    fast_inverse: bool = True

    def __init__(self, latent: int, transforms: int = 4, hidden: Sequence[int] = (64, 64)):
        if latent % 2:
            raise ValueError(f"a coupling flow splits the latents into halves: their number must be even; got {latent}")
        super().__init__(latent, _Coupling, transforms, hidden_features=tuple(hidden), activation=nn.ELU)

    def options_of(self, step: int, latent: int) -> dict[str, object]:
        """Every second transform changes the other half."""
        odd = torch.arange(latent) % 2 == 1
        return {"mask": ~odd if step % 2 else odd}
