"""Honest evaluation: bounds on log p(x) per example, what they were made from, and paired gains."""

from mixvae.evaluation._check import Check, check
from mixvae.evaluation._estimate import (
    MOST_UNRELIABLE,
    Estimate,
    Fingerprint,
    fingerprint,
    is_tight,
    standard_error,
)
from mixvae.evaluation._evaluations import (
    Evaluation,
    Gain,
    Identity,
    SplitGain,
    differences,
    mismatch,
    paired_gain,
    split_gain,
)
from mixvae.evaluation._marginal import (
    WITH_GRAPH,
    ProposalName,
    check_draws,
    chunks,
    draws_of_each,
    evaluate,
    group_size,
)
from mixvae.evaluation._sums import Accumulator, WeightSums, unreliable_k, weigh

__all__ = [
    "MOST_UNRELIABLE",
    "WITH_GRAPH",
    "Accumulator",
    "Check",
    "Estimate",
    "Evaluation",
    "Fingerprint",
    "Gain",
    "Identity",
    "ProposalName",
    "SplitGain",
    "WeightSums",
    "check",
    "check_draws",
    "chunks",
    "differences",
    "draws_of_each",
    "fingerprint",
    "evaluate",
    "group_size",
    "is_tight",
    "mismatch",
    "paired_gain",
    "split_gain",
    "standard_error",
    "unreliable_k",
    "weigh",
]
