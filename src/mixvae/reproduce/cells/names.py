"""Names of the kinds of models that experiments on cells train. Imports nothing of scvi-tools."""

from __future__ import annotations

SCVI_NAME, RIVAL, FROZEN, MIXTURE, UNNORMALISED = "scvi", "samples", "frozen", "mixture", "nobatchnorm"
BASELINE = (SCVI_NAME, 1)
"""The model over which the others' gains are computed, and its number of components."""
KINDS = (SCVI_NAME, MIXTURE, FROZEN, UNNORMALISED)
"""Kinds of models that are trained; the rival is computed from a trained SCVI."""

DERIVED = (RIVAL, FROZEN)
"""Kinds that rest on SCVI's own trainings: they are paired with it by seed, and are no further trainings."""


def named_by_draws(kind: str, draws: int) -> str:
    """A kind of model whose training takes this many draws from each component.

    Example:
        >>> from mixvae.reproduce.cells.names import named_by_draws
        >>> named_by_draws("mixture", 1), named_by_draws("mixture", 3)
        ('mixture', 'mixture, 3 draws')
    """
    return kind if draws == 1 else f"{kind}, {draws} draws"
