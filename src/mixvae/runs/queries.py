"""What can be asked of a run beside its likelihood: components, samples, reconstructions, latents, labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from mixvae import figures
from mixvae.analysis import (
    Latents,
    Overlap,
    Plane,
    Representation,
    draw_latents,
    encode,
    exact_posteriors,
    overlap,
    represent,
)
from mixvae.datasets import Split
from mixvae.failures import at_least
from mixvae.files import canonical, checksum, commit, write_bytes
from mixvae.model import evaluating
from mixvae.resources import check, device_memory, short
from mixvae.runs import legacy
from mixvae.runs.evaluating import SplitName, part_of, prepared
from mixvae.runs.opening import open_run
from mixvae.runs.run import Run
from mixvae.runs.stored import read_stored, scores_in
from mixvae.training import default_device

REPRESENTED = 10_000
"""Training examples that classifiers are fitted to at most; the SVM's time grows with their square."""


def components(
    run: str | Path | Run, *, draws: int = 16, split: SplitName = "test", examples: int | None = 500
) -> Overlap:
    """How the components of a run lie to each other, and what each one covers, on examples of a split."""
    run = open_run(run)
    part = part_of(run, split, examples)
    return overlap(run.model, prepared(run, part), draws, labels=None if part.y is None else part.y.cpu().numpy())


def posteriors(run: str | Path | Run, n: int = 6, *, split: SplitName = "test") -> Plane:
    """The exact posteriors of some examples under a run with two latents, and the components over them."""
    run = open_run(run)
    return exact_posteriors(run.model, prepared(run, part_of(run, split, n)))


def cooperation(
    run: str | Path | Run, *, draws: int = 16, split: SplitName = "test", examples: int | None = 500
) -> tuple[Overlap, dict[str, Figure]]:
    """How a run's components cooperate, with every picture of it that the run allows, by name.

    `components`: pairwise KL and shares. `spread`: JSD and KL to the prior over examples. `classes`: shares by label,
    if there are labels. `posteriors`: exact posteriors, if there are two latents.
    """
    run = open_run(run)
    found = components(run, draws=draws, split=split, examples=examples)
    drawn = {"components": found.figure, "spread": found.spread}
    if found.labels is not None:
        drawn["classes"] = found.classes
    if run.model.prior().event_shape == (2,):
        drawn["posteriors"] = posteriors(run, split=split).figure
    return found, drawn


def sample(run: str | Path | Run, n: int = 64, *, seed: int = 0) -> np.ndarray:
    """Means of p(x|z) for n latents drawn from the prior, (n, *shape)."""
    at_least(1, n=n)
    at_least(0, seed=seed)
    model = open_run(run).model
    with torch.no_grad(), evaluating(model):
        z = model.prior().sample((1,))
        values = model.decoder(z).event_shape.numel() + z.numel()
    check(
        4 * n * values, f"{short(n)} samples of {values} numbers", "give a smaller n", device_memory(default_device())
    )
    torch.manual_seed(seed)
    return model.sample(n).cpu().numpy()


def reconstruct(run: str | Path | Run, n: int = 10, *, split: SplitName = "test") -> tuple[np.ndarray, np.ndarray]:
    """Some examples (n, *shape), and their reconstructions by every component (S, n, *shape)."""
    run = open_run(run)
    x = prepared(run, part_of(run, split, n))
    return x.cpu().numpy(), run.model.reconstruct(x).cpu().numpy()


def encode_split(
    run: str | Path | Run, *, split: SplitName = "test", examples: int | None = None
) -> dict[str, np.ndarray]:
    """Mean and standard deviation of every component, (N, S, D) each, and labels (N,) if there are any."""
    run = open_run(run)
    part = part_of(run, split, examples)
    mean, std = encode(run.model, prepared(run, part))
    features = {"mean": mean.numpy(), "std": std.numpy()}
    return features if part.y is None else features | {"labels": part.y.cpu().numpy()}


def representation(
    run: str | Path | Run,
    *,
    split: SplitName = "test",
    seeds: Sequence[int] = (0, 1, 2),
    examples: int = REPRESENTED,
    samples: int | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Representation:
    """Classify and cluster by the latents of a run, and store the scores and a figure in `RUN/evaluations`.

    What is stored already for the same weights, data and settings is read instead of computed.

    Args:
        run: the run directory.
        split: what is scored; classifiers and clusters are fitted to training latents.
        seeds: one repetition for each.
        examples: at most so many training examples, chosen by the seed.
        samples: draws side by side in the features of the paper's rival; as many as components by default.
        progress: called with the number of repetitions and kinds of features done, and of all.

    Raises:
        ValueError: the data have no labels, fewer classes than two, or fewer examples than classes.
    """
    run = open_run(run)
    part = part_of(run, split)
    if part.y is None:
        raise ValueError(f"{run.path} has data without labels ({run.data.name}): classification needs labels")
    train = run.data.split("train").to(default_device())
    at_least(1, samples=samples)
    draws = samples or run.model.posterior(prepared(run, part.head(1))).batch_shape[0]
    about = {
        "split": split, "fitted_to": min(examples, len(train)), "seeds": list(seeds), "samples": draws,
        "weights": run.weights_sha256, "data": run.data.sha256(), "labels": run.data.labels_sha256(),
    }  # fmt: skip
    name = f"representation-{split}-{checksum(canonical(about))[:12]}"
    file = run.layout.evaluations / f"{name}.json"
    stored = _stored(file, about)
    if stored is not None:
        return stored

    def latents(of: Split, seed: int) -> Latents:
        assert of.y is not None
        x = prepared(run, of)
        mean, std = encode(run.model, x)
        drawn = draw_latents(run.model, x, draws, seed=seed)
        return Latents(mean.numpy(), std.numpy(), drawn.numpy(), of.y.cpu().numpy())

    def both(seed: int) -> tuple[Latents, Latents]:
        chosen = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[:examples]
        return latents(train.take(chosen.sort().values), seed), latents(part, seed)

    found = represent(both, seeds, progress)
    write_bytes(run.layout.figures / "representation.png", figures.png(found.figure))  # first: scores say it is done
    commit(file, {"identity": about, "scores": found.scores}, {})
    return found


def _stored(file: Path, about: dict[str, object]) -> Representation | None:
    """Scores that are stored under an identity, if they are whole."""
    try:
        content = read_stored(file)
        return scores_in(content, file) if content.get("identity") == about else None
    except (OSError, ValueError):
        return None


def representations(run: str | Path | Run) -> list[tuple[str, Representation]]:
    """Split and scores of what is stored of a run's present weights.

    Raises:
        ValueError: a file of them is damaged.
    """
    run = open_run(run)
    if run.is_legacy:
        return legacy.representations(run.path)
    found = []
    for file in sorted(run.layout.evaluations.glob("representation-*.json")):
        content = read_stored(file)
        identity = content.get("identity")
        if isinstance(identity, dict) and identity.get("weights") == run.weights_sha256:
            found.append((str(identity.get("split")), scores_in(content, file)))
    return found
