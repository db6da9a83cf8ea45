"""Growing a trained mixture, for as long as another component gains on held-out data."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mixvae import config, figures, reports, runs
from mixvae.failures import at_least
from mixvae.files import write_bytes, write_json


def grow(
    run: str | Path | runs.Run,
    out: str | Path,
    *,
    errors: float = 2.0,
    most: int = 16,
    epochs: int | None = None,
    draws: int = 1000,
    examples: int | None = None,
    freeze: Sequence[str] = (),
    say: Callable[[str], object] = print,
) -> list[dict[str, Any]]:
    """Add components to a trained run one by one, until one gains too little on held-out data.

    Each step trains the model on twice, with one component more and with the same ones, for as many epochs: the gain
    is the paired difference of their pooled bounds on the validation split, at the same number of draws, so that it is
    the component's and not the further training's. Every training is a run directory; what is done is not done again.

    Args:
        run: the trained run.
        out: folder of the runs, of `growth.json` and of `growth.png`.
        errors: a component stays if it gains more than so many standard errors.
        most: stop at so many components.
        epochs: epochs of each training; as many as the run's by default.
        draws: total draws per example.
        examples: only so many validation examples.
        freeze: parts held fixed, such as decoder and prior.
        say: takes a line on what happens now.

    Returns:
        One row per step: components, gain, gain_se, accepted, nll_pooled, jsd, effective_components, path.
    """
    folder, base, rows = Path(out), runs.open_run(run), list[dict[str, Any]]()
    size = base.config.model.components
    at_least(size + 1, most=most)
    at_least(1, epochs=epochs, draws=draws)
    if not math.isfinite(errors):
        raise ValueError(f"errors must be a finite number of standard errors; got {errors}")
    if examples is not None and examples < 2:
        raise ValueError(f"examples must be at least 2, so that a gain has an error; got {examples}")
    _check_steps(
        base, folder, most, lambda base, components: runs.extension(base, components, freeze=freeze, epochs=epochs)
    )
    while size < most and (not rows or rows[-1]["accepted"]):
        size += 1
        more, same = folder / f"S{size}", folder / f"S{size - 1}-on"
        evaluations = []
        for path, components in ((same, size - 1), (more, size)):
            wanted = runs.extension(base, components, freeze=freeze, epochs=epochs)
            count = f"{components} component{'s' if components > 1 else ''}"
            say(f"training on from {base.path} with {count}, in {path}")
            runs.train(wanted, path, resume=True, amend=False)
            evaluations.append(runs.evaluate(path, draws, split="validation", examples=examples))
        result = reports.compare([same, more], evaluations).table[1]
        kept = ("components", "gain", "gain_se", "nll_pooled", "jsd", "effective_components", "path")
        accepted = result["gain"] > errors * result["gain_se"]
        rows.append({name: result[name] for name in kept} | {"accepted": accepted})
        write_json(folder / "growth.json", rows)
        say(f"S = {size}: gain {result['gain']:.3f} ± {result['gain_se']:.3f} nats")
        base = runs.open_run(more)
    write_bytes(folder / "growth.png", figures.png(figures.growth(rows)))
    return rows


def _check_steps(base: runs.Run, folder: Path, most: int, wanted: Callable[[runs.Run, int], config.Config]) -> None:
    """Refuse a folder of other steps, before any of them is gone on with.

    Raises:
        ValueError: a step was made from something else, or would train on though a later one started from it.
    """
    for size in range(base.config.model.components + 1, most + 1):
        more, same = folder / f"S{size}", folder / f"S{size - 1}-on"
        runs.standing(wanted(base, size - 1), same)
        if runs.standing(wanted(base, size), more) != "trained":
            later = folder / f"S{size}-on"
            if (later / "run.json").exists():
                raise ValueError(f"{more} would train on, but {later} started from it: choose another --out")
            return
        base = runs.open_run(more)
