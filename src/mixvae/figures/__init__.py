"""All plots, from plain arrays: functions that return a matplotlib figure and draw nothing on a screen."""

from mixvae.figures._curves import gains, growth, likelihoods, scaling, scores, splits
from mixvae.figures._latents import Panel, classes, embedding, latent_means, overlap, planes, principal_plane, spread
from mixvae.figures._learning import learning_curves
from mixvae.figures._pictures import images, interpolations, reconstructions, tile
from mixvae.figures._style import PALETTE, PHOTOGRAPH, PLOT, gif, png

__all__ = [
    "PALETTE",
    "PHOTOGRAPH",
    "PLOT",
    "Panel",
    "classes",
    "embedding",
    "gains",
    "gif",
    "growth",
    "images",
    "interpolations",
    "latent_means",
    "learning_curves",
    "likelihoods",
    "overlap",
    "planes",
    "png",
    "principal_plane",
    "reconstructions",
    "scaling",
    "scores",
    "splits",
    "spread",
    "tile",
]
