"""Priors p(z) of cells: the core's, with pseudo-inputs that are counts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from scvi import REGISTRY_KEYS
from scvi.module import SCANVAE, VAE
from scvi.module._constants import MODULE_KEYS
from torch import Tensor, nn
from torch.distributions import Distribution, Normal, constraints
from torch.nn.functional import softplus

from mixvae._normalisation import statistics_held
from mixvae.distributions import Pooled
from mixvae.priors import GaussianMixturePrior, StandardNormal, VampPrior
from mixvae.single_cell.labelled import LabelledPrior
from mixvae.single_cell.posterior import CellPosterior

if TYPE_CHECKING:
    from mixvae.single_cell.module import MixtureModule

LEAST = 0.05
"""Smallest initial log(1 + count) of pseudo-inputs, so that counts of 0 still learn."""

SEEN = {
    MODULE_KEYS.BATCH_INDEX_KEY: REGISTRY_KEYS.BATCH_KEY,
    MODULE_KEYS.CAT_COVS_KEY: REGISTRY_KEYS.CAT_COVS_KEY,
    MODULE_KEYS.CONT_COVS_KEY: REGISTRY_KEYS.CONT_COVS_KEY,
}
"""What encoders may see of a cell besides its counts, and the keys of these in scvi-tools' batches."""


_TO_COME: ContextVar[bool] = ContextVar("weights to come", default=False)


@contextmanager
def weights_to_come() -> Iterator[None]:
    """Make models whose weights are loaded afterwards, so that no pseudo-inputs have to be initialised as cells."""
    token = _TO_COME.set(True)
    try:
        yield
    finally:
        _TO_COME.reset(token)


def begins_as_cells(prior: object) -> bool:
    """Whether the pseudo-inputs of a new model's prior are initialised as cells."""
    return isinstance(prior, CellVampPrior) and not _TO_COME.get()


class CellVampPrior(VampPrior):
    """Variational mixture of posteriors of cells, p(z) = 1/K Σ_k 1/S Σ_s q_s(z | u_k), with learned counts u_k > 0.

    log(1 + u) = softplus(r) of unconstrained r, so that small and large counts learn alike. Encoders normalise
    pseudo-inputs by their running statistics. Encoders that see batches and covariates see those of the cells from
    which the pseudo-inputs started. The library size of a pseudo-input plays no part: z does not depend on it.

    Args:
        module: the module whose encoders see the pseudo-inputs; it is referenced, not registered.
        pseudo_inputs: number of pseudo-inputs K.
        categories: categorical covariates.
        numbers: continuous covariates.

    References:
        Tomczak and Welling, VAE with a VampPrior (2018), https://arxiv.org/abs/1705.07120
    """

    def __init__(self, module: MixtureModule, pseudo_inputs: int, categories: int = 0, numbers: int = 0):
        super().__init__(module, (module.n_input,), pseudo_inputs, squash=_counts)  # pyright: ignore[reportArgumentType]
        self.register_buffer(MODULE_KEYS.BATCH_INDEX_KEY, torch.zeros(pseudo_inputs, 1, dtype=torch.long))
        for name, width, dtype in (
            (MODULE_KEYS.CAT_COVS_KEY, categories, torch.long),
            (MODULE_KEYS.CONT_COVS_KEY, numbers, torch.float32),
        ):
            self.register_buffer(name, torch.zeros(pseudo_inputs, width, dtype=dtype) if width else None)

    @torch.no_grad()
    def begin_as(self, tensors: Mapping[str, Tensor | None]) -> None:
        """Initialise the pseudo-inputs as given cells.

        Args:
            tensors: K cells, as scvi-tools loads them.
        """
        scaled = tensors[REGISTRY_KEYS.X_KEY].log1p().clamp(min=LEAST)
        self.raw_inputs.copy_(scaled + (-(-scaled).expm1()).log())  # softplus⁻¹
        for name, key in SEEN.items():
            if (held := getattr(self, name)) is not None:
                held.copy_(tensors[key])

    def forward(self) -> Pooled:
        """Encode the pseudo-inputs, once, and return their mixture."""
        module: Any = self._posterior[0]
        with statistics_held(module):
            seen = {name: getattr(self, name) for name in SEEN}
            qz: CellPosterior = VAE._regular_inference(module, self.inputs, **seen)[MODULE_KEYS.QZ_KEY]
        return Pooled(qz.components)


def _counts(raw: Tensor) -> Tensor:
    """Counts u with log(1 + u) = softplus(r)."""
    return softplus(raw).expm1()


PRIORS: Mapping[str, Callable[..., nn.Module]] = {
    "standard_normal": lambda module, clusters, **covariates: StandardNormal(module.n_latent),
    "gaussian_mixture": lambda module, clusters, **covariates: GaussianMixturePrior(module.n_latent, clusters),
    "vamp": lambda module, clusters, **covariates: CellVampPrior(module, clusters, **covariates),
}


def prior_named(name: str, module: MixtureModule, clusters: int, **covariates: int) -> nn.Module:
    """One of the priors, of `clusters` Gaussians or pseudo-inputs.

    Raises:
        ValueError: there is no such prior, or fewer than one cluster.
    """
    if name not in PRIORS:
        raise ValueError(f"prior must be one of {', '.join(PRIORS)}; got {name!r}")
    if clusters < 1:
        raise ValueError(f"n_prior_components must be at least 1; got {clusters}")
    return PRIORS[name](module, clusters, **covariates)


def prior_of(module: VAE) -> Distribution:
    """The prior of z of any module of SCVI's kind, standard normal for SCVI, induced by labels for scANVI.

    Its first D dimensions are z; further ones are the prior's own latents, over which it is to be integrated.
    """
    own = getattr(module, "prior", None)
    if own is None:
        of = LabelledPrior(module) if isinstance(module, SCANVAE) else StandardNormal(module.n_latent)
        own = of.to(next(module.parameters()))
    return own()


class Summed(Distribution):
    """A prior of z in scvi-tools' form, whose `log_prob` ends in an axis of size 1 to be summed over.

    The prior's own latents are drawn, so that the density of z is estimated without bias. It is made only on
    request: a training decodes at every step, and never needs it.

    Args:
        prior: makes the distribution, whose first D dimensions are z.
        latent: D.
    """

    arg_constraints = {}
    support = constraints.real

    def __init__(self, prior: nn.Module, latent: int):
        self.prior = prior
        super().__init__(torch.Size([latent]), validate_args=False)

    def log_prob(self, value: Float[Tensor, "... D"]) -> Float[Tensor, "... 1"]:
        """Log-density in nats."""
        prior = self.prior()
        noise = torch.randn(*value.shape[:-1], prior.event_shape[0] - value.shape[-1]).to(value)
        log_q = Normal(0.0, 1.0).log_prob(noise).sum(-1)
        return (prior.log_prob(torch.cat([value, noise], -1)) - log_q).unsqueeze(-1)

    def sample(self, sample_shape: Sequence[int] = ()) -> Float[Tensor, "... D"]:
        """Draw."""
        return self.prior().sample(torch.Size(sample_shape))[..., : self.event_shape[0]]
