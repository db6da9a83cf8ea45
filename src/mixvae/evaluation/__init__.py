"""Honest evaluation: bounds on log p(x) per example, what they were made from, paired gains, and latents."""

from mixvae.evaluation.estimate import UNRELIABLE_K, Estimate, fingerprint, standard_error
from mixvae.evaluation.evaluations import Evaluation, Gain, Identity, differences, mismatch, paired_gain
from mixvae.evaluation.latents import active_units, draw_latents, encode
from mixvae.evaluation.marginal import Accumulator, check_draws, chunks, draws_of_each, log_marginal

__all__ = [
    "UNRELIABLE_K",
    "Accumulator",
    "Estimate",
    "Evaluation",
    "Gain",
    "Identity",
    "active_units",
    "check_draws",
    "chunks",
    "differences",
    "draw_latents",
    "draws_of_each",
    "encode",
    "fingerprint",
    "log_marginal",
    "mismatch",
    "paired_gain",
    "standard_error",
]
