"""A mixture of hundreds of components from one encoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mixvae.distributions import DiagonalGaussian
from mixvae.networks import LOG_VAR_RANGE, OneHotHead
from mixvae.posteriors._base import MixturePosterior, add_noise, check_factory


class OneHotPosterior(MixturePosterior):
    """A mixture of A Gaussians from one network, which is conditioned on the component by a one-hot vector.

    A trunk computes features of x, once for all components; a small residual head turns them into each component's
    mean and log-variance. Each further component costs 6 · D weights, not a network.

    Args:
        build: makes the trunk, a module that maps x (B, *shape) to features (B, F); called once.
        shape: event shape of x.
        latent: latent size D.
        components: number of components A.
        weights: mixture weights π, positive, of any scale; uniform by default.
        learn_weights: whether the weights are trained.
        log_var_range: smallest and largest log σ².

    Raises:
        ValueError: the trunk does not return features (B, F), or log_var_range is not two increasing numbers.

    References:
        Hotti et al., Efficient Mixture Learning in Black-Box Variational Inference (2024),
        https://arxiv.org/abs/2406.07083

    Example:
        >>> import torch
        >>> from mixvae import OneHotPosterior
        >>> from mixvae.networks import GatedTrunk
        >>> posterior = OneHotPosterior(lambda: GatedTrunk((1, 28, 28), (16,)), (1, 28, 28), latent=2, components=400)
        >>> posterior(torch.ones(5, 1, 28, 28)).batch_shape
        torch.Size([400, 5])
        >>> posterior(torch.ones(5, 1, 28, 28), torch.tensor([0, 399])).batch_shape
        torch.Size([2, 5])
    """

    def __init__(
        self,
        build: Callable[[], nn.Module],
        shape: Sequence[int],
        latent: int,
        components: int,
        weights: Sequence[float] | None = None,
        *,
        learn_weights: bool = False,
        log_var_range: Sequence[float] = LOG_VAR_RANGE,
    ):
        super().__init__(components, weights, learn_weights=learn_weights)
        check_factory(build, "the trunk")
        self.trunk = build()
        with torch.no_grad():
            features = self.trunk(torch.zeros(2, *shape))
        if not isinstance(features, Tensor) or features.dim() != 2 or len(features) != 2:
            got = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise ValueError(
                f"{type(self.trunk).__name__} must map x (B, …) to features (B, F), as GatedTrunk does; "
                f"for B = 2 it gave {got}"
            )
        self.head = OneHotHead(features.shape[1], latent, components, log_var_range=log_var_range)

    @property
    def gathers(self) -> bool:
        """True: an embedding is looked up on the device."""
        return True

    def _add(self, sources: Sequence[int], noise: float, *, fresh: bool) -> None:
        old = self.head.component
        added = old.detach()[list(sources)].clone()
        if fresh:
            low, high = old.detach().aminmax()
            nn.init.uniform_(added, float(low), float(high))
        else:
            add_noise(added, noise)
        self.head.component = nn.Parameter(torch.cat([old.detach(), added]), requires_grad=old.requires_grad)

    def forward(self, x: Float[Tensor, "B ..."], index: Int[Tensor, " J"] | None = None) -> DiagonalGaussian:
        """Encode x with every component, or with those of `index`."""
        mean, log_var = self.head(self.trunk(x), index)
        return DiagonalGaussian(mean, log_var, self.log_pi(index))
