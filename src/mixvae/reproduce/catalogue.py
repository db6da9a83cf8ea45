"""The experiments of the paper, each at three scales."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mixvae.reproduce.cells import Cells, Integration, Labels, Priors, cortex
from mixvae.reproduce.contrasts import Question
from mixvae.reproduce.equal import EQUAL, FIVE, LAST, LONG, PAPER, SMOKE, shared
from mixvae.reproduce.findings import Experiment
from mixvae.reproduce.means import MEANS
from mixvae.reproduce.toys import Toys
from mixvae.reproduce.trainings import Trainings
from mixvae.reproduce.variants import Variant

MODELS = ("vanilla", "vamp", "conv", "conv_vamp", "two_level", "two_level_vamp", "flow", "composite")
"""The paper's eight models, by their presets."""
DIGITS: dict[str, Any] = {
    "data.name": "digits", "data.limit": 200, "model.latent": 4, "training.epochs": 2, "training.warmup": 1,
}  # fmt: skip
"""Options that turn any preset into a trial on 8×8 digits."""
_FEW = {"class_path": "VampPrior", "pseudo_inputs": 10}
_GATED, _MLP = {"class_path": "GatedEncoder", "hidden": [16]}, {"class_path": "MLPDecoder", "hidden": [16]}
_PIXELCNN = {"class_path": "PixelCNNDecoder", "layers": 2, "width": 8}
_LEVELS = {"model.encoder": {"class_path": "TwoLevelDense", "hidden": [16]},
           "model.lower": {"class_path": "GaussianNetwork", "hidden": [16]}}  # fmt: skip
_FLOW = {"model.flow": {"class_path": "InverseAutoregressiveFlow", "transforms": 2, "hidden": [16]}}
SMALL_DIGITS: dict[str, dict[str, Any]] = {
    "vanilla": {"model.encoder": _GATED, "model.decoder": _MLP},
    "vamp": {"model.encoder": _GATED, "model.decoder": _MLP, "model.prior": _FEW},
    "conv": {"model.decoder": _PIXELCNN},
    "conv_vamp": {"model.decoder": _PIXELCNN, "model.prior": _FEW},
    "two_level": {**_LEVELS, "model.decoder": _MLP},
    "two_level_vamp": {**_LEVELS, "model.decoder": _MLP, "model.prior": _FEW},
    "flow": {"model.encoder": _GATED, "model.decoder": _MLP, **_FLOW},
    "composite": {"model.decoder": _PIXELCNN, "model.prior": _FEW, **_FLOW, "model.lower": _LEVELS["model.lower"]},
}
"""Options that make each of the eight models small."""


def _steps(models: Sequence[str], sizes: Sequence[int]) -> list[tuple[tuple[str, int], tuple[str, int]]]:
    """Each size over the previous one, for every model."""
    return [((m, new), (m, old)) for m in models for old, new in zip(sizes, sizes[1:], strict=False)]


def _likelihood(
    models: Sequence[str], sizes: Sequence[int], *, represent: bool = False, small: bool = False, **rest: Any
) -> Trainings:
    """Models × sizes, and the claim that every step in S raises the likelihood."""
    variants = [
        Variant(model, s, model, {"model.components": s, **(SMALL_DIGITS[model] if small else {})})
        for model in models for s in sizes
    ]  # fmt: skip
    questions = [Question("The likelihood rises with every step in S.", _steps(models, sizes))]
    if represent:
        over_one = [((m, s), (m, sizes[0])) for m in models for s in sizes[1:]]
        questions += [
            Question(f"Classes are recognised better with more components ({metric.upper()}).", over_one, metric)
            for metric in ("knn", "svm", "mlp", "qda", "ari", "nmi", "asw")
        ]
    return Trainings(variants, questions, represent=represent, **rest)


FASHION = {"data.name": "fashion_mnist"}
SHORT = {"training.epochs": 20, "training.warmup": 5}


def _nll(name: str) -> Experiment:
    """Log-likelihood of a data set of 28×28 images under the paper's eight models."""
    data = {"data.name": name}
    return Experiment(
        name,
        f"Log-likelihood of {'FashionMNIST' if name == 'fashion_mnist' else 'MNIST'}",
        "For each of eight models, the negative log-likelihood never rises as components are added, S = 1 to 4. "
        "(The published figures with PixelCNN decoders leak the test image through BatchNorm and are not a target.)",
        {
            "smoke": _likelihood(
                MODELS, (1, 2), small=True, options=DIGITS, total_draws=20, examples=50, cost="two to four minutes"
            ),
            "small": _likelihood(
                ("vanilla", "vamp"), (1, 2, 4), represent=True, options={**data, **SHORT}, draws_per_component=500,
                cost="two hours on two cores; with --epochs 50 --warmup 12 --seeds 0,1 about eight",
            ),
            "paper": _likelihood(
                MODELS, (1, 2, 3, 4), options=data, seeds=(0, 1, 2), draws_per_component=5000,
                cost="days on one GPU",
            ),
        },
    )  # fmt: skip


def _iwae(sizes: Sequence[int], hidden: int, widths: dict[int, int], depths: dict[int, int], **rest: Any) -> Trainings:
    """Mixtures of S encoders against one encoder with as many parameters, trained with the IWAE bound and S draws."""
    variants, pairs = [], []
    small = {"model.decoder": {"class_path": "MLPDecoder", "hidden": [hidden] * 2}}
    for s in sizes:
        gated = [("mixture", [hidden] * 2), ("wide IWAE", [widths[s]] * 2), ("deep IWAE", [hidden] * depths[s])]
        for model, layers in gated:
            rival = model != "mixture"
            options = {"model.encoder": {"class_path": "GatedEncoder", "hidden": layers}, **small}
            options |= (
                {"training.bound": "iwelbo", "training.draws_per_component": s} if rival else {"model.components": s}
            )
            variants.append(Variant(model, s, "vanilla", options, None if not rival else ("mixture", s)))
            pairs += [(("mixture", s), (model, s))] if rival else []
    return Trainings(
        variants, [Question("The mixture is better than one big IWAE of equal parameters.", pairs)], **rest
    )


def _latents(data: dict[str, Any], sizes: Sequence[int], **rest: Any) -> Trainings:
    return _likelihood(("vanilla",), sizes, represent=True, options=data, **rest)


def _ablation(
    presets: dict[str, Any], base: str, sizes: Sequence[int], draws: int | None = None, **rest: Any
) -> Trainings:
    """All combinations of flow, levels and VampPrior, times S; one draw of each component, or equal draws per step."""
    parts = {"flow": presets["flow"], "levels": presets["levels"], "vamp": presets["vamp"]}
    variants, models = [], []
    for chosen in range(8):
        names = [name for i, name in enumerate(parts) if chosen >> i & 1]
        model = " + ".join(names) or "plain"
        models.append(model)
        options = {key: value for name in names for key, value in parts[name].items()}
        variants += [Variant(model, s, base, {**shared(draws or s, s), **options}) for s in sizes]
    claim = "The likelihood rises with every step in S, with any other parts."
    questions = [Question(claim, _steps(models, sizes), primary=True)]
    best = ("flow + levels + vamp", sizes[-1])
    others = [(best, (model, sizes[-1])) for model in models if model != best[0]]
    questions.append(Question("All parts together are best.", others))
    return Trainings(variants, questions, **rest)


def _parts(hidden: Sequence[int], flow: Sequence[int], pseudo_inputs: int) -> dict[str, Any]:
    """The ablation's parts, as options."""
    return {
        "flow": {"model.flow": {"class_path": "InverseAutoregressiveFlow", "transforms": 2, "hidden": list(flow)}},
        "levels": {
            "model.posterior": "TwoLevelPosterior",
            "model.encoder": {"class_path": "TwoLevelDense", "hidden": list(hidden)},
            "model.lower": {"class_path": "GaussianNetwork", "hidden": list(hidden)},
        },
        "vamp": {"model.prior": {"class_path": "VampPrior", "pseudo_inputs": pseudo_inputs}},
    }


def _draws(size: int, more: int, preset: str, **rest: Any) -> Trainings:
    """One encoder with a few draws per step, the paper's mixture with one draw of each, and both bounds."""

    def named(bound: str, draws: int) -> str:
        return f"{bound} ({draws} {'draw' if draws == 1 else 'draws'} of each)"

    few, some, many = (named("elbo", draws) for draws in (1, size, more))
    one = (few, 1)
    variants = [Variant(few, s, preset, shared(s, s), one) for s in (1, size)]
    variants += [Variant(name, 1, preset, shared(n, 1), one) for name, n in ((some, size), (many, more))]
    iwae = {draws: named("iwae", draws) for draws in (size, more)}
    variants += [
        Variant(name, 1, preset, shared(n, 1, **{"training.bound": "pooled"}), one) for n, name in iwae.items()
    ]
    questions = [
        Question(f"S = {size} with a draw of each is better than one encoder with one draw, as in the paper.",
                 [((few, size), one)], primary=True),
        Question(f"So is one encoder with {size} draws.", [((some, 1), one)], primary=True),
        Question(f"That mixture is better than one encoder with {size} draws.", [((few, size), (some, 1))]),
        Question(f"{more} draws are better than {size} (ELBO).", [((many, 1), (some, 1))], primary=True),
        Question(f"{more} draws are better than {size} (IWAE).", [((iwae[more], 1), (iwae[size], 1))], primary=True),
        Question("At equal draws the bound of the IWAE is better than the ELBO.",
                 [((iwae[n], 1), (named("elbo", n), 1)) for n in (size, more)], primary=True),
    ]  # fmt: skip
    return Trainings(variants, questions, **rest)


_TINY = {**DIGITS, "model.encoder": _GATED, "model.decoder": _MLP}
_CIFAR = {
    **DIGITS, "data.flip": False, "model.encoder": {"class_path": "GatedConvEncoder"},
    "model.decoder": {"class_path": "ConvDecoder", "width": 8},
    "model.likelihood": {"class_path": "LogisticMixture", "mixtures": 2, "levels": 16},
}  # fmt: skip

_EXPERIMENTS = (
    Experiment(
        "toys",
        "Densities on the plane",
        "Components that are trained together spread out over a ring and over two Gaussians; 30 of them cover the "
        "target better than one Gaussian with an inverse autoregressive flow.",
        {
            "smoke": Toys((1, 2), steps=10, seeds=(0,), cost="seconds"),
            "small": Toys(cost="a quarter of an hour"),
            "paper": Toys(cost="a quarter of an hour"),
        },
    ),
    _nll("mnist"),
    _nll("fashion_mnist"),
    Experiment(
        "cifar10",
        "Bits per dimension of CIFAR-10",
        "Bits per dimension fall as components are added.",
        {
            "smoke": Trainings(
                [Variant("cifar10", s, "cifar10", {"model.components": s}) for s in (1, 2)],
                [Question("The likelihood rises with every step in S.", _steps(["cifar10"], (1, 2)))],
                options=_CIFAR, total_draws=10, examples=30, cost="half a minute",
            ),
            "small": _likelihood(
                ("cifar10",), (1, 2), options={"data.limit": 2000, "data.limit_validation": 500, "training.epochs": 20},
                draws_per_component=50, examples=500, cost="an hour on two cores",
            ),
            "paper": _likelihood(
                ("cifar10", "cifar10_pixelcnn"), (1, 2, 3, 4), seeds=(0, 1, 2), draws_per_component=1000,
                cost="days on one GPU",
            ),
        },
    ),
    Experiment(
        "big_iwae",
        "Big IWAE against Mixture",
        "A mixture of S encoders has a higher likelihood than one wider or deeper encoder of as many parameters "
        "trained by the IWAE bound. Here the rival is a true IWAE: the logarithm of the mean of S weights.",
        {
            "smoke": _iwae(
                (2,), 16, {2: 25}, {2: 4}, options=DIGITS, total_draws=20, examples=50, cost="half a minute"
            ),
            "small": _iwae(
                (2,), 300, {2: 509}, {2: 6}, options={**FASHION, **SHORT}, draws_per_component=500,
                cost="half an hour on two cores; with --epochs 50 --warmup 12 --seeds 0,1 about two hours",
            ),
            "paper": _iwae(
                (1, 2, 3), 300, {1: 300, 2: 509, 3: 679}, {1: 2, 2: 6, 3: 10}, options={"data.name": "mnist"},
                seeds=(0, 1, 2), draws_per_component=5000, cost="a day on one GPU",
            ),
        },
    ),
    Experiment(
        "single_cell",
        "Single cells: CORTEX",
        "On 3005 mouse cells a mixture of encoders raises the likelihood of held-out cells, and its latents cluster "
        "and classify cell types better than SCVI's, and better than samples of one encoder side by side.",
        {
            "smoke": Cells(
                (1, 2), (2,), seeds=(0, 1), cells=200,
                settings={"epochs": 2, "warmup": 1, "patience": 2, "total_draws": 10},
                cost="half a minute",
            ),
            "small": Cells(
                unnormalised=(1, 3), more_seeds=(3, 4, 5), cost="five hours on two cores; with --seeds 0 about one"
            ),
            "paper": Cells(
                settings={"epochs": 1000, "warmup": 400, "patience": 100, "batch": 512}, seeds=(0, 1, 2, 3, 4),
                cost="a day on two cores",
            ),
        },
    ),
    Experiment(
        "cortex",
        "Single cells: CORTEX at equal draws per step",
        "On 3005 mouse cells three and five encoders raise the likelihood of held-out cells over one with as many "
        "draws per step; with SCVI's decoder, frozen, nothing but the posterior changes.",
        {
            "smoke": cortex(
                (1, 3), 3, frozen=(2,), seeds=(0, 1), cells=200,
                settings={"epochs": 2, "warmup": 1, "patience": 2, "total_draws": 20}, cost="a minute",
            ),
            "small": cortex(
                (1, 2, 3, 4, 5), 3, seeds=FIVE,
                settings={"epochs": 200, "warmup": 50, "patience": 200, "total_draws": 3000},
                cost="nine hours of one core",
            ),
            "paper": cortex(
                (1, 2, 3, 4, 5), 3, seeds=FIVE,
                settings={"epochs": 1000, "warmup": 400, "patience": 1000, "batch": 512, "total_draws": 5000},
                cost="two days of one core",
            ),
        },
    ),
    Experiment(
        "integration",
        "Single cells: two batches",
        "Beyond the paper: latents of mixtures mix batches of cells and keep their types apart better than SCVI's.",
        {
            "smoke": Integration((2,), (0, 1), epochs=2, warmup=1, cells=200, cost="a minute"),
            "small": Integration(cost="half an hour on two cores"),
            "paper": Integration(
                (1, 2, 3, 4), (0, 1, 2, 3, 4), epochs=400, warmup=100, cost="half a day on two cores"
            ),
        },
    ),
    Experiment(
        "labels",
        "Single cells: hidden labels",
        "Beyond the paper: scANVI with a mixture of encoders predicts hidden labels of cells better, and with better "
        "calibrated probabilities, than scANVI.",
        {
            "smoke": Labels(
                hidden=(0.5,), sizes=(2,), seeds=(0, 1), settings={"epochs": 2, "warmup": 1, "label_epochs": 1},
                cost="half a minute",
            ),
            "small": Labels(cost="half an hour on two cores"),
            "paper": Labels(("pbmc68k", "cortex"), cost="three hours on two cores"),
        },
    ),
    Experiment(
        "cell_priors",
        "Single cells: priors",
        "Beyond the paper: a learned prior raises the likelihood of held-out cells over a standard normal one.",
        {
            "smoke": Priors(
                ("vamp",), (2,), (0, 1), cells=200, cost="half a minute",
                settings={"epochs": 2, "warmup": 1, "patience": 2, "total_draws": 10},
            ),
            "small": Priors(cost="an hour and a half on two cores"),
            "paper": Priors(seeds=(0, 1, 2, 3, 4), sizes=(1, 2, 3, 4, 5), cost="a day on two cores"),
        },
    ),
    Experiment(
        "latents",
        "Image latents",
        "Classifiers and clusterings on [mean, std] of all components get better as components are added.",
        {
            "smoke": _latents(_TINY, (1, 2), total_draws=20, examples=100, cost="half a minute"),
            "small": _latents({**FASHION, **SHORT}, (1, 2, 4), total_draws=1000, cost="an hour on two cores"),
            "paper": _latents(
                {"data.name": "mnist"}, (1, 2, 3, 4), seeds=(0, 1, 2), draws_per_component=5000, cost="a day on one GPU"
            ),
        },
    ),
    Experiment(
        "ablation",
        "Ablation: components × flow × levels × VampPrior",
        "Every part helps, all together help most, and more components help with any other parts.",
        {
            "smoke": _ablation(
                _parts([16], [16], 10), "digits", (1, 2), options=_TINY, total_draws=20, examples=50, cost="two minutes"
            ),
            "small": _ablation(
                _parts([200, 200], [64], 50), "digits", (1, 2), 2,
                options={**LAST, "training.epochs": 60, "training.warmup": 10},
                seeds=(0, 1, 2, 3, 4), total_draws=500, cost="two hours on two cores",
            ),
            "paper": _ablation(
                _parts([300, 300], [320], 500), "vanilla", (1, 2, 3, 4), seeds=(0, 1, 2), draws_per_component=5000,
                cost="days on one GPU",
            ),
        },
    ),
    Experiment(
        "draws",
        "Draws per step, encoders and bounds",
        "A gain of the paper's mixture over one encoder with one draw per step is the gain of its draws.",
        {
            "smoke": _draws(2, 4, "digits", options={**_TINY, **LAST}, cost="a minute", **SMOKE),
            "small": _draws(
                4, 16, "digits", options={**LAST, "training.epochs": 60, "training.warmup": 10}, seeds=FIVE,
                total_draws=500, cost="half an hour of one core",
            ),
            "paper": _draws(4, 16, "vanilla", options={**LONG, **LAST}, cost="days on one GPU", **PAPER),
        },
    ),
)  # fmt: skip
EXPERIMENTS = {experiment.name: experiment for experiment in _EXPERIMENTS} | EQUAL | MEANS
"""The paper's experiments by name, and those at equal draws per step."""
