"""Cells at equal draws per step: what is trained, and the claims that decide whether a mixture helps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mixvae.reproduce.cells.names import BASELINE, MIXTURE, UNNORMALISED, named_by_draws
from mixvae.reproduce.cells.plan import Cells
from mixvae.reproduce.contrasts import Key, Question


def cortex(sizes: Sequence[int], unnormalised: int, **rest: Any) -> Cells:
    """Mixtures of cells against one encoder with as many draws per step, and against scvi-tools' SCVI with one."""
    equal = [_pair(MIXTURE, s) for s in sizes if s > 1 and s % 2]
    free = [_pair(UNNORMALISED, unnormalised)]
    without = list(zip(_pair(UNNORMALISED, unnormalised), _pair(MIXTURE, unnormalised), strict=True))
    over_scvi = [((MIXTURE, s), BASELINE) for s in sizes if s > 1]
    questions = [
        *(Question(f"{many[1]} encoders are better than one with as many draws.", [(many, one)], primary=True)
          for many, one in equal),
        Question(f"Without BatchNorm {unnormalised} encoders are better than one with as many draws.", free,
                 primary=True),
        Question("Several encoders have a better ELBO than one with as many draws.", [*equal, *free], "elbo"),
        Question("Their posterior is nearer to the true one, in −KL(q(z|x) ‖ p(z|x)).", [*equal, *free], "posterior"),
        Question("Mixtures are better than scvi-tools' SCVI, which has one draw per step.", over_scvi),
        Question("Mixtures have a better ELBO than scvi-tools' SCVI.", over_scvi, "elbo"),
        Question("Models are better without BatchNorm.", without),
        Question("Clusters agree better with the types (ARI).", equal, "ari"),
        Question("Finer types are classified better.", equal, "svm_precise"),
    ]  # fmt: skip
    drawn = {MIXTURE: [s for (_, s), _ in equal], UNNORMALISED: [unnormalised]}
    return Cells(sizes, unnormalised=(unnormalised,), drawn=drawn, questions=questions, **rest)


def _pair(kind: str, size: int) -> tuple[Key, Key]:
    """A mixture, and one encoder with the same number of draws per step."""
    return (kind, size), (named_by_draws(kind, size), 1)
