"""What was learnt: latents and how useful they are, what each component is for, and exact posteriors on the plane."""

from mixvae.analysis._interpolation import interpolate
from mixvae.analysis._latents import active_units, draw_latents, encode
from mixvae.analysis._overlap import Overlap, overlap, shares
from mixvae.analysis._planes import Plane, exact_posteriors
from mixvae.analysis._representation import (
    Latents,
    Representation,
    ShrunkCovariance,
    classifiers,
    classify,
    cluster,
    represent,
)

__all__ = [
    "Latents",
    "Overlap",
    "Plane",
    "Representation",
    "ShrunkCovariance",
    "active_units",
    "classifiers",
    "classify",
    "cluster",
    "draw_latents",
    "encode",
    "exact_posteriors",
    "interpolate",
    "overlap",
    "represent",
    "shares",
]
