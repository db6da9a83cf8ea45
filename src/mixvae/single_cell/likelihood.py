"""Log-likelihood of counts under many draws of the latents, computing only once what does not depend on them."""

from __future__ import annotations

import torch
from jaxtyping import Float
from scvi.distributions import NegativeBinomial, ZeroInflatedNegativeBinomial
from torch import Tensor
from torch.distributions import Distribution
from torch.nn.functional import softplus

EPSILON = 1e-8
"""Added inside logarithms as in scvi-tools, so that both agree up to rounding."""


def log_likelihood(
    px: Distribution, x: Float[Tensor, "B G"], theta: Float[Tensor, "#T #B G"] | None
) -> Float[Tensor, "T B"]:
    """Log p(x_b | z_tb), summed over genes, in nats, for T draws of every cell.

    The log-gamma terms of negative binomials depend only on counts and dispersion, so they are computed once for
    all draws that share a dispersion. Equal to `px.log_prob` on repeated counts, up to rounding.

    Args:
        px: distribution of scvi-tools with parameters of shape (T·B, G), draws first.
        x: counts.
        theta: inverse dispersion without the repeats; None if the likelihood has none.

    References:
        Lopez et al., Deep generative modeling for single-cell transcriptomics (2018),
        https://doi.org/10.1038/s41592-018-0229-2
    """
    cells = x.shape[0]
    if theta is None or not isinstance(px, NegativeBinomial):
        repeats = px.batch_shape[0] // cells
        return px.log_prob(x.repeat(repeats, 1)).sum(-1).unflatten(0, (-1, cells))
    mean = px.mu.unflatten(0, (-1, cells))  # (T, B, G)
    log_scale = (theta + mean + EPSILON).log()
    failures = theta * ((theta + EPSILON).log() - log_scale)
    gammas = (x + theta).lgamma() - theta.lgamma() - (x + 1).lgamma()
    counted = x * ((mean + EPSILON).log() - log_scale) + gammas
    if not isinstance(px, ZeroInflatedNegativeBinomial):
        return (failures + counted).sum(-1)
    logits = px.zi_logits.unflatten(0, (-1, cells))  # of a zero by dropout
    kept = failures - logits
    return (torch.where(x < EPSILON, softplus(kept), kept + counted) - softplus(-logits)).sum(-1)
