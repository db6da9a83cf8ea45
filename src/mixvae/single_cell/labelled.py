"""The prior induced by labels in scANVI, as an exact density with one more latent."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from scvi.module import SCANVAE
from scvi.module._utils import broadcast_labels
from torch import Tensor, nn
from torch.distributions import Distribution, Normal, constraints
from torch.nn.functional import one_hot

from mixvae.single_cell.posterior import moments


class LabelledPrior(nn.Module):
    """The prior of scANVI's z₁, p(z₁) = Σ_y p(y) ∫ p(z₂) p(z₁|z₂, y) dz₂.

    Args:
        module: the module whose prior it is; it is referenced, not registered.
    """

    def __init__(self, module: SCANVAE):
        super().__init__()
        self._module = (module,)

    def forward(self) -> Labelled:
        """Return the distribution of z₁ and of the noise of z₂."""
        return Labelled(self._module[0])


class Labelled(Distribution):
    """p(z₁, ε) = Σ_y p(y) p(z₂) p(z₁|z₂, y) |∂z₂/∂ε|, where z₂ = m(z₁, y) + s(z₁, y)·ε, as drawn by q(z₂|z₁, y).

    Its integral over ε is p(z₁), which has no closed form. Where q(z₂|z₁, y) is exact, ε is standard normal given z₁.

    Args:
        module: scANVI's module, in evaluation mode.

    References:
        Xu et al., Probabilistic harmonization and annotation of single-cell transcriptomics data with deep generative
        models (2021), https://doi.org/10.15252/msb.20209620
    """

    arg_constraints = {}
    support = constraints.real

    def __init__(self, module: SCANVAE):
        self.module = module
        super().__init__(torch.Size(), torch.Size([2 * module.n_latent]), validate_args=False)

    def log_prob(self, value: Float[Tensor, "... E"]) -> Float[Tensor, ...]:
        """Log-density of z₁ and ε, side by side, in nats."""
        z1, noise = value.reshape(-1, value.shape[-1]).chunk(2, -1)
        labels = self.module.n_labels
        y, z1 = broadcast_labels(z1, n_broadcast=labels)
        mean, scale = moments(self.module.encoder_z2_z1, z1, y)
        z2 = mean + scale * noise.repeat(labels, 1)
        loc, variance = self.module.decoder_z1_z2(z2, y)
        log_p = Normal(loc, variance.sqrt()).log_prob(z1) + Normal(0.0, 1.0).log_prob(z2) + scale.log()
        joint = log_p.sum(-1).unflatten(0, (labels, -1)) + self.module.y_prior.T.log()
        return joint.logsumexp(0).reshape(value.shape[:-1])

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = ()) -> Float[Tensor, "... E"]:
        """Draw a label, z₂, z₁ given both, and the noise from which z₂ would have been drawn."""
        shape = torch.Size(sample_shape)
        module, draws = self.module, shape.numel()
        y = one_hot(torch.multinomial(module.y_prior[0], draws, replacement=True), module.n_labels)
        z2 = torch.randn(draws, module.n_latent, device=y.device)
        loc, variance = module.decoder_z1_z2(z2, y)
        z1 = Normal(loc, variance.sqrt()).sample()
        mean, scale = moments(module.encoder_z2_z1, z1, y)
        return torch.cat([z1, (z2 - mean) / scale], -1).reshape(*shape, -1)
