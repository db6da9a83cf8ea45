"""All plots, from plain arrays: functions that return a matplotlib figure and draw nothing on a screen."""

from mixvae.figures._curves import gains, growth, learning_curves, likelihoods, scaling, scores, splits
from mixvae.figures._latents import Panel, classes, embedding, latent_means, overlap, planes, principal_plane, spread
from mixvae.figures._pictures import images, reconstructions, tile
from mixvae.figures._style import PALETTE, gif, png

__all__ = [
    "PALETTE",
    "Panel",
    "classes",
    "embedding",
    "gains",
    "gif",
    "growth",
    "images",
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
