"""Variational posteriors q(z|x): mixtures whose components are computed from x."""

from mixvae.posteriors._base import MixturePosterior, Posterior
from mixvae.posteriors._flow import FlowPosterior
from mixvae.posteriors._one_hot import OneHotPosterior
from mixvae.posteriors._separate import SeparateEncoders
from mixvae.posteriors._two_level import TwoLevelPosterior

__all__ = ["FlowPosterior", "MixturePosterior", "OneHotPosterior", "Posterior", "SeparateEncoders", "TwoLevelPosterior"]
