"""Normalising flows over zuko's transforms, to be shared by all components or one per component."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.distributions import Distribution, Transform

from mixvae.parts import Part
from mixvae.resources import make

_validate_args = Distribution._validate_args
import zuko.distributions  # noqa: E402, F401
import zuko.flows  # noqa: E402
from zuko.transforms import ComposedTransform  # noqa: E402

Distribution.set_default_validate_args(_validate_args)  # zuko switches torch's validation off for everyone


class ZukoFlow(Part):
    """Transforms of zuko one after another, whose forward direction samples.

    Args:
        latent: latent size D.
        transform: makes one of zuko's lazy transforms of so many features, such as
            `zuko.flows.MaskedAutoregressiveTransform`; or any module whose `forward()` returns a torch Transform.
        transforms: number of transforms T.
        options: what `transform` takes besides `features`.

    Raises:
        ValueError: there is no transform.

    References:
        Rozet et al., zuko (2022), https://github.com/probabilists/zuko
    """

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
        """Options of one transform among several: none here."""
        del step, latent
        return {}

    def forward(self) -> Transform:
        """Return the flow."""
        return ComposedTransform(*(step() for step in self.steps))


class InverseAutoregressiveFlow(ZukoFlow):
    """Inverse autoregressive flow: one pass to sample, D passes to invert. Made to be shared by all components.

    Args:
        latent: latent size D.
        transforms: number of transforms T; the order of the coordinates is turned round after each.
        hidden: widths of the masked layers.

    References:
        Kingma et al., Improving Variational Inference with Inverse Autoregressive Flow (2016),
        https://arxiv.org/abs/1606.04934
    """

    def __init__(self, latent: int, transforms: int = 2, hidden: Sequence[int] = (320,)):
        make: Callable[..., nn.Module] = zuko.flows.MaskedAutoregressiveTransform
        super().__init__(latent, make, transforms, hidden_features=tuple(hidden), activation=nn.ELU)

    def options_of(self, step: int, latent: int) -> dict[str, object]:
        """Every second transform goes through the coordinates backwards."""
        order = torch.arange(latent)
        return {"order": order.flip(0) if step % 2 else order}


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
    """

    def __init__(self, latent: int, transforms: int = 4, hidden: Sequence[int] = (64, 64)):
        if latent % 2:
            raise ValueError(f"a coupling flow splits the latents in halves: their number must be even; got {latent}")
        make: Callable[..., nn.Module] = zuko.flows.GeneralCouplingTransform
        super().__init__(latent, make, transforms, hidden_features=tuple(hidden), activation=nn.ELU)

    def options_of(self, step: int, latent: int) -> dict[str, object]:
        """Every second transform changes the other half."""
        odd = torch.arange(latent) % 2 == 1
        return {"mask": ~odd if step % 2 else odd}
