"""Distributions over latents and observations, as torch.distributions does them."""

from mixvae.distributions.autoregressive import Autoregressive
from mixvae.distributions.chain import Chain, ChainComponents, ComponentLower
from mixvae.distributions.components import Components, Mixture, OnReals
from mixvae.distributions.fixed import Fixed
from mixvae.distributions.flowed import Flowed, with_volume
from mixvae.distributions.gaussian import DiagonalGaussian, normal_log_prob
from mixvae.distributions.noise import DRAW_BLOCK, keyed_normal
from mixvae.distributions.observations import (
    Bernoulli,
    ContinuousBernoulli,
    DiscretizedLogisticMixture,
    full_precision,
)
from mixvae.distributions.pooled import Pooled

__all__ = [
    "DRAW_BLOCK",
    "Autoregressive",
    "Bernoulli",
    "Chain",
    "ChainComponents",
    "ComponentLower",
    "Components",
    "ContinuousBernoulli",
    "DiagonalGaussian",
    "DiscretizedLogisticMixture",
    "Fixed",
    "Flowed",
    "Mixture",
    "OnReals",
    "Pooled",
    "full_precision",
    "keyed_normal",
    "normal_log_prob",
    "with_volume",
]
