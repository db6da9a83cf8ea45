"""A mixture of two-level posteriors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mixvae.distributions import ChainComponents, Components, DiagonalGaussian
from mixvae.networks import TwoLevelEncoder, stack_components
from mixvae.posteriors._base import MixturePosterior
from mixvae.posteriors._separate import distinct_modules, extend_modules
from mixvae.priors import TwoLevelPrior


class _Below:
    """Lower level of some components, each with its own function of z2."""

    def __init__(self, functions: Sequence[Callable[[Tensor], tuple[Tensor, Tensor]]]):
        self.functions = functions

    def __call__(self, z2: Tensor) -> tuple[Tensor, Tensor]:
        return stack_components(self.functions, z2)

    def select(self, index: Int[Tensor, " K"]) -> _Below:
        return _Below([self.functions[i] for i in index.tolist()])


class TwoLevelPosterior(MixturePosterior):
    """A mixture over two levels of latents, Σ_s π_s q_s(z2|x) q_s(z1|z2, x), with z = [z2, z1].

    Args:
        build: makes one encoder, a module that maps x to mean and log-variance of z2 and a function from z2
            (…, B, D) to mean and log-variance of z1, as `TwoLevelEncoder` does; called once per component.
        components: number of components A.
        weights: mixture weights π, positive, of any scale; uniform by default.
        learn_weights: whether the weights are trained.

    References:
        Kviman et al., Cooperation in the Latent Space (2023), https://arxiv.org/abs/2209.15514

    Example:
        >>> import torch
        >>> from mixvae import TwoLevelPosterior
        >>> from mixvae.networks import TwoLevelDense
        >>> posterior = TwoLevelPosterior(lambda: TwoLevelDense((4,), 2, (8,)), components=3)
        >>> x = torch.ones(5, 4)
        >>> posterior(x).event_shape, posterior.top_level()(x).event_shape  # [z2, z1], and z2 alone
        (torch.Size([4]), torch.Size([2]))
    """

    def __init__(
        self,
        build: Callable[[], TwoLevelEncoder],
        components: int,
        weights: Sequence[float] | None = None,
        *,
        learn_weights: bool = False,
    ):
        super().__init__(components, weights, learn_weights=learn_weights)
        self.build = build
        self.encoders: nn.ModuleList = distinct_modules(build, components)

    def _add(self, sources: Sequence[int], noise: float, *, fresh: bool) -> None:
        extend_modules(self.encoders, sources, self.build, noise, fresh=fresh)

    def forward(self, x: Float[Tensor, "B ..."], index: Int[Tensor, " J"] | None = None) -> ChainComponents:
        """Encode x with every encoder, or with those of `index`."""
        chosen = range(self.components) if index is None else index.tolist()
        mean, log_var, below = zip(*(self.encoders[i](x) for i in chosen), strict=True)
        top = DiagonalGaussian(torch.stack(mean), torch.stack(log_var), self.log_pi(index))
        return ChainComponents(top, _Below(below), top.event_shape[0])

    def top_level(self) -> Callable[[Tensor], Components]:
        """The components over z2 alone."""
        return self.top

    def joint_prior(self, top: nn.Module, lower: nn.Module | None, latent: int) -> TwoLevelPrior:
        """p(z2) p(z1|z2), from the prior over z2 and the network below it.

        Raises:
            ValueError: there is no lower network.
        """
        if lower is None:
            raise ValueError(
                "a TwoLevelPosterior needs model.lower, which maps z2 to mean and log-variance of p(z1|z2), such as "
                "GaussianNetwork"
            )
        return TwoLevelPrior(top, lower, latent)

    def top(self, x: Float[Tensor, "B ..."]) -> DiagonalGaussian:
        """Components over z2 alone, which a VampPrior on z2 pools."""
        encoders = cast(Sequence[TwoLevelEncoder], self.encoders)
        mean, log_var = zip(*(encoder.encode_top(x) for encoder in encoders), strict=True)
        return DiagonalGaussian(torch.stack(mean), torch.stack(log_var), self.log_pi())
