"""Variational posteriors q(z|x): mixtures whose components are computed from x."""

from mixvae.posteriors.base import MixturePosterior, Posterior
from mixvae.posteriors.flow import FlowPosterior
from mixvae.posteriors.one_hot import OneHotPosterior
from mixvae.posteriors.separate import SeparateEncoders
from mixvae.posteriors.two_level import TwoLevelPosterior

__all__ = ["FlowPosterior", "MixturePosterior", "OneHotPosterior", "Posterior", "SeparateEncoders", "TwoLevelPosterior"]
