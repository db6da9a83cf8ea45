"""The joint density of cells and latents, for SCVI and mixtures alike: the basis of all their bounds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from scvi import REGISTRY_KEYS
from scvi.module import VAE
from scvi.module._constants import MODULE_KEYS
from torch import Tensor
from torch.distributions import Distribution, Normal

from mixvae.bounds import Terms
from mixvae.distributions import DiagonalGaussian, least_precision
from mixvae.joint import Joint
from mixvae.single_cell.likelihood import log_likelihood
from mixvae.single_cell.posterior import CellPosterior, ComponentEncoders
from mixvae.single_cell.priors import prior_of

PER_CELL = ("batch_index", "cont_covs", "cat_covs", "size_factor", "y")
"""Inputs of the decoder, one row per cell, that are repeated for every draw."""
Batch = dict[str, Tensor]


def repeated(inputs: Mapping[str, Any], repeats: int) -> dict[str, Any]:
    """Inputs of the decoder with the cells' rows repeated for every draw."""
    return {
        name: value.repeat(repeats, 1) if name in PER_CELL and value is not None and repeats > 1 else value
        for name, value in inputs.items()
    }


class CellJoint(Joint):
    """Joint density log p(x_b, z) of a batch of cells under a `scvi.module.VAE` or a `MixtureModule`, in nats.

    Batch, covariates, size factors and an observed library size are given. The prior's own latents come after z, as
    in scANVI; a latent library size is the last latent, with the log-normal prior of its cell's batch. With
    `latent_distribution="ln"` z is the latent before the softmax. The module must be in evaluation mode.

    Args:
        module: the module.
        x: counts of B cells.
        inputs: what the decoder takes besides z and library, rows of the same cells.
        library: observed log library sizes (B, 1); None if they are latent.
        prior: the prior, `prior_of(module)`; computed by default.

    Example:
        >>> import numpy as np
        >>> import torch
        >>> from anndata import AnnData
        >>> from mixvae.single_cell import MixtureSCVI, joint_and_posterior
        >>> adata = AnnData(np.random.default_rng(0).poisson(2.0, (30, 12)).astype(np.float32))
        >>> MixtureSCVI.setup_anndata(adata)
        >>> model = MixtureSCVI(adata, n_components=3, n_hidden=8, n_latent=2)
        >>> tensors = next(iter(model._make_data_loader(adata=adata, batch_size=5)))
        >>> joint, q = joint_and_posterior(model.module.eval(), tensors)
        >>> joint.log_prob(torch.zeros(7, 5, 2)).shape, q.batch_shape
        (torch.Size([7, 5]), torch.Size([3, 5]))
    """

    def __init__(
        self,
        module: VAE,
        x: Float[Tensor, "B G"],
        inputs: Mapping[str, Any],
        library: Float[Tensor, "B 1"] | None,
        prior: Distribution | None = None,
    ):
        self.module, self.x, self.inputs, self.library = module, x, dict(inputs), library
        self.prior = prior_of(module) if prior is None else prior
        self.size, self.latent = len(x), self.prior.event_shape[0] + (library is None)
        self.like = next(module.parameters()).new_empty(0)

    def log_prior(self, z: Float[Tensor, "*L B D"]) -> Float[Tensor, "*L B"]:
        """Log-density of the prior, log p(z), in nats: that of the module, times that of a latent library size."""
        log_pz = self.prior.log_prob(z[..., : self.prior.event_shape[0]])
        if self.library is None:
            log_pz = log_pz + self._library_prior().log_prob(z[..., -1:]).sum(-1)
        return log_pz

    def log_likelihood(self, z: Float[Tensor, "*L B D"]) -> Float[Tensor, "*L B"]:
        """Log-likelihood of each cell's counts at its latents, log p(x_b | z), in nats."""
        return self.scored(self.decoded(z)).reshape(z.shape[:-1])

    def scored(self, px: Distribution) -> Float[Tensor, "T B"]:
        """Log-likelihood of the cells under the decoded T draws of each, flattened with draws first."""
        return log_likelihood(px, self.x, self._dispersion(px))

    def decoded(self, z: Float[Tensor, "*L B D"]) -> Distribution:
        """Distribution of counts at latents, which are flattened to (L·B, D)."""
        latents = z.reshape(-1, self.latent)
        repeats = len(latents) // self.size
        library = latents[:, -1:] if self.library is None else self.library.repeat(repeats, 1)
        encoder: Any = self.module.z_encoder  # of either class
        transform = encoder.transform if isinstance(encoder, ComponentEncoders) else encoder.z_transformation
        given = repeated(self.inputs, repeats)
        return self.module.generative(transform(latents[:, : self.module.n_latent]), library, **given)[
            MODULE_KEYS.PX_KEY
        ]

    def _dispersion(self, px: Distribution) -> Tensor | None:
        """Inverse dispersions without the repeats: one row for all cells, one per cell, or one per draw."""
        if (theta := getattr(px, "theta", None)) is None:
            return None
        if self.module.dispersion == "gene":
            return self.module.px_r.exp()[None, None]  # a slice of theta would have a gradient as large as theta
        if self.module.dispersion == "gene-cell":
            return theta.unflatten(0, (-1, self.size))
        return theta[None, : self.size]

    def _library_prior(self) -> Normal:
        return library_prior(self.module, self.inputs["batch_index"])

    def sample_prior(self, draws: int) -> Float[Tensor, "L B D"]:
        """Latents drawn from the prior by torch's generator."""
        z = self.prior.sample((draws, self.size))
        return torch.cat([z, self._library_prior().sample((draws,))], -1) if self.library is None else z

    def least_precision(self) -> float:
        """Smallest precision of the prior in any direction; for latent library sizes, in any batch."""
        least = least_precision(self.prior)
        if self.library is not None:
            return least
        return min(least, float(1 / self.module.get_buffer("library_log_vars").max()))

    def part(self, start: int, stop: int) -> CellJoint:
        """The same for some of the cells."""
        own = slice(start, stop)
        inputs = {n: value[own] if n in PER_CELL and value is not None else value for n, value in self.inputs.items()}
        library = None if self.library is None else self.library[own]
        return CellJoint(self.module, self.x[own], inputs, library, self.prior)

    def simulated(self, z: Float[Tensor, "B D"]) -> CellJoint:
        """The same for counts drawn from p(x|z) at these latents by torch's generator; all other inputs are kept."""
        return CellJoint(self.module, self.decoded(z).sample().to(self.x), self.inputs, self.library, self.prior)


def library_prior(module: VAE, batch_index: Tensor) -> Normal:
    """Prior of the log library size in the batch of each cell, (B, 1)."""
    means, variances = module._compute_local_library_params(batch_index)
    return Normal(means, variances.sqrt())


def joint_and_posterior(
    module: VAE, tensors: Batch, inferred: Mapping[str, Any] | None = None
) -> tuple[CellJoint, DiagonalGaussian]:
    """Joint density of a batch of cells, and the components of their posterior over the same latents.

    Args:
        module: a `scvi.module.VAE`, whose posterior is a single component, or a `MixtureModule`.
        tensors: one batch of cells as loaded by scvi-tools, with their counts.
        inferred: what `module.inference` returned for them; computed by default.
    """
    made: Any = module.inference(**module._get_inference_input(tensors)) if inferred is None else inferred
    qz, ql = made[MODULE_KEYS.QZ_KEY], made[MODULE_KEYS.QL_KEY]
    if isinstance(qz, CellPosterior):
        q = qz.components
    else:
        q = DiagonalGaussian(qz.loc[None], 2 * qz.scale.log()[None])
    prior, device, library = prior_of(module), q.loc.device, None
    q = _beside(q, *q.loc.new_zeros(2, *q.batch_shape, prior.event_shape[0] - module.n_latent))
    if ql is None:
        library = made[MODULE_KEYS.LIBRARY_KEY].flatten(0, -2)[: q.batch_shape[1]]  # repeated for every draw
    else:
        shape = (*q.batch_shape, 1)
        loc, log_var = ql.loc.expand(shape), 2 * ql.scale.log().expand(shape)
        q = _beside(q, loc, log_var)
    empty = {MODULE_KEYS.Z_KEY: None, MODULE_KEYS.LIBRARY_KEY: None}
    inputs = VAE._get_generative_input(module, tensors, empty)
    given = {n: None if v is None else v.to(device) for n, v in inputs.items() if n not in empty}
    return CellJoint(module, tensors[REGISTRY_KEYS.X_KEY].to(device), given, library, prior), q


def _beside(q: DiagonalGaussian, loc: Float[Tensor, "S B E"], log_var: Float[Tensor, "S B E"]) -> DiagonalGaussian:
    """The same posterior with further, independent latents."""
    return DiagonalGaussian(torch.cat([q.loc, loc], -1), torch.cat([q.log_var, log_var], -1), q.log_pi)


def terms_of(
    joint: CellJoint, q: DiagonalGaussian, z: Float[Tensor, "L S B D"], px: Distribution | None = None
) -> Terms:
    """Log-densities from which every bound is computed, for draws from every component.

    Args:
        joint: the joint density.
        q: the posterior.
        z: the draws.
        px: the decoded draws, flattened; computed by default.
    """
    log_px = joint.log_likelihood(z) if px is None else joint.scored(px).reshape(z.shape[:-1])
    own = torch.arange(q.batch_shape[0], device=z.device)
    return Terms(log_px, joint.log_prior(z), q.cross_log_prob(z), q.log_pi, q.log_pi.exp(), own)
