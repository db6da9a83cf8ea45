"""Variational posteriors q(z|x): mixtures whose components are computed from x."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mixvae.distributions import Components, DiagonalGaussian


class Posterior(nn.Module, ABC):
    """A mixture of A components given x: `forward` returns its `Components`.

    Args:
        components: number of components A.
        weights: mixture weights π, positive, of any scale; uniform by default.
        learn_weights: whether the weights are trained, starting from `weights`.

    Raises:
        ValueError: the number of components is not positive, or the weights do not fit it.
    """

    log_scores: Tensor

    def __init__(self, components: int, weights: Sequence[float] | None = None, *, learn_weights: bool = False):
        super().__init__()
        if components < 1:
            raise ValueError(f"a mixture needs at least 1 component; got {components}")
        scores = torch.ones(components) if weights is None else torch.as_tensor(weights, dtype=torch.float32)
        if scores.shape != (components,) or not bool((scores > 0).all() and scores.isfinite().all()):
            raise ValueError(f"weights must be {components} positive numbers, one per component; got {weights}")
        if learn_weights:
            self.log_scores = nn.Parameter(scores.log())
        else:
            self.register_buffer("log_scores", scores.log())

    @property
    def components(self) -> int:
        """Number of components A."""
        return len(self.log_scores)

    def log_pi(self, index: Int[Tensor, " J"] | None = None) -> Float[Tensor, " J"]:
        """Log mixture weights; of J active components log(A/J · π_j), which keeps the bound unbiased below."""
        log_pi = self.log_scores.log_softmax(0)
        if index is None:
            return log_pi
        return log_pi[index] + math.log(self.components / len(index))

    @abstractmethod
    def forward(self, x: Float[Tensor, "B ..."], index: Int[Tensor, " J"] | None = None) -> Components:
        """Encode x.

        Args:
            x: a batch of observations.
            index: which components to compute; all by default.
        """


class SeparateEncoders(Posterior):
    """A mixture of A separate encoder networks, one Gaussian each: the Mixture VAE of the paper.

    Any module that maps x to mean and log-variance becomes a mixture in one line:

        posterior = SeparateEncoders(lambda: MyEncoder(784, 40), components=4)

    Args:
        build: makes one encoder; called once per component, so that each starts from its own random weights.
            An encoder maps (B, *shape) to mean and log-variance, both (B, D).
        components: number of encoders A.
        weights: mixture weights π, positive, of any scale; uniform by default.
        learn_weights: whether the weights are trained.

    Raises:
        ValueError: `build` returns the same module twice, or an encoder does not give two tensors (B, D).

    References:
        Kviman et al., Cooperation in the Latent Space (2023), https://arxiv.org/abs/2209.15514
    """

    def __init__(
        self,
        build: Callable[[], nn.Module],
        components: int,
        weights: Sequence[float] | None = None,
        *,
        learn_weights: bool = False,
    ):
        super().__init__(components, weights, learn_weights=learn_weights)
        encoders = [build() for _ in range(components)]
        if len({id(encoder) for encoder in encoders}) < components:
            raise ValueError("build must make a new encoder at every call; it returned the same module twice")
        self.encoders = nn.ModuleList(encoders)

    def forward(self, x: Float[Tensor, "B ..."], index: Int[Tensor, " J"] | None = None) -> DiagonalGaussian:
        """Encode x by every encoder, or by those of `index`."""
        chosen = range(self.components) if index is None else index.tolist()
        encoded = [_mean_and_log_var(self.encoders[i], x) for i in chosen]
        mean, log_var = (torch.stack(part) for part in zip(*encoded, strict=True))
        return DiagonalGaussian(mean, log_var, self.log_pi(index))


def _mean_and_log_var(encoder: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Run one encoder and check what it gives."""
    encoded = encoder(x)
    if not (isinstance(encoded, tuple | list) and len(encoded) == 2 and all(map(torch.is_tensor, encoded))):
        raise ValueError(
            f"{type(encoder).__name__} must return a pair (mean, log-variance) of tensors; got {_describe(encoded)}"
        )
    mean, log_var = encoded
    if mean.dim() != 2 or len(mean) != len(x) or mean.shape != log_var.shape:
        raise ValueError(
            f"{type(encoder).__name__} must return mean and log-variance of shape (B, D) with B = {len(x)}; "
            f"got {tuple(mean.shape)} and {tuple(log_var.shape)}"
        )
    return mean, log_var


def _describe(value: object) -> str:
    """Type and shape of what a user's module returned."""
    shape = f" of shape {tuple(value.shape)}" if isinstance(value, Tensor) else ""
    return type(value).__name__ + shape
