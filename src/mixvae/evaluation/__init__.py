"""Honest evaluation: bounds on log p(x) per example, what they were made from, and paired gains."""

from mixvae.evaluation.estimate import UNRELIABLE_K, Estimate, fingerprint, standard_error
from mixvae.evaluation.evaluations import Evaluation, Gain, Identity, differences, mismatch, paired_gain
from mixvae.evaluation.marginal import Accumulator, check_draws, chunks, draws_of_each, log_marginal

__all__ = [
    "UNRELIABLE_K",
    "Accumulator",
    "Estimate",
    "Evaluation",
    "Gain",
    "Identity",
    "check_draws",
    "chunks",
    "differences",
    "draws_of_each",
    "fingerprint",
    "log_marginal",
    "mismatch",
    "paired_gain",
    "standard_error",
]
