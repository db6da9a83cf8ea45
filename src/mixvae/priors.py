"""Priors p(z): modules whose `forward` returns a distribution with batch shape () and event shape (D,)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal

from mixvae._normalisation import in_evaluation_mode, module_of, statistics_held
from mixvae.distributions import Chain, Components, DiagonalGaussian, Fixed, Pooled
from mixvae.parts import Part

EXAMPLE_RANGE = (0.05, 0.95)
"""Where pseudo-inputs copied from examples are clamped to: off the sigmoid's flat ends, so that they still learn."""


class StandardNormal(Part):
    """Standard normal prior, N(z; 0, I).

    Args:
        latent: latent size D.

    Example:
        >>> import torch
        >>> from mixvae.priors import StandardNormal
        >>> StandardNormal(2)().log_prob(torch.zeros(3, 2))  # −log 2π each
        tensor([-1.8379, -1.8379, -1.8379])
    """

    zero: Tensor

    def __init__(self, latent: int):
        super().__init__()
        self.register_buffer("zero", torch.zeros(latent), persistent=False)

    def forward(self) -> Distribution:
        """Return the distribution."""
        return Independent(Normal(self.zero, torch.ones_like(self.zero), validate_args=False), 1)


class GaussianMixturePrior(Part):
    """Learned mixture of K diagonal Gaussians, Σ_k w_k N(z; μ_k, diag σ²_k).

    Args:
        latent: latent size D.
        clusters: number of Gaussians K.

    Example:
        >>> import torch
        >>> from mixvae.priors import GaussianMixturePrior
        >>> prior = GaussianMixturePrior(2, clusters=5)
        >>> p = prior()
        >>> p.sample((3,)).shape, p.log_prob(torch.zeros(3, 2)).shape
        (torch.Size([3, 2]), torch.Size([3]))
    """

    def __init__(self, latent: int, clusters: int = 10):
        super().__init__()
        if clusters < 1:
            raise ValueError(f"a Gaussian mixture needs at least 1 cluster; got {clusters}")
        self.mean = nn.Parameter(torch.randn(clusters, latent))
        self.log_var = nn.Parameter(torch.zeros(clusters, latent))
        self.scores = nn.Parameter(torch.zeros(clusters))

    def forward(self) -> Pooled:
        """Return the distribution."""
        log_w = self.scores.log_softmax(0)
        return Pooled(DiagonalGaussian(self.mean[:, None], self.log_var[:, None], log_w))


class VampPrior(Part):
    """Variational mixture of posteriors, p(z) = 1/K Σ_k Σ_s π_s q_s(z | u_k), with learned pseudo-inputs u_k.

    All S encoders see the pseudo-inputs. The posterior is referenced, not registered: its weights remain its own.

    Args:
        posterior: maps a batch of inputs to `Components`.
        shape: event shape of x.
        pseudo_inputs: number of pseudo-inputs K.
        examples: at least K training examples to start from; random inputs by default.
        squash: maps unconstrained parameters to inputs. The sigmoid keeps a gradient everywhere, where
            a clamp has none at 0 and 1; `torch.nn.Identity()` suits data on the whole real line.

    Raises:
        ValueError: there are fewer examples than pseudo-inputs.

    References:
        Tomczak and Welling, VAE with a VampPrior (2018), https://arxiv.org/abs/1705.07120

    Example:
        >>> import torch
        >>> from mixvae import SeparateEncoders, VampPrior
        >>> from mixvae.networks import GatedEncoder
        >>> posterior = SeparateEncoders(lambda: GatedEncoder((4,), 2, (8,)), 3)
        >>> prior = VampPrior(posterior, (4,), pseudo_inputs=10, examples=torch.rand(20, 4))
        >>> prior().log_pi.shape, prior().sample((5,)).shape  # 3 components at each of 10 pseudo-inputs
        (torch.Size([3, 10]), torch.Size([5, 2]))
    """

    starting_only = ("examples",)

    def __init__(
        self,
        posterior: Callable[[Tensor], Components],
        shape: Sequence[int],
        pseudo_inputs: int = 500,
        *,
        examples: Float[Tensor, "N ..."] | None = None,
        squash: Callable[[Tensor], Tensor] = torch.sigmoid,
    ):
        super().__init__()
        if pseudo_inputs < 1:
            raise ValueError(f"a VampPrior needs at least 1 pseudo-input; got {pseudo_inputs}")
        self._posterior = (posterior,)  # a tuple, so that the module is not registered twice
        self.squash = squash
        if examples is None:
            start = torch.randn(pseudo_inputs, *shape)
        elif len(examples) < pseudo_inputs or examples.shape[1:] != torch.Size(shape):
            raise ValueError(
                f"{pseudo_inputs} pseudo-inputs need as many examples of shape {tuple(shape)}; "
                f"got {len(examples)} of shape {tuple(examples.shape[1:])}"
            )
        else:
            chosen = examples[torch.randperm(len(examples))[:pseudo_inputs]]
            start = chosen.clamp(*EXAMPLE_RANGE).logit() if squash is torch.sigmoid else chosen.clone()
        self.raw_inputs = nn.Parameter(start)

    @property
    def inputs(self) -> Float[Tensor, "K ..."]:
        """The pseudo-inputs u."""
        return self.squash(self.raw_inputs)

    def forward(self) -> Pooled:
        """Encode the pseudo-inputs, once, and return their mixture."""
        with statistics_held(self._posterior[0]):
            return Pooled(self._posterior[0](self.inputs))

    @torch.no_grad()
    def frozen(self) -> GaussianMixturePrior:
        """The same density as K·S Gaussians with their own parameters, which stay as they are while the encoders learn.

        It is the density in evaluation: without dropout, and by the running statistics of every BatchNorm.

        Raises:
            ValueError: the components are not Gaussians, as with a flow.
        """
        posterior = self._posterior[0]
        module = module_of(posterior)
        with nullcontext() if module is None else in_evaluation_mode(module):
            q = posterior(self.inputs)
        if not isinstance(q, DiagonalGaussian):
            raise ValueError(
                f"a VampPrior of {type(q).__name__} components is not a mixture of Gaussians and cannot be frozen: "
                "do not freeze the prior"
            )
        mixture = GaussianMixturePrior(q.event_shape[0], q.batch_shape.numel()).to(q.loc)
        mixture.mean.copy_(q.loc.flatten(0, 1))
        mixture.log_var.copy_(q.log_var.flatten(0, 1))
        mixture.scores.copy_(q.log_pi[:, None].expand(q.batch_shape).flatten())
        return mixture


class TwoLevelPrior(Part):
    """Prior of two levels, p(z2) p(z1|z2), with z = [z2, z1] and a Gaussian p(z1|z2).

    Args:
        top: prior of z2, such as a `VampPrior(posterior.top_level(), …)`.
        lower: maps z2 to mean and log-variance of z1, such as a `GaussianNetwork`.
        latent: size of z1.

    Example:
        >>> from mixvae import StandardNormal, TwoLevelPrior
        >>> from mixvae.networks import GaussianNetwork
        >>> prior = TwoLevelPrior(StandardNormal(2), GaussianNetwork(2, 3, (8,)), latent=3)
        >>> prior().sample((5,)).shape  # z2 has 2 coordinates, z1 has 3
        torch.Size([5, 5])
    """

    def __init__(self, top: nn.Module | Distribution, lower: nn.Module, latent: int):
        super().__init__()
        self.top = Fixed(top) if isinstance(top, Distribution) else top
        self.lower, self.latent = lower, latent

    def frozen(self) -> TwoLevelPrior:
        """The same prior, with `top` frozen if it follows the encoders."""
        top = self.top.frozen() if isinstance(self.top, Part) else self.top
        return self if top is self.top else TwoLevelPrior(top, self.lower, self.latent)

    def forward(self) -> Chain:
        """Return the distribution."""
        return Chain(self.top(), self.lower, self.latent)
