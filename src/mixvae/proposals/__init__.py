"""Where the draws of a tight bound come from: for every example, its own approximation of p(z|x).

Importance sampling from the encoder's q(z|x) is a valid bound on log p(x), but a loose one, and looser for a worse
posterior. A proposal built for the example itself, from its mode and the curvature there, makes the bound tight
whatever the posterior, so that models can be compared by it.

It stays a bound because the weighted draws do not affect the proposal: only modes, curvature and pilot rounds do, and
the pilot, every stratum and the draws of the posterior have noise streams of their own.
"""

from mixvae.proposals._mixture import AMORTISED, Proposal, Student, keyed_uniform, systematic_counts
from mixvae.proposals._modes import Peaks, curvature, find_peaks
from mixvae.proposals._refine import Refined, refine, scores_own_draws, together

__all__ = [
    "AMORTISED",
    "Peaks",
    "Proposal",
    "Refined",
    "Student",
    "curvature",
    "find_peaks",
    "keyed_uniform",
    "refine",
    "scores_own_draws",
    "systematic_counts",
    "together",
]
