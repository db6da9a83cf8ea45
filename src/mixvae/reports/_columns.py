"""What the tables of runs and of configurations show."""

from __future__ import annotations

from dataclasses import replace

from mixvae.reports._between import ONE_TRAINING
from mixvae.reports._pages import Column

_OVER_EXAMPLES = f"standard error over examples of {ONE_TRAINING}"
_BETWEEN = "half width of its 95 % interval between trainings, by Student's t with the variance pooled over"
_PARTS = (
    ("ELBO gain", "elbo", "gain of the ELBO, of model and posterior together, nats", None, False),
    ("of it model", "model", "gain in log p(x), of a better model, nats", "gain", True),
    ("of it posterior", "posterior", "−ΔKL(q(z|x) ‖ p(z|x)), of a better posterior, nats", "gain", False),
)


def _split(error: str, of: str) -> tuple[Column, ...]:
    """Columns of the gain of the ELBO and its parts."""
    return tuple(
        Column(
            title, f"gain_{part}", f"gain_{part}_{error}", 3,
            f"{about}; only over a training of the same bound; ± {of}",
            signed=True, trust=trust, page_only=page_only,
        )
        for title, part, about, trust, page_only in _PARTS
    )  # fmt: skip


GAIN = Column(
    "gain ± over examples",
    "gain",
    "gain_se",
    3,
    f"gain in log p(x), nats, paired by example; ± {_OVER_EXAMPLES}",
    signed=True,
    trust="gain",
)
GAIN_BETWEEN = Column(
    "gain ± between trainings",
    "gain",
    "gain_margin",
    3,
    f"difference of mean log p(x), nats; ± {_BETWEEN} all configurations",
    signed=True,
    trust="gain",
)
SPLIT = _split("se", _OVER_EXAMPLES)
SPLIT_BETWEEN = _split("margin", f"{_BETWEEN} the configurations trained by that bound")
NLL = Column(
    "NLL ± over examples",
    "nll",
    "nll_se",
    about="−log p(x), estimated from above, nats; ± standard error over examples of a single training",
    trust="nll",
)
NLL_BETWEEN = Column(
    "NLL ± between trainings",
    "nll",
    "nll_margin",
    about=f"mean of −log p(x), estimated from above, nats; ± {_BETWEEN} all configurations",
    trust="nll",
)
ELBO = Column("−ELBO", "elbo", about="negative evidence lower bound, nats", negated=True)
MISELBO = Column(
    "MISELBO NLL", "nll_miselbo", about="bound on −log p(x) by MISELBO, the paper's protocol, nats", page_only=True
)
POOLED = Column(
    "pooled NLL", "nll_pooled", about="bound on −log p(x) by draws from the posterior, nats", page_only=True
)
SLACK = Column(
    "log p(x) − own bound",
    "slack",
    about="how far the bound that was trained lies below log p(x), nats, if it was evaluated with as many draws; "
    "KL(q(z|x) ‖ p(z|x)) for the ELBO",
    trust="nll",
    page_only=True,
)
_SIZE = Column("S", "components", digits=0, about="mixture components")
_BOUNDS = (MISELBO, POOLED, SLACK)
_COOPERATION = (
    Column("JSD", "jsd", digits=3, about="Jensen–Shannon divergence of the components, nats", page_only=True),
    Column("effective S", "effective_components", digits=2, about="exp of the mean JSD"),
    Column("parameters", "parameters", digits=0, page_only=True),
    Column("seconds", "train_seconds", digits=0, about="training time", page_only=True),
)
COLUMNS = (Column("run", "run"), _SIZE, NLL, GAIN, *SPLIT, ELBO, *_BOUNDS, *_COOPERATION)
"""Columns of single trainings."""
CONFIGURATIONS = (
    Column("configuration", "configuration", about="trainings that differ in their seed only"),
    _SIZE,
    Column("n", "trainings", digits=0, about="trainings with different seeds"),
    NLL_BETWEEN,
    GAIN_BETWEEN,
    *SPLIT_BETWEEN,
    *(replace(column, page_only=True) for column in (ELBO, *_BOUNDS, *_COOPERATION)),
)
"""Columns of configurations with several trainings: means over trainings."""
