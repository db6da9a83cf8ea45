"""Growing a trained mixture as long as another component gains on held-out data."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from matplotlib.figure import Figure

from mixvae import config, figures, reports, runs
from mixvae._failures import at_least
from mixvae._tables import Row, Tabular
from mixvae.files import write_bytes, write_json
from mixvae.progress import SILENT, Progress


@dataclass(frozen=True)
class Step:
    """One added component.

    Args:
        components: number of components with it.
        gain: its paired gain in pooled nats over further training without it, on validation examples.
        gain_se: standard error of the gain over examples.
        nll_pooled: pooled bound on −log p(x) with it, in nats.
        jsd: Jensen–Shannon divergence of the components with it, in nats.
        effective_components: exp of the JSD.
        path: the run.
        accepted: whether it gained enough to be kept.
    """

    components: int
    gain: float
    gain_se: float
    nll_pooled: float
    jsd: float
    effective_components: float
    path: str
    accepted: bool


@dataclass(frozen=True, repr=False)
class Growth(Tabular):
    """How a mixture grew.

    Args:
        steps: one for each component that was tried.

    Example:
        >>> from mixvae.sweeps import Growth, Step
        >>> step = Step(2, 0.5, 0.1, 93.2, 0.4, 1.5, "runs/grown/S2", accepted=True)
        >>> Growth([step]).table[0]["gain"]
        0.5
    """

    steps: list[Step]

    @property
    def title(self) -> str:
        """What the errors of the gains are taken over."""
        over = f"gain_se is over validation examples of {reports.ONE_TRAINING}"
        return f"Growth, each component with its draws per step; {over}"

    @property
    def table(self) -> list[Row]:
        """The steps as rows."""
        return [asdict(step) for step in self.steps]

    @property
    def figure(self) -> Figure:
        """Gain of every step."""
        return figures.growth(self.table)


def grow(
    run: str | Path | runs.Run,
    out: str | Path,
    *,
    errors: float = 2.0,
    most: int = 16,
    epochs: int | None = None,
    total_draws: int = 1000,
    examples: int | None = None,
    freeze: Sequence[str] = (),
    progress: Progress = SILENT,
) -> Growth:
    """Add components to a trained run one by one, until one gains too little on held-out data.

    Each step trains the model further twice, with one more component and without, for the same number of epochs. The
    gain is the paired difference of their pooled bounds on the validation split, evaluated with the same number of
    draws, so that it is due to the component and not to the further training. Training draws from every component
    alike, so that one more adds its draws to each step: a part of the gain may be theirs. The evaluation's draws come
    from the posterior, where its log p(x) is the pooled bound: refined proposals would hide what a component adds to
    the posterior, and cost more. Its error is over validation examples: it decides whether this one model grows
    further, and says nothing about what another seed would give. Every training is a run directory; finished work is
    not repeated.

    Args:
        run: the trained run.
        out: folder of the runs, of `growth.json` and of `growth.png`.
        errors: keep a component if its gain exceeds this many standard errors over validation examples.
        most: stop at this many components.
        epochs: epochs of each training; the run's own setting by default.
        total_draws: total draws per example.
        examples: evaluate only the first N validation examples.
        freeze: parts to hold fixed, such as decoder and prior.
        progress: where to report progress, such as `mixvae.progress.Terminal()`; silent by default.

    Returns:
        The steps; the last one may have gained too little.
    """
    folder, base, growth = Path(out).expanduser(), runs.open_run(run), Growth([])
    size = base.config.model.components
    at_least(size + 1, most=most)
    at_least(1, epochs=epochs, total_draws=total_draws)
    if not math.isfinite(errors):
        raise ValueError(f"errors must be a finite number of standard errors; got {errors}")
    if examples is not None and examples < 2:
        raise ValueError(f"examples must be at least 2, so that a gain has an error; got {examples}")
    _check_steps(
        base, folder, most, lambda base, components: runs.extension(base, components, freeze=freeze, epochs=epochs)
    )
    while size < most and (not growth.steps or growth.steps[-1].accepted):
        size += 1
        more, same = folder / f"S{size}", folder / f"S{size - 1}-on"
        evaluations = []
        for path, components in ((same, size - 1), (more, size)):
            settings = runs.extension(base, components, freeze=freeze, epochs=epochs)
            count = f"{components} component{'s' if components > 1 else ''}"
            progress.announce(f"training {base.path} further with {count}, in {path}")
            runs.train(settings, path, resume=True, amend=False, progress=progress)
            evaluations.append(
                runs.evaluate(
                    path, total_draws, split="validation", examples=examples, proposal="posterior", progress=progress
                )
            )
        result = reports.compare([same, more], evaluations).table[1]
        kept = ("components", "gain", "gain_se", "nll_pooled", "jsd", "effective_components", "path")
        accepted = result["gain"] > errors * result["gain_se"]
        growth.steps.append(Step(**{name: result[name] for name in kept}, accepted=accepted))
        write_json(folder / "growth.json", growth.table)
        progress.announce(f"S = {size}: gain {result['gain']:.3f} ± {result['gain_se']:.3f} nats over examples")
        base = runs.open_run(more)
    write_bytes(folder / "growth.png", figures.png(growth.figure))
    return growth


def _check_steps(base: runs.Run, folder: Path, most: int, settings: Callable[[runs.Run, int], config.Config]) -> None:
    """Refuse a folder that holds different steps, before any of them is resumed.

    Raises:
        ValueError: a step was made from something else, or would train further although a later one started from it.
    """
    for size in range(base.config.model.components + 1, most + 1):
        more, same = folder / f"S{size}", folder / f"S{size - 1}-on"
        runs.standing(settings(base, size - 1), same)
        if runs.standing(settings(base, size), more) != "trained":
            later = folder / f"S{size}-on"
            if (later / "run.json").exists():
                raise ValueError(f"{more} would train further, but {later} started from it: choose another --out")
            return
        base = runs.open_run(more)
