"""scvi-tools' VAE with S encoders: the same decoder, counts and covariates, but the bounds of mixvae."""

from __future__ import annotations

import copy
import math
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from scvi import REGISTRY_KEYS
from scvi.data._constants import ADATA_MINIFY_TYPE
from scvi.module import VAE
from scvi.module._constants import MODULE_KEYS
from scvi.module.base import LossOutput, auto_move_data
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from mixvae._resources import make
from mixvae.bounds import Terms, elbo, jsd, log_weights, pooled
from mixvae.priors import StandardNormal
from mixvae.single_cell.joint import Batch, joint_and_posterior, library_prior, repeated, terms_of
from mixvae.single_cell.posterior import CellPosterior, ComponentEncoders
from mixvae.single_cell.priors import CellVampPrior, Summed, prior_named


def fresh_copy(module: nn.Module) -> nn.Module:
    """A module of the same architecture with new random weights."""
    copied = copy.deepcopy(module)
    for part in copied.modules():
        if callable(reset := getattr(part, "reset_parameters", None)):
            reset()
    return copied


class MixtureModule(VAE):
    """`scvi.module.VAE` whose posterior is a mixture, q(z|x) = 1/S Σ_s q_s(z|x).

    A pass with a loss draws from every component (stratified); one without, as for expression and samples, draws
    from a random component. Stratified latents are flattened to (L·S·B, D) for the decoder, so that its BatchNorm
    sees them as one batch.

    Args:
        n_input: number of genes.
        n_components: number of encoders S.
        freeze_decoder: keep decoder, dispersions and the decoder's batch statistics as they are.
        prior: of z: "standard_normal", "gaussian_mixture" of learned Gaussians, or "vamp", the posteriors of learned
            cells, by all encoders.
        n_prior_components: number of Gaussians or learned cells.
        **kwargs: everything that `scvi.module.VAE` takes.

    References:
        Kviman et al., Cooperation in the Latent Space (2023), https://arxiv.org/abs/2209.15514
        Lopez et al., Deep generative modeling for single-cell transcriptomics (2018),
        https://doi.org/10.1038/s41592-018-0229-2

    Example:
        >>> from mixvae.single_cell import MixtureModule
        >>> list(MixtureModule(12, n_components=3, n_hidden=8, n_latent=2).z_encoder)
        ['c0', 'c1', 'c2']
    """

    def __init__(
        self,
        n_input: int,
        *,
        n_components: int = 4,
        freeze_decoder: bool = False,
        prior: str = "standard_normal",
        n_prior_components: int = 50,
        **kwargs: Any,
    ):
        super().__init__(n_input, **kwargs)
        first = self.z_encoder
        further = make(partial(fresh_copy, first), n_components - 1, "further encoders")
        self.z_encoder = ComponentEncoders([first, *further])
        self.n_components = n_components
        self.freeze_decoder = freeze_decoder
        seen: dict[str, int] = {}
        if self.encode_covariates:
            seen = {"categories": len(kwargs.get("n_cats_per_cov") or ()), "numbers": kwargs.get("n_continuous_cov", 0)}
        self.prior = prior_named(prior, self, n_prior_components, **seen)
        if freeze_decoder and isinstance(self.prior, CellVampPrior):
            raise ValueError("a VampPrior follows its encoders, so that it cannot be frozen with the decoder")
        for name, parameter in self.named_parameters():
            if freeze_decoder and "encoder" not in name.split(".")[0]:
                parameter.requires_grad = False

    def train(self, mode: bool = True) -> MixtureModule:
        """Switch to training; a frozen decoder keeps its batch statistics."""
        super().train(mode)
        if self.freeze_decoder:
            self.decoder.eval()
        return self

    @auto_move_data
    def forward(self, tensors: Batch, *, inference_kwargs: dict | None = None, compute_loss: bool = True, **kwargs):
        """Pass cells through: with a loss, by a draw from every component; without, by one from a random component."""
        inference_kwargs = {"stratified": compute_loss, **(inference_kwargs or {})}
        return super().forward(tensors, inference_kwargs=inference_kwargs, compute_loss=compute_loss, **kwargs)

    @auto_move_data
    def _regular_inference(
        self,
        x: Tensor,
        *args: Any,
        n_samples: int = 1,
        stratified: bool = False,
        noise: Float[Tensor, "L S B E"] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Encode the cells and draw."""
        return self._draw(super()._regular_inference(x, *args, **kwargs), n_samples, noise, stratified=stratified)

    @auto_move_data
    def _cached_inference(
        self,
        qzm: Float[Tensor, "B KD"],
        qzv: Float[Tensor, "B KD"],
        observed_lib_size: Tensor,
        n_samples: int = 1,
        *,
        stratified: bool = False,
        noise: Float[Tensor, "L S B E"] | None = None,
    ) -> dict[str, Any]:
        """Draw from posteriors stored with minified data: all components, side by side, or one with their moments."""
        shape = (-1, self.n_latent)
        outputs = {
            MODULE_KEYS.QZ_KEY: CellPosterior(qzm.unflatten(-1, shape), qzv.unflatten(-1, shape).sqrt()),
            MODULE_KEYS.QL_KEY: None,
            MODULE_KEYS.LIBRARY_KEY: observed_lib_size.log(),
        }
        return self._draw(outputs, n_samples, noise, stratified=stratified)

    def _draw(self, outputs: dict[str, Any], draws: int, noise: Tensor | None, *, stratified: bool) -> dict[str, Any]:
        """Add latents, and libraries to match.

        Stratified draws are flattened, (L·S·B, D); draws of the mixture are (B, D), or (L, B, D) for more than one.
        """
        qz: CellPosterior = outputs[MODULE_KEYS.QZ_KEY]
        ql: Normal | None = outputs[MODULE_KEYS.QL_KEY]
        library = outputs[MODULE_KEYS.LIBRARY_KEY]
        if stratified:
            shape = (draws, *qz.components.batch_shape)
            z_noise = None if noise is None else noise[..., : self.n_latent]
            z = qz.components.rsample((draws,), z_noise).flatten(0, 2)
            if ql is None:
                library = library.repeat(shape[0] * shape[1], 1)
            else:
                l_noise = torch.randn(*shape, 1, device=z.device) if noise is None else noise[..., -1:]
                library = (ql.loc + ql.scale * l_noise.to(ql.loc)).flatten(0, 2)
        else:
            sample_shape = () if draws == 1 else (draws,)
            z = qz.sample(sample_shape)
            library = library.expand(*sample_shape, *library.shape) if ql is None else ql.sample(sample_shape)
        return outputs | {MODULE_KEYS.Z_KEY: z, MODULE_KEYS.LIBRARY_KEY: library}

    def _get_generative_input(self, tensors: Batch, inference_outputs: dict[str, Any]) -> dict[str, Tensor | None]:
        """Inputs of the decoder, with the cells' rows repeated for stratified draws."""
        inputs = super()._get_generative_input(tensors, inference_outputs)
        z = inputs[MODULE_KEYS.Z_KEY]
        repeats = z.shape[0] // len(tensors[REGISTRY_KEYS.BATCH_KEY]) if z.dim() == 2 else 1
        return repeated(inputs, repeats) | {MODULE_KEYS.Z_KEY: self.z_encoder.transform(z)}

    @auto_move_data
    def generative(
        self, z: Tensor, library: Tensor, batch_index: Tensor, *, transform_batch: Any = None, **inputs: Any
    ) -> dict[str, Any]:
        """Decode; with embedded batches, which scvi-tools joins only to (B, D), draws of (L, B, D) are flattened."""
        inputs |= {"batch_index": batch_index, "transform_batch": transform_batch}
        if z.dim() < 3 or self.batch_representation != "embedding":
            outputs = super().generative(z, library, **inputs)
        else:
            repeats, cells = z.shape[:2]
            outputs = super().generative(z.flatten(0, 1), library.flatten(0, 1), **repeated(inputs, repeats))
            px = outputs[MODULE_KEYS.PX_KEY]
            for name, value in list(vars(px).items()):
                if isinstance(value, Tensor) and value.shape[:1] == (repeats * cells,):
                    setattr(px, name, value.unflatten(0, (repeats, cells)))
        if isinstance(self.prior, StandardNormal):
            return outputs
        return outputs | {MODULE_KEYS.PZ_KEY: Summed(self.prior, self.n_latent)}

    @auto_move_data
    def terms(
        self, tensors: Batch, draws_per_component: int = 1, *, noise: Float[Tensor, "L S B E"] | None = None
    ) -> Terms:
        """Log-densities from which every bound is computed, for draws from every component.

        If the library size is latent, it is drawn with z and counts as one more latent of all components.

        Args:
            tensors: one batch of cells as loaded by scvi-tools.
            draws_per_component: draws L from each component.
            noise: standard normal noise of the latents, and, in the last position, of the library size if it is latent.
        """
        inputs = self._get_inference_input(tensors)
        outputs = self.inference(**inputs, n_samples=draws_per_component, stratified=True, noise=noise)
        return self._terms(tensors, outputs, self.generative(**self._get_generative_input(tensors, outputs)), noise)

    def _terms(
        self, tensors: Batch, inferred: dict[str, Any], generated: dict[str, Any], noise: Tensor | None = None
    ) -> Terms:
        joint, q = joint_and_posterior(self, tensors, inferred)
        z = inferred[MODULE_KEYS.Z_KEY]
        width = joint.prior.event_shape[0]  # with the prior's own latents
        if noise is None:
            further = torch.randn(len(z), width - self.n_latent, device=z.device)
        else:
            further = noise[..., self.n_latent : width].flatten(0, 2).to(z)
        library = inferred[MODULE_KEYS.LIBRARY_KEY] if joint.library is None else z[:, :0]
        latents = torch.cat([z, further, library], -1).unflatten(0, (-1, *q.batch_shape))
        return terms_of(joint, q, latents, generated[MODULE_KEYS.PX_KEY])

    def loss(
        self,
        tensors: Batch,
        inference_outputs: dict[str, Any],
        generative_outputs: dict[str, Any],
        kl_weight: Tensor | float | int = 1.0,
    ) -> LossOutput:
        """Negative ELBO of the mixture, with the KL of z scaled by `kl_weight`.

        KL(q ‖ p) = 1/S Σ_s KL(q_s ‖ p) − JSD, the first part in closed form, the JSD estimated by the same draws.
        """
        if self.minified_data_type == ADATA_MINIFY_TYPE.LATENT_POSTERIOR:
            return super().loss(tensors, inference_outputs, generative_outputs)  # refused in scvi-tools' own words
        terms = self._terms(tensors, inference_outputs, generative_outputs)
        qz, ql = inference_outputs[MODULE_KEYS.QZ_KEY], inference_outputs[MODULE_KEYS.QL_KEY]
        reconstruction = -elbo(terms.log_px, terms.weight)
        kl_z = self._kl_of_components(qz, terms, inference_outputs, tensors) - jsd(terms)
        kl_l = torch.zeros_like(kl_z)
        if ql is not None:
            kl_l = kl_divergence(ql, library_prior(self, tensors[REGISTRY_KEYS.BATCH_KEY])).sum(-1)
        return LossOutput(
            loss=(reconstruction + kl_weight * kl_z + kl_l).mean(),
            reconstruction_loss=reconstruction,
            kl_local={MODULE_KEYS.KL_L_KEY: kl_l, MODULE_KEYS.KL_Z_KEY: kl_z},
        )

    def _kl_of_components(
        self, qz: CellPosterior, terms: Terms, inferred: dict[str, Any], tensors: Batch
    ) -> Float[Tensor, " B"]:
        """Mean over components of KL(q_s ‖ p): in closed form for the normal prior, otherwise from the draws."""
        if isinstance(self.prior, StandardNormal):
            return qz.kl_to_standard_normal()
        log_pz = terms.log_pz
        if inferred[MODULE_KEYS.QL_KEY] is not None:  # which is a part of it
            library = inferred[MODULE_KEYS.LIBRARY_KEY].unflatten(0, log_pz.shape)
            log_pz = log_pz - library_prior(self, tensors[REGISTRY_KEYS.BATCH_KEY]).log_prob(library).sum(-1)
        return -qz.mean_entropy() - log_pz.mean((0, 1))

    @torch.inference_mode()
    @auto_move_data
    def marginal_ll(
        self, tensors: Batch, n_mc_samples: int, return_mean: bool = False, n_mc_samples_per_pass: int = 1
    ) -> Float[Tensor, " B"] | float:
        """Pooled bound on log p(x) of every cell in nats, from at least `n_mc_samples` draws in total.

        Args:
            tensors: one batch of cells.
            n_mc_samples: draws over all components, rounded up to a multiple of S.
            return_mean: return the mean over these cells instead.
            n_mc_samples_per_pass: draws decoded at once, also rounded up.
        """
        draws, at_once = (-(-n // self.n_components) for n in (n_mc_samples, n_mc_samples_per_pass))
        terms = (self.terms(tensors, min(at_once, draws - start)) for start in range(0, draws, at_once))
        sums, weight = zip(*((log_weights(t).logsumexp(0), t.weight) for t in terms), strict=True)
        log_mean = torch.stack(sums).logsumexp(0) - math.log(draws)  # (S, B)
        bound = pooled(log_mean[None], weight[0])
        return bound.mean().item() if return_mean else bound.cpu()
