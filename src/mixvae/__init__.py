"""Mixture VAEs: mixtures of encoders as flexible posteriors, with likelihoods that can be trusted.

Names are imported when they are first used, so that `import mixvae` costs nothing.

Example:
    >>> import mixvae
    >>> data = mixvae.load_dataset("digits", limit=40)
    >>> posterior = mixvae.SeparateEncoders(lambda: mixvae.networks.GatedEncoder(data.shape, 2, (5,)), 3)
    >>> model = mixvae.MixtureVAE(posterior, mixvae.StandardNormal(2), mixvae.MLPDecoder(2, data.shape, (5,)))
    >>> history = mixvae.fit(model, data, epochs=1)
    >>> mixvae.evaluate(model, data.test.batch(slice(0, 10)), total_draws=30).pooled.shape
    (10,)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mixvae.analysis import active_units, encode, interpolate
    from mixvae.datasets import Dataset, Split, as_dataset, load_dataset
    from mixvae.decoders import (
        Bernoulli,
        ContinuousBernoulli,
        ConvDecoder,
        Decoder,
        GaussianLikelihood,
        LogisticMixture,
        MLPDecoder,
        PixelCNNDecoder,
    )
    from mixvae.distributions import Components, DiagonalGaussian, Flowed, Mixture, Pooled
    from mixvae.evaluation import evaluate, paired_gain
    from mixvae.exporting import export
    from mixvae.model import MixtureVAE, unread
    from mixvae.parts import Part
    from mixvae.posteriors import (
        FlowPosterior,
        MixturePosterior,
        OneHotPosterior,
        Posterior,
        SeparateEncoders,
        TwoLevelPosterior,
    )
    from mixvae.priors import GaussianMixturePrior, StandardNormal, TwoLevelPrior, VampPrior
    from mixvae.runs import fit, load, open_run
    from mixvae.training import TrainingOptions

_ROOMS = {
    "analysis": ("active_units", "encode", "interpolate"),
    "datasets": ("Dataset", "Split", "as_dataset", "load_dataset"),
    "decoders": (
        "MLPDecoder",
        "Bernoulli",
        "ContinuousBernoulli",
        "ConvDecoder",
        "Decoder",
        "GaussianLikelihood",
        "LogisticMixture",
        "PixelCNNDecoder",
    ),
    "distributions": ("Components", "DiagonalGaussian", "Flowed", "Mixture", "Pooled"),
    "evaluation": ("evaluate", "paired_gain"),
    "exporting": ("export",),
    "model": ("MixtureVAE", "unread"),
    "parts": ("Part",),
    "posteriors": (
        "FlowPosterior",
        "MixturePosterior",
        "OneHotPosterior",
        "Posterior",
        "SeparateEncoders",
        "TwoLevelPosterior",
    ),
    "priors": ("TwoLevelPrior", "GaussianMixturePrior", "StandardNormal", "VampPrior"),
    "runs": ("fit", "load", "open_run"),
    "training": ("TrainingOptions",),
}
_NAMESPACES = (
    *_ROOMS, "bounds", "config", "figures", "progress", "flows", "gradients", "hub", "networks", "publishing",
    "sampling",
)  # fmt: skip
"""Modules that `import mixvae` makes available too, as in `mixvae.config.granting`."""
_HOME = {name: room for room, names in _ROOMS.items() for name in names}

__all__ = [
    "MLPDecoder",
    "Bernoulli",
    "TwoLevelPrior",
    "Components",
    "ContinuousBernoulli",
    "ConvDecoder",
    "Decoder",
    "Dataset",
    "DiagonalGaussian",
    "FlowPosterior",
    "Flowed",
    "GaussianLikelihood",
    "GaussianMixturePrior",
    "LogisticMixture",
    "Mixture",
    "MixturePosterior",
    "MixtureVAE",
    "OneHotPosterior",
    "Part",
    "PixelCNNDecoder",
    "Pooled",
    "Posterior",
    "SeparateEncoders",
    "Split",
    "StandardNormal",
    "TrainingOptions",
    "TwoLevelPosterior",
    "VampPrior",
    "active_units",
    "as_dataset",
    "encode",
    "export",
    "fit",
    "interpolate",
    "load",
    "load_dataset",
    "evaluate",
    "open_run",
    "paired_gain",
    "unread",
]


def __getattr__(name: str) -> object:
    if name in _NAMESPACES:
        return importlib.import_module(f"mixvae.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'mixvae' has no attribute {name!r}")
    return getattr(importlib.import_module(f"mixvae.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, *globals()]
