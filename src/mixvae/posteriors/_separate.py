"""A mixture of separate encoders, one Gaussian each."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.distributions import Distribution

from mixvae._resources import check, gib, make
from mixvae.distributions import DiagonalGaussian
from mixvae.posteriors._base import MixturePosterior, add_noise, check_factory


def distinct_modules(build: Callable[[], nn.Module], n: int) -> nn.ModuleList:
    """Build n modules.

    Raises:
        ValueError: the same module was returned twice, or this many cannot fit into memory.
    """
    check_factory(build, "a new encoder at every call")
    built = make(build, n, "encoders")
    if len({id(module) for module in built}) < n:
        raise ValueError("build must make a new encoder at every call; it returned the same module twice")
    if others := [type(module).__name__ for module in built if not isinstance(module, nn.Module)]:
        raise ValueError(f"build must return a torch.nn.Module; it returned {others[0]}")
    return nn.ModuleList(built)


def extend_modules(
    modules: nn.ModuleList, sources: Sequence[int], build: Callable[[], nn.Module], noise: float, *, fresh: bool
) -> None:
    """Append one module for each source: a noisy copy of it, or a fresh one."""
    each = sum(p.nbytes for p in modules[0].parameters())
    check(len(sources) * each, f"{len(sources)} more components of {gib(each)} each", "give fewer")
    for source in sources:
        like = next(modules[source].parameters())
        added = (build() if fresh else copy.deepcopy(modules[source])).to(like).train(modules[source].training)
        if not fresh:
            for p in added.parameters():
                add_noise(p, noise)
        modules.append(added)


class SeparateEncoders(MixturePosterior):
    """A mixture of A separate encoder networks, one Gaussian each: the Mixture VAE of the paper.

    Any module that maps x to mean and log-variance becomes a mixture in one line.

    Args:
        build: makes one encoder; called once per component, so that each starts from its own random weights.
            An encoder maps (B, *shape) to mean and log-variance, both (B, D).
        components: number of encoders A.
        weights: mixture weights π, positive, of any scale; uniform by default.
        learn_weights: whether the weights are trained.

    Raises:
        ValueError: `build` returns the same module twice, or an encoder does not return two tensors (B, D).

    References:
        Kviman et al., Cooperation in the Latent Space (2023), https://arxiv.org/abs/2209.15514

    Example:
        >>> import torch
        >>> from mixvae import SeparateEncoders
        >>> class MyEncoder(torch.nn.Linear):
        ...     def forward(self, x):
        ...         return super().forward(x).chunk(2, -1)
        >>> posterior = SeparateEncoders(lambda: MyEncoder(4, 2 * 2), components=3)
        >>> q = posterior(torch.ones(5, 4))
        >>> q.mean.shape, q.rsample((7,)).shape
        (torch.Size([3, 5, 2]), torch.Size([7, 3, 5, 2]))
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
        self.build = build
        self.encoders = distinct_modules(build, components)

    def _add(self, sources: Sequence[int], noise: float, *, fresh: bool) -> None:
        extend_modules(self.encoders, sources, self.build, noise, fresh=fresh)

    def forward(self, x: Float[Tensor, "B ..."], index: Int[Tensor, " J"] | None = None) -> DiagonalGaussian:
        """Encode x with every encoder, or with those of `index`."""
        chosen = range(self.components) if index is None else index.tolist()
        encoded = [_mean_and_log_var(self.encoders[i], x) for i in chosen]
        mean, log_var = (torch.stack(part) for part in zip(*encoded, strict=True))
        return DiagonalGaussian(mean, log_var, self.log_pi(index))


def _mean_and_log_var(encoder: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Run one encoder and check its output."""
    encoded = encoder(x)
    if not (isinstance(encoded, tuple | list) and len(encoded) == 2 and all(map(torch.is_tensor, encoded))):
        raise ValueError(
            f"{type(encoder).__name__} must return a pair (mean, log-variance) of tensors; got {_describe(encoded)}"
            + _remedy(encoded)
        )
    mean, log_var = encoded
    if mean.dim() != 2 or mean.shape[0] != x.shape[0] or mean.shape != log_var.shape:
        raise ValueError(
            f"{type(encoder).__name__} must return mean and log-variance of shape (B, D) with B = {len(x)}; "
            f"got {tuple(mean.shape)} and {tuple(log_var.shape)}"
        )
    return mean, log_var


def _remedy(value: object) -> str:
    """How to correct an encoder that returns something else."""
    if isinstance(value, Distribution):
        return ": return its mean and 2 · log of its standard deviation"
    if isinstance(value, tuple | list) and len(value) > 2:
        return f" of {len(value)} values: return the first two alone, if they are these"
    if isinstance(value, Mapping):
        return f" with {', '.join(map(str, value))}: return the two as a tuple"
    if isinstance(value, Tensor):
        return ": split it, as in `.chunk(2, -1)`"
    return ""


def _describe(value: object) -> str:
    """Type and shape of what a user's module returned."""
    shape = f" of shape {tuple(value.shape)}" if isinstance(value, Tensor) else ""
    return type(value).__name__ + shape
