"""Decoders p(x|z): modules whose `forward` maps z to a distribution over x, and likelihoods for them."""

from mixvae.decoders.factorised import MLP, Conv, Decoder, Gaussian, Likelihood, LogisticMixture
from mixvae.decoders.pixelcnn import PixelCNNDecoder
from mixvae.distributions import Bernoulli, ContinuousBernoulli

__all__ = [
    "MLP",
    "Bernoulli",
    "ContinuousBernoulli",
    "Conv",
    "Decoder",
    "Gaussian",
    "Likelihood",
    "LogisticMixture",
    "PixelCNNDecoder",
]
