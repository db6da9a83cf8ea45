"""What each component of a mixture is for: overlap, shares of the posterior, and exact posteriors on the plane."""

from mixvae.diagnostics.overlap import Overlap, overlap, shares
from mixvae.diagnostics.planes import Plane, exact_posteriors

__all__ = ["Overlap", "Plane", "exact_posteriors", "overlap", "shares"]
