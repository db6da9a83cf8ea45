"""Honest evaluation: bounds on log p(x) per example, what they were made from, and paired gains."""

from mixvae.evaluation._estimate import UNRELIABLE_K, Estimate, fingerprint, standard_error
from mixvae.evaluation._evaluations import Evaluation, Gain, Identity, differences, mismatch, paired_gain
from mixvae.evaluation._marginal import Accumulator, check_draws, chunks, draws_of_each, evaluate

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
    "evaluate",
    "mismatch",
    "paired_gain",
    "standard_error",
]
