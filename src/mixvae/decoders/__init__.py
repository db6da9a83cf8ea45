"""Decoders p(x|z): modules whose `forward` maps z to a distribution over x, and likelihoods for them."""

from mixvae.decoders._factorised import (
    ConvDecoder,
    Decoder,
    GaussianLikelihood,
    Likelihood,
    LogisticMixture,
    MLPDecoder,
)
from mixvae.decoders._pixelcnn import PixelCNNDecoder
from mixvae.distributions import Bernoulli, ContinuousBernoulli

__all__ = [
    "MLPDecoder",
    "Bernoulli",
    "ContinuousBernoulli",
    "ConvDecoder",
    "Decoder",
    "GaussianLikelihood",
    "Likelihood",
    "LogisticMixture",
    "PixelCNNDecoder",
]
