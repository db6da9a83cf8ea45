"""Distributions over latents and observations, in the style of torch.distributions."""

from mixvae.distributions._autoregressive import Autoregressive
from mixvae.distributions._chain import Chain, ChainComponents, ComponentLower
from mixvae.distributions._components import Components, Mixture, OnReals
from mixvae.distributions._fixed import Fixed, same_everywhere, support_of
from mixvae.distributions._flowed import Flowed, with_volume
from mixvae.distributions._gaussian import DiagonalGaussian, normal_log_prob
from mixvae.distributions._natural import Natural, least_precision, natural_parameters
from mixvae.distributions._noise import DRAW_BLOCK, keyed_normal
from mixvae.distributions._observations import (
    Bernoulli,
    ContinuousBernoulli,
    DiscretizedLogisticMixture,
    full_precision,
)
from mixvae.distributions._pooled import Pooled

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
    "Natural",
    "OnReals",
    "Pooled",
    "full_precision",
    "keyed_normal",
    "least_precision",
    "natural_parameters",
    "normal_log_prob",
    "with_volume",
    "same_everywhere",
    "support_of",
]
