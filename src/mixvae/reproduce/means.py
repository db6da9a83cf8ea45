"""Whether mixtures can pay at equal draws per step: other ways of training them, and data that should need them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mixvae.reproduce.contrasts import Question
from mixvae.reproduce.equal import FASHION, FIFTH, FIFTY, FIVE, LAST, LONG, PAPER, SMOKE, TINY_ENCODER, shared
from mixvae.reproduce.findings import Experiment
from mixvae.reproduce.trainings import Trainings
from mixvae.reproduce.variants import Variant

_STL = {"training.gradient": "sticking_the_landing"}
_DREG = {"training.bound": "pooled", "training.gradient": "doubly_reparameterised"}
_LEARNED = {"model.learn_weights": True}
_SIXTY: dict[str, Any] = {**LAST, "training.epochs": 60, "training.warmup": 10}


def _halved(size: int) -> list[float]:
    """Weights each of which is half of the previous one, except for the last."""
    return [0.5**s for s in range(1, size)] + [0.5 ** (size - 1)]


def _ways(size: int, draws: int, preset: str, **rest: Any) -> Trainings:
    """Estimators of the gradient, learned weights and warm starts, each against one component trained the same way."""
    alike: dict[str, dict[str, Any]] = {
        "elbo": {}, "sticking the landing": _STL,
        "pooled": {"training.bound": "pooled"}, "doubly reparameterised": _DREG,
    }  # fmt: skip
    variants = [Variant(way, s, preset, shared(draws, s, **more)) for way, more in alike.items() for s in (1, size)]
    one, half = ("elbo", 1), ("half", 1)
    proportional = {"model.weights": _halved(size), "training.gradient": "proportional"}
    variants += [
        Variant("learned weights", size, preset, shared(draws, size, **_LEARNED), one),
        Variant("in proportion", size, preset, shared(draws, size, **proportional), one),
        Variant(*half, preset, shared(draws, 1), one, share=0.5),
        Variant("warm start", size, preset, shared(draws, size, **{"training.warmup": 0}), one, start=half, share=0.5),
    ]
    questions = [
        Question(
            f"{way}: S = {size} is better than S = 1.",
            [((way, size), (way, 1) if way in alike else one)],
            primary=True,
        )
        for way in (*alike, "learned weights", "in proportion", "warm start")
    ]
    questions += [
        Question(f"{way[0].upper()}{way[1:]} is better than the ELBO.", [((way, s), ("elbo", s)) for s in (1, size)])
        for way in alike if way != "elbo"
    ]  # fmt: skip
    return Trainings(variants, questions, **rest)


def _places(places: Mapping[str, Mapping[str, Any]], size: int, draws: int, **rest: Any) -> Trainings:
    """One component and several, on each kind of data or model."""
    variants = [
        Variant(place, s, "digits", shared(draws, s, **options)) for place, options in places.items() for s in (1, size)
    ]
    questions = [
        Question(f"{place}: S = {size} is better than S = 1.", [((place, size), (place, 1))], primary=True)
        for place in places
    ]
    return Trainings(variants, questions, **rest)


def _few(examples: int, epochs: int, warmup: int, batch: int = 100) -> dict[str, Any]:
    """Options for few training examples, with more epochs so that there are about as many steps."""
    return {
        "data.limit": examples, "training.batch": batch, "training.epochs": epochs, "training.warmup": warmup,
    }  # fmt: skip


def _sizes(sizes: Sequence[int]) -> dict[str, dict[str, Any]]:
    return {f"latent {latent}": {"model.latent": latent} for latent in sizes}


_PLACES: dict[str, dict[str, Any]] = {
    **_sizes((16, 4, 2)),
    "rotated": {"data.name": "rotated_digits"},
    "rotated (latent 2)": {"data.name": "rotated_digits", "model.latent": 2},
    "occluded": {"data.name": "occluded_digits"},
    "occluded (latent 2)": {"data.name": "occluded_digits", "model.latent": 2},
    "300 examples": _few(300, 240, 40),
    "100 examples": _few(100, 720, 120),
}

_EXPERIMENTS = (
    Experiment(
        "ways",
        "Ways to train a mixture at equal draws per step",
        "Other estimators of the gradient, learned weights, draws in proportion to unequal weights, or a warm start "
        "from one trained component make four components better than one with as many draws.",
        {
            "smoke": _ways(2, 2, "digits", options={**TINY_ENCODER, **LAST}, cost="a minute", **SMOKE),
            "small": _ways(4, 8, "digits", options=_SIXTY, seeds=FIVE, total_draws=500, cost="an hour of one core"),
            "paper": _ways(
                4, 8, "digits", options=_SIXTY, seeds=tuple(range(20)), total_draws=5000, cost="half a day of one core"
            ),
        },
    ),
    Experiment(
        "fashion_ways",
        "Ways to train a mixture at equal draws per step: FashionMNIST",
        "What helps on the digits (`ways`) helps on FashionMNIST.",
        {
            "smoke": _ways(2, 2, "digits", options={**TINY_ENCODER, **LAST}, cost="a minute", **SMOKE),
            "small": _ways(
                4, 4, "vanilla", options={**FASHION, **FIFTH, **LAST, **FIFTY}, seeds=FIVE, total_draws=500,
                examples=2000, cost="ten hours of one core; with --models of two ways about four",
            ),
            "paper": _ways(4, 4, "vanilla", options={**LONG, **LAST}, cost="weeks on one GPU", **PAPER),
        },
    ),
    Experiment(
        "places",
        "Data and models that should need a mixture",
        "With small latents, rotated or occluded images, whose posteriors have several modes, or few examples, four "
        "components are better than one with as many draws.",
        {
            "smoke": _places(
                {**_sizes((2,)), "occluded": {"data.name": "occluded_digits"}}, 2, 2,
                options={**TINY_ENCODER, **LAST}, cost="half a minute", **SMOKE,
            ),
            "small": _places(_PLACES, 4, 8, options=_SIXTY, seeds=FIVE, total_draws=500, cost="an hour of one core"),
            "paper": _places(
                _PLACES, 4, 8, options=_SIXTY, seeds=tuple(range(20)), total_draws=5000, cost="half a day of one core"
            ),
        },
    ),
)  # fmt: skip
MEANS = {experiment.name: experiment for experiment in _EXPERIMENTS}
"""The experiments on how and where mixtures can pay, by name."""
