"""scvi-tools' SCANVAE with S encoders: labels are predicted from, and latents bounded by, the whole mixture."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from scvi import REGISTRY_KEYS
from scvi.module import SCANVAE, VAE
from scvi.module._constants import MODULE_KEYS
from scvi.module._utils import broadcast_labels
from scvi.module.base import LossOutput, auto_move_data
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from mixvae.priors import StandardNormal
from mixvae.single_cell.joint import Batch, joint_and_posterior, library_prior
from mixvae.single_cell.labelled import LabelledPrior
from mixvae.single_cell.module import MixtureModule
from mixvae.single_cell.posterior import CellPosterior


class MixtureSCANVAE(MixtureModule, SCANVAE):
    """`scvi.module.SCANVAE` whose posterior of z₁ is a mixture, q(z₁|x) = 1/S Σ_s q_s(z₁|x).

    p(x, z₁, z₂, y) = p(y) p(z₂) p(z₁|z₂, y) p(x|z₁), and q(z₁, z₂, y|x) = q(z₁|x) q(y|z₁) q(z₂|z₁, y). The class of a
    cell has the probabilities 1/S Σ_s q(y | z₁ = μ_s(x)): each component votes, and the mean of the mixture, which may
    lie between two of them, does not.

    Args:
        n_input: number of genes.
        n_components: number of encoders S.
        **kwargs: everything that `scvi.module.SCANVAE` takes.

    References:
        Kviman et al., Cooperation in the Latent Space (2023), https://arxiv.org/abs/2209.15514
        Xu et al., Probabilistic harmonization and annotation of single-cell transcriptomics data with deep generative
        models (2021), https://doi.org/10.15252/msb.20209620

    Example:
        >>> import torch
        >>> from mixvae.single_cell import MixtureSCANVAE
        >>> module = MixtureSCANVAE(12, n_components=3, n_labels=4, n_hidden=8, n_latent=2).eval()
        >>> scores = module.classify(torch.ones(5, 12), torch.zeros(5, 1))
        >>> scores.shape, bool((scores.exp().sum(-1) - 1).abs().max() < 1e-5)
        (torch.Size([5, 4]), True)
    """

    def __init__(self, n_input: int, *, n_components: int = 4, **kwargs: Any):
        super().__init__(n_input, n_components=n_components, **kwargs)
        if not isinstance(self.prior, StandardNormal):
            raise ValueError("the prior of scANVI's z₁ is made of labels and z₂: leave prior out")
        if self.freeze_decoder:
            raise ValueError("scANVI trains its decoder and its classifier together: leave freeze_decoder out")
        self.prior = LabelledPrior(self)

    @auto_move_data
    def classify(
        self,
        x: Float[Tensor, "B G"] | None = None,
        batch_index: Tensor | None = None,
        cont_covs: Tensor | None = None,
        cat_covs: Tensor | None = None,
        use_posterior_mean: bool = True,
        **minified: Tensor,
    ) -> Float[Tensor, "B Y"]:
        """Log-probabilities of the labels, averaged over the components.

        Args:
            x: counts; None for minified cells.
            batch_index: batch of each cell.
            cont_covs: continuous covariates.
            cat_covs: categorical covariates.
            use_posterior_mean: classify the mean of every component; otherwise one draw from the mixture.
            **minified: what minified cells have instead of counts: qzm, qzv and observed_lib_size.

        Returns:
            Logarithms of probabilities, or probabilities where the classifier gives these (`logits=False`).
        """
        if x is None:
            inferred = self._cached_inference(**minified)
        else:
            inferred = VAE._regular_inference(self, x, batch_index, cont_covs=cont_covs, cat_covs=cat_covs)
        qz: CellPosterior = inferred[MODULE_KEYS.QZ_KEY]
        z = qz.means.transpose(0, 1) if use_posterior_mean else qz.sample((1,))
        scores = self.classify_helper(z.flatten(0, 1)).unflatten(0, z.shape[:2])
        if not self.classifier.logits:
            return scores.mean(0)
        return scores.log_softmax(-1).logsumexp(0) - math.log(len(scores))

    def _labelled(self, z: Float[Tensor, "R D"]) -> tuple[Tensor, Normal, Tensor, Tensor]:
        """For every label: log p(z₁|z₂, y), q(z₂|z₁, y), a draw z₂ of it, and log q(y|z₁); labels come first."""
        y, repeated = broadcast_labels(z, n_broadcast=self.n_labels)
        q, z2 = self.encoder_z2_z1(repeated, y)
        mean, variance = self.decoder_z1_z2(z2, y)
        log_p = Normal(mean, variance.sqrt()).log_prob(repeated).sum(-1).unflatten(0, (self.n_labels, -1))
        scores = self.classifier(z)
        log_y = scores.log_softmax(-1) if self.classifier.logits else (scores + 1e-30).log()
        return log_p, q, z2, log_y.T

    @property
    def _log_prior_y(self) -> Float[Tensor, "Y 1"]:
        return self.y_prior.T.log()

    def loss(
        self,
        tensors: Batch,
        inference_outputs: dict[str, Any],
        generative_ouputs: dict[str, Any],  # the keyword's name in scvi-tools
        kl_weight: Tensor | float | int = 1.0,
        labelled_tensors: Batch | None = None,
        classification_ratio: float | int | None = None,
    ) -> LossOutput:
        """Negative ELBO of the mixture, as in scANVI, plus the weighted cross-entropy of cells with labels.

        −E_{q(z₁|x)}[log p(x|z₁) − log q(z₁|x) + Σ_y q(y|z₁) log p(z₁|z₂, y)] + β E_{q(z₁|x)}[Σ_y q(y|z₁) KL(q(z₂|z₁, y)
        ‖ p(z₂)) + KL(q(y|z₁) ‖ p(y))], by draws of every component; β weights the same parts as in scvi-tools.

        Args:
            tensors: one batch of cells.
            inference_outputs: posterior and stratified draws.
            generative_ouputs: the decoded draws.
            kl_weight: β.
            labelled_tensors: cells with labels.
            classification_ratio: weight of their cross-entropy.
        """
        qz, ql = inference_outputs[MODULE_KEYS.QZ_KEY], inference_outputs[MODULE_KEYS.QL_KEY]
        z = inference_outputs[MODULE_KEYS.Z_KEY]
        joint, _ = joint_and_posterior(self, tensors, inference_outputs)
        log_px = joint.scored(generative_ouputs[MODULE_KEYS.PX_KEY])
        log_q = qz.log_prob(z.unflatten(0, (-1, len(tensors[REGISTRY_KEYS.BATCH_KEY])))).squeeze(-1)
        log_p, q2, _, log_y = self._labelled(z)
        probability = log_y.exp()
        kl_2 = kl_divergence(q2, Normal(torch.zeros_like(q2.loc), 1.0)).sum(-1).reshape(log_p.shape)
        kl = (probability * (kl_2 + log_y - self._log_prior_y)).sum(0).reshape(log_q.shape).mean(0)
        reconstruction = (log_q - log_px - (probability * log_p).sum(0).reshape(log_q.shape)).mean(0)
        if ql is not None:
            kl = kl + kl_divergence(ql, library_prior(self, tensors[REGISTRY_KEYS.BATCH_KEY])).sum(-1)
        losses: dict[str, Any] = {"reconstruction_loss": reconstruction, "kl_local": kl}
        loss = (reconstruction + kl_weight * kl).mean()
        if labelled_tensors is not None:
            error, labels, logits = self.classification_loss(labelled_tensors)
            loss = loss + error * classification_ratio
            losses |= {"classification_loss": error, "true_labels": labels, "logits": logits}
        return LossOutput(loss=loss, **losses)
