"""Experiments at equal draws per step, which decide when a mixture helps; their primary contrasts are named here."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

import torch

from mixvae.networks import GatedEncoder
from mixvae.reproduce.contrasts import Question
from mixvae.reproduce.findings import Experiment
from mixvae.reproduce.trainings import Trainings
from mixvae.reproduce.variants import Variant

LAST: dict[str, Any] = {"training.keep": "last", "training.patience": None}
"""Options under which no epoch is selected."""
FASHION: dict[str, Any] = {"data.name": "fashion_mnist"}
FIFTH: dict[str, Any] = {"data.limit": 10000, "data.limit_validation": 2000}
"""A fifth of the training and validation images."""
FIFTY: dict[str, Any] = {"training.epochs": 50, "training.warmup": 12}
TINY: dict[str, Any] = {
    "data.name": "digits", "data.limit": 200, "model.latent": 4, "training.epochs": 2, "training.warmup": 1,
    "model.decoder": {"class_path": "MLPDecoder", "hidden": [16]},
}  # fmt: skip
"""A trial on 8×8 digits."""
TINY_ENCODER: dict[str, Any] = {**TINY, "model.encoder": {"class_path": "GatedEncoder", "hidden": [16]}}
SMOKE: dict[str, Any] = {"seeds": (0, 1), "total_draws": 20, "examples": 50}
FIVE = tuple(range(5))
SCORES = ("knn", "svm", "mlp", "qda", "ari", "nmi", "asw")


def encoder_parameters(shape: Sequence[int], latent: int, hidden: Sequence[int]) -> int:
    """Number of parameters of a gated encoder, counted on one without storage."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in GatedEncoder(shape, latent, hidden).parameters())


def wide(times: int, shape: Sequence[int], latent: int, hidden: Sequence[int]) -> list[int]:
    """Widths of one gated encoder that is as deep as several and has as many parameters.

    Example:
        >>> from mixvae.reproduce.equal import wide
        >>> wide(4, (1, 28, 28), 40, [300, 300])
        [821, 821]
    """
    depth, target = len(hidden), times * encoder_parameters(shape, latent, hidden)
    found = bisect_left(
        range(2 * times * max(hidden)), target, key=lambda w: encoder_parameters(shape, latent, [w] * depth)
    )
    return [found] * depth


def shared(draws: int, components: int, **options: Any) -> dict[str, Any]:
    """Options of S components that share the draws of a step equally."""
    return {"model.components": components, "training.draws_per_component": draws // components, **options}


def _digits(sizes: Sequence[int], draws: int, **rest: Any) -> Trainings:
    """Sizes × bounds."""
    bounds = ("elbo", "pooled")
    variants = [Variant(b, s, "digits", shared(draws, s, **{"training.bound": b})) for b in bounds for s in sizes]
    questions = [
        Question(
            f"Under the {b} bound S = {s} has a higher likelihood than S = {sizes[0]}.",
            [((b, s), (b, sizes[0]))],
            primary=True,
        )
        for b in bounds for s in sizes[1:]
    ]  # fmt: skip
    return Trainings(variants, questions, **rest)


def _fair(
    shape: Sequence[int], latent: int, hidden: list[int], size: int, options: dict[str, Any], **rest: Any
) -> Trainings:
    """Two sizes × two bounds, and one wide encoder of as many parameters under both."""
    variants, questions = [], []
    encoder = {"class_path": "GatedEncoder", "hidden": wide(size, shape, latent, hidden)}
    for bound in ("elbo", "pooled"):
        many, one, rival = (bound, size), (bound, 1), (f"wide {bound}", 1)
        under = {"training.bound": bound}
        variants += [
            Variant(*one, "vanilla", shared(size, 1, **under)),
            Variant(*many, "vanilla", shared(size, size, **under)),
            Variant(*rival, "vanilla", shared(size, 1, **under, **{"model.encoder": encoder}), against=one),
        ]
        questions += [
            Question(f"Under the {bound} bound S = {size} is better than S = 1.", [(many, one)], primary=True),
            Question(
                f"Under the {bound} bound S = {size} is better than one encoder of as many parameters.",
                [(many, rival)],
                primary=True,
            ),
        ]
    over_one = [((bound, size), (bound, 1)) for bound in ("elbo", "pooled")]
    questions.append(Question("The bound matters: pooled is better than elbo.", [(("pooled", 1), ("elbo", 1))]))
    if rest.get("represent"):
        questions += [
            Question(f"Classes are recognised better with S = {size} ({metric.upper()}).", over_one, metric)
            for metric in SCORES
        ]
    given = {"model.encoder": {"class_path": "GatedEncoder", "hidden": hidden}, **options}
    return Trainings(variants, questions, options=given, **rest)


def _vampprior(pseudo_inputs: int, size: int, fewer: int, options: dict[str, Any], **rest: Any) -> Trainings:
    """Equal numbers of prior components K·S; and equal K, with fewer seeds."""

    def prior(count: int) -> dict[str, Any]:
        return {"model.prior": {"class_path": "VampPrior", "pseudo_inputs": count}}

    one, many = ("vamp", 1), ("vamp", size)
    other = ("vamp of equal K", size)
    variants = [
        Variant(*one, "vamp", shared(size, 1, **prior(pseudo_inputs))),
        Variant(*many, "vamp", shared(size, size, **prior(pseudo_inputs // size))),
        Variant(*other, "vamp", shared(size, size, **prior(pseudo_inputs)), against=one, trainings=fewer),
    ]
    questions = [
        Question(f"With K·S = {pseudo_inputs} S = {size} is better than S = 1.", [(many, one)], primary=True),
        Question(f"With K = {pseudo_inputs} S = {size} is better than S = 1.", [(other, one)]),
    ]
    return Trainings(variants, questions, options=options, **rest)


def _convergence(size: int, draws: int, options: dict[str, Any], **rest: Any) -> Trainings:
    """Until patience ends, by a validation bound with an equal number of draws; the same runs at equal wall-clock."""
    one, many = ("vanilla", 1), ("vanilla", size)
    variants = [Variant(*one, "vanilla", shared(size, 1)), Variant(*many, "vanilla", shared(size, size))]
    questions = [
        Question(f"Near convergence S = {size} is better than S = 1.", [(many, one)], primary=True),
        Question(
            f"After the same training time S = {size} has a better validation bound than S = 1.", [(many, one)],
            "at_equal_seconds", primary=True,
        ),
    ]  # fmt: skip
    validation = {"training.validation_bound": "pooled", "training.validation_draws": draws}
    return Trainings(variants, questions, options={**options, **validation}, clock=True, **rest)


def _pixelcnn(
    sizes: Sequence[int], pseudo_inputs: int, options: dict[str, Any], composite: dict[str, Any], **rest: Any
) -> Trainings:
    """Convolution and PixelCNN with and without VampPrior, and the composite."""
    draws, questions = sizes[-1], []
    variants = [Variant("conv", s, "conv", shared(draws, s)) for s in sizes]
    for model, its, more in (("conv_vamp", sizes, {}), ("composite", sizes[:2], composite)):
        for s in its:
            prior = {"class_path": "VampPrior", "pseudo_inputs": pseudo_inputs // s}
            variants.append(Variant(model, s, model, shared(draws, s, **{"model.prior": prior, **more})))
    for model, s in (("conv", sizes[-1]), ("conv_vamp", sizes[-1]), ("composite", sizes[1])):
        claim = f"S = {s} is better than S = 1 ({model})."
        questions.append(Question(claim, [((model, s), (model, 1))], primary=True))
    between = [((m, sizes[1]), (m, 1)) for m in ("conv", "conv_vamp")] if len(sizes) > 2 else []
    questions += [Question(f"S = {sizes[1]} is better than S = 1.", between)] if between else []
    return Trainings(variants, questions, options=options, samples=36, **rest)


def _hundreds(sizes: Sequence[int], options: dict[str, Any], **rest: Any) -> Trainings:
    """One-hot components of one encoder, two of which are drawn from at each step; one component with two draws."""
    one = ("one", 1)
    variants = [Variant(*one, "one_hot", {**shared(2, 1), "training.active": None})]
    questions = []
    for model, scored, name in (("S2A", "all", "all"), ("S2S", "active", "only the active")):
        for a in sizes:
            changed = {"model.components": a, "training.active": 2, "training.scored": scored}
            variants.append(Variant(model, a, "one_hot", changed, against=one))
        claim = f"A = {sizes[-1]} components, with {name} components scored, are better than one."
        questions.append(Question(claim, [((model, sizes[-1]), one)], primary=True))
    return Trainings(variants, questions, options=options, **rest)


_TINY_PIXELCNN = {
    **{name: value for name, value in TINY.items() if name != "model.decoder"}, **LAST,
    "model.decoder": {"class_path": "PixelCNNDecoder", "layers": 2, "width": 8},
}  # fmt: skip
_SMALL_COMPOSITE = {
    "model.lower": {"class_path": "GaussianNetwork", "hidden": [16]},
    "model.flow": {"class_path": "InverseAutoregressiveFlow", "transforms": 2, "hidden": [16]},
}
_LAYERS14 = [[16, 5, 1], [32, 3, 2], [32, 3, 1], [6, 3, 1]]
"""Convolutions for 14×14 pixels, which the paper's strides do not divide."""
_CONV14 = {
    **FASHION, **LAST, "data.resize": 14, "data.limit": 10000, "data.limit_validation": 1000,
    "training.epochs": 16, "training.warmup": 4,
    "model.encoder": {"class_path": "GatedConvEncoder", "layers": _LAYERS14},
    "model.decoder": {"class_path": "PixelCNNDecoder", "layers": 5, "width": 32},
}  # fmt: skip
_COMPOSITE14 = {
    "model.encoder": {"class_path": "TwoLevelConv", "layers": _LAYERS14},
    "model.flow": {"class_path": "InverseAutoregressiveFlow", "transforms": 2, "hidden": [64]},
}
LONG = {**FASHION, "training.epochs": 1000, "training.warmup": 100}
PAPER: dict[str, Any] = {"seeds": FIVE, "total_draws": 5000}

_EXPERIMENTS = (
    Experiment(
        "digits",
        "Digits at equal draws per step",
        "With as many draws per step, more components have a higher likelihood, under the ELBO and under the pooled "
        "bound, which with one component is that of the IWAE.",
        {
            "smoke": _digits((1, 2), 2, options={**TINY_ENCODER, **LAST}, cost="half a minute", **SMOKE),
            "small": _digits(
                (1, 2, 4, 8), 8, options={**LAST, "training.epochs": 60, "training.warmup": 10},
                seeds=tuple(range(20)), total_draws=500, cost="two hours of one core",
            ),
            "paper": _digits(
                (1, 2, 4, 8), 8, options={**LAST, "training.epochs": 400, "training.warmup": 50},
                seeds=tuple(range(20)), total_draws=5000, cost="half a day of one core",
            ),
        },
    ),
    Experiment(
        "fair",
        "FashionMNIST at equal draws per step",
        "Four encoders with one draw each are better than one with four draws, and than one of as many parameters, "
        "under the ELBO and under the pooled bound, which with one component is that of the IWAE.",
        {
            "smoke": _fair(
                (1, 8, 8), 4, [16], 2, {**TINY, **LAST}, represent=True, cost="a minute", **SMOKE
            ),
            "small": _fair(
                (1, 28, 28), 40, [300, 300], 4, {**FASHION, **LAST, **FIFTY}, represent=True, seeds=FIVE,
                total_draws=1000, cost="half a day of one core",
            ),
            "paper": _fair(
                (1, 28, 28), 40, [300, 300], 4, {**LONG, **LAST}, represent=True, cost="days on one GPU", **PAPER
            ),
        },
    ),
    Experiment(
        "vampprior",
        "VampPrior at equal draws per step",
        "Four encoders are better than one under a VampPrior of as many components, each with as many draws per step.",
        {
            "smoke": _vampprior(8, 2, 1, {**TINY_ENCODER, **LAST}, cost="half a minute", **SMOKE),
            "small": _vampprior(
                500, 4, 3, {**FASHION, **FIFTH, **LAST, **FIFTY},
                seeds=FIVE, total_draws=2000, examples=2000, cost="five hours of one core",
            ),
            "paper": _vampprior(500, 4, 3, {**LONG, **LAST}, cost="days on one GPU", **PAPER),
        },
    ),
    Experiment(
        "convergence",
        "FashionMNIST until convergence, and at equal wall-clock",
        "Four encoders with one draw each are better than one with four draws when neither improves any more, and "
        "after the same training time.",
        {
            "smoke": _convergence(2, 4, {**TINY_ENCODER, "training.patience": 1}, cost="half a minute", **SMOKE),
            "small": _convergence(
                4, 8, {**FASHION, **FIFTH, "training.epochs": 300, "training.warmup": 12, "training.patience": 30},
                seeds=(0, 1, 2), total_draws=2000, examples=2000, cost="two and a half hours of one core",
            ),
            "paper": _convergence(
                4, 8, {**FASHION, "training.epochs": 4000, "training.warmup": 100, "training.patience": 100},
                cost="days on one GPU", **PAPER,
            ),
        },
    ),
    Experiment(
        "pixelcnn",
        "Convolution and PixelCNN without a leak, at equal draws per step",
        "More components have a higher likelihood with convolutional encoders and a PixelCNN decoder that does not "
        "leak, with and without VampPrior, and in the composite.",
        {
            "smoke": _pixelcnn((1, 2), 10, _TINY_PIXELCNN, _SMALL_COMPOSITE, cost="two minutes", **SMOKE),
            "small": _pixelcnn(
                (1, 2, 4), 100, _CONV14, _COMPOSITE14,
                seeds=(0, 1, 2), total_draws=500, examples=1000, cost="six hours of one core",
            ),
            "paper": _pixelcnn((1, 2, 4), 500, {**LONG, **LAST}, {}, cost="weeks on one GPU", **PAPER),
        },
    ),
    Experiment(
        "hundreds",
        "Hundreds of components at equal draws per step",
        "Forty components of one encoder are better than one, with two draws per step each, whether all components "
        "score every draw (S2A) or only the two that are drawn from (S2S).",
        {
            "smoke": _hundreds(
                (4,), {**TINY, **LAST, "model.encoder": {"class_path": "GatedTrunk", "hidden": [16]}},
                cost="half a minute", **SMOKE,
            ),
            "small": _hundreds(
                (4, 40), {**FASHION, **LAST, "training.epochs": 20, "training.warmup": 4},
                seeds=(0, 1, 2), total_draws=500, examples=2000, cost="four hours of one core",
            ),
            "paper": _hundreds((4, 40, 400), {**LONG, **LAST}, cost="days on one GPU", **PAPER),
        },
    ),
)  # fmt: skip
EQUAL = {experiment.name: experiment for experiment in _EXPERIMENTS}
"""The experiments at equal draws per step, by name."""
