"""Base classes of posteriors: components and their weights."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mixvae._failures import at_least
from mixvae._resources import check
from mixvae.distributions import Components
from mixvae.parts import Part, kept

SMALLEST = 64
"""Minimum number of bytes per component."""


def check_factory(build: object, what: str) -> None:
    """Refuse a module where a function that makes modules is needed.

    Raises:
        ValueError: it is a module.
    """
    if isinstance(build, nn.Module):
        raise ValueError(
            f"build must make {what}; got one {type(build).__name__}: pass the class, a functools.partial or a lambda "
            "that makes it"
        )


@torch.no_grad()
def add_noise(tensor: Tensor, noise: float) -> None:
    """Add normal noise in place, relative to the tensor's own standard deviation."""
    spread = tensor.std() if tensor.numel() > 1 else tensor.abs()
    tensor += noise * spread * torch.randn_like(tensor)


class Posterior(Part, ABC):
    """A mixture q(z|x) = Σ_s π_s q_s(z|x) of A components, which `forward` computes: the base of every posterior.

    Derive your own posterior from `MixturePosterior`, which holds the weights, or from this class.

    Example:
        >>> from mixvae import Posterior, SeparateEncoders
        >>> from mixvae.networks import GatedEncoder
        >>> posterior = SeparateEncoders(lambda: GatedEncoder((4,), 2, (8,)), 2)
        >>> isinstance(posterior, Posterior), posterior.components
        (True, 2)
        >>> posterior.extend(4)
        >>> posterior.log_pi().exp()
        tensor([0.2500, 0.2500, 0.2500, 0.2500])
    """

    def __deepcopy__(self, memo: dict[int, Any]) -> Posterior:
        """Copy parameters and buffers; a function that makes further encoders is shared."""
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        vars(copied).update(copy.deepcopy(vars(self), memo))
        return copied

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled: a lambda that makes encoders cannot be, and a copy without it cannot make more of them."""
        state = self.__dict__.copy()
        if "build" in state:
            state["build"] = kept(state["build"])
        return state

    @property
    def gathers(self) -> bool:
        """Whether components are selected by an index that stays on the device; if not, pass indices on the CPU."""
        return False

    @property
    @abstractmethod
    def components(self) -> int:
        """Number of components A."""

    @abstractmethod
    def log_pi(self, index: Int[Tensor, " J"] | None = None) -> Float[Tensor, " J"]:
        """Log mixture weights; of J active components log(A/J · π_j), the only unbiased choice."""

    @abstractmethod
    def extend(self, components: int, *, noise: float = 0.01, fresh: bool = False) -> None:
        """Add components in place, up to `components` in total.

        Component a ≥ A, counted from 0, starts from component a mod A, weight included, so that without noise a whole
        multiple of A leaves the mixture unchanged.

        Args:
            components: number of components afterwards.
            noise: standard deviation of the noise on the copied weights, relative to each tensor's own.
            fresh: start from random weights instead of copies.

        Raises:
            ValueError: there are already more components, or the noise is not a number of at least 0.
        """

    def top_level(self) -> Callable[[Tensor], Components]:
        """The components over the top latents alone, which a VampPrior pools; on a single level, over all latents."""
        return self

    def joint_prior(self, top: nn.Module, lower: nn.Module | None, latent: int) -> nn.Module:
        """The prior over all latents: on a single level the prior `top` itself.

        Args:
            top: prior over the latents of `top_level`.
            lower: on two levels, maps z2 to mean and log-variance of p(z1|z2).
            latent: size of z1.

        Raises:
            ValueError: there is a lower network for a single level, or none for two.
        """
        del latent
        if lower is not None:
            raise ValueError(
                f"a {type(self).__name__} has a single level of latents, and no use for model.lower, a "
                f"{type(lower).__name__}: leave it out, or choose a posterior of two levels, such as TwoLevelPosterior"
            )
        return top

    @abstractmethod
    def forward(self, x: Float[Tensor, "B ..."], index: Int[Tensor, " J"] | None = None) -> Components:
        """Encode x.

        Args:
            x: a batch of observations.
            index: which components to compute; all by default.
        """


class MixturePosterior(Posterior):
    """A posterior that holds the weights π of its components.

    Args:
        components: number of components A.
        weights: mixture weights π, positive, of any scale; uniform by default.
        learn_weights: whether the weights are trained, starting from `weights`.

    Raises:
        ValueError: the number of components is not positive, or the weights do not fit it.

    Example:
        >>> import torch
        >>> from mixvae import SeparateEncoders
        >>> from mixvae.networks import GatedEncoder
        >>> posterior = SeparateEncoders(lambda: GatedEncoder((4,), 2, (8,)), 2, weights=[3.0, 1.0])
        >>> posterior.log_pi().exp()
        tensor([0.7500, 0.2500])
        >>> posterior.log_pi(torch.tensor([1])).exp()  # alone, for half of the components: 2 · 0.25
        tensor([0.5000])
    """

    starting_only = ("weights",)
    log_scores: Tensor

    def __init__(self, components: int, weights: Sequence[float] | None = None, *, learn_weights: bool = False):
        super().__init__()
        if components < 1:
            raise ValueError(f"a mixture needs at least 1 component; got {components}")
        scores = torch.ones(components) if weights is None else torch.as_tensor(weights, dtype=torch.float32)
        if weights is not None and not (
            scores.shape == (components,) and bool((scores > 0).all() and scores.isfinite().all())
        ):
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
        """Log mixture weights, as `Posterior.log_pi`."""
        log_pi = self.log_scores.log_softmax(0)
        if index is None:
            return log_pi
        return log_pi[index] + math.log(self.components / len(index))

    def extend(self, components: int, *, noise: float = 0.01, fresh: bool = False) -> None:
        """Add components in place, as `Posterior.extend`."""
        old = self.components
        at_least(0, noise=noise)
        if components < old:
            raise ValueError(f"the posterior already has {old} components; got components = {components}: give more")
        check((components - old) * SMALLEST, f"{components} components", "give fewer")
        sources = [i % old for i in range(old, components)]
        scores = torch.cat([self.log_scores.detach(), self.log_scores.detach()[sources]])
        self._add(sources, noise, fresh=fresh)
        if isinstance(self.log_scores, nn.Parameter):
            scores = nn.Parameter(scores, requires_grad=self.log_scores.requires_grad)
        self.log_scores = scores
        self.amend_arguments(components=components)

    @abstractmethod
    def _add(self, sources: Sequence[int], noise: float, *, fresh: bool) -> None:
        """Add one component for each source, a noisy copy of it or a fresh one."""
