"""Queries of a run besides its likelihood: components, samples, reconstructions, latents, labels."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from matplotlib.figure import Figure

from mixvae import figures
from mixvae._failures import at_least
from mixvae._resources import check, device_memory, short
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
from mixvae.analysis import (
    interpolate as path_between,
)
from mixvae.datasets import Split
from mixvae.files import canonical, checksum, commit, write_bytes
from mixvae.model import MixtureVAE, evaluating
from mixvae.progress import SILENT, Progress
from mixvae.runs import _legacy as legacy
from mixvae.runs._examples import NewData, SplitName, examples_of, part_of, prepared
from mixvae.runs._opening import open_run
from mixvae.runs._run import Run
from mixvae.runs._sources import sources_of
from mixvae.runs._stored import is_current, read_stored, scores_in
from mixvae.sampling import SampleKind
from mixvae.training import default_device

LatentSource = Literal["prior", "aggregated"]

REPRESENTED = 10_000
"""Maximum number of training examples to which classifiers are fitted; the SVM's time grows with its square."""


def components(
    run: str | Path | Run,
    *,
    draws_per_component: int = 16,
    split: SplitName = "test",
    examples: int | None = 500,
    data: NewData | None = None,
) -> Overlap:
    """How the components of a run relate to each other, and what each one covers, on examples of a split or new ones.

    Example:
        >>> from mixvae.config import read
        >>> from mixvae.runs import components, train
        >>> flags = ["--data.limit=40", "--training.epochs=1", "--model.components=2"]
        >>> run = train(read("digits", flags), "runs/components")
        >>> components(run, draws_per_component=2, examples=10).share.shape
        (2,)
    """
    run = open_run(run)
    part = part_of(run, split, examples, data)
    return overlap(
        run.model, prepared(run, part), draws_per_component, labels=None if part.y is None else part.y.cpu().numpy()
    )


def posteriors(run: str | Path | Run, n: int = 6, *, split: SplitName = "test") -> Plane:
    """The exact posteriors of some examples under a run with two latents, overlaid with its components."""
    run = open_run(run)
    return exact_posteriors(run.model, prepared(run, part_of(run, split, n)))


def cooperation(
    run: str | Path | Run, *, draws_per_component: int = 16, split: SplitName = "test", examples: int | None = 500
) -> tuple[Overlap, dict[str, Figure]]:
    """How a run's components cooperate, and every picture of it that the run allows, by name.

    `components`: pairwise KL and shares. `spread`: JSD and KL to the prior over examples. `classes`: shares by label,
    if there are labels. `posteriors`: exact posteriors, if there are two latents.
    """
    run = open_run(run)
    result = components(run, draws_per_component=draws_per_component, split=split, examples=examples)
    drawn = {"components": result.figure, "spread": result.spread}
    if result.labels is not None:
        drawn["classes"] = result.classes
    if run.model.prior().event_shape == (2,):
        drawn["posteriors"] = posteriors(run, split=split).figure
    return result, drawn


def sample(
    run: str | Path | Run,
    n: int = 64,
    *,
    kind: SampleKind = "means",
    latents: LatentSource = "prior",
    seed: int = 0,
    progress: Progress = SILENT,
) -> np.ndarray:
    """Means of p(x|z) for n latents, or draws from it, (n, *shape): `MixtureVAE.sample` of a run's model.

    Args:
        run: the run directory.
        n: how many.
        kind: means of p(x|z), or draws from it, which have its noise.
        latents: drawn from the prior, or from the aggregated posterior of the training examples, 1/N Σ_n q(z|x_n).
        seed: seed of all draws; torch's generator is left as it was.
        progress: where to report progress, batch by batch; silent by default.

    Raises:
        ValueError: a number is out of range, there is no such kind or source of latents, or the likelihood has no mean.

    Example:
        >>> from mixvae.config import read
        >>> from mixvae.runs import sample, train
        >>> run = train(read("digits", ["--data.limit=40", "--training.epochs=1"]), "runs/sampled")
        >>> sample(run, 3).shape
        (3, 1, 8, 8)
        >>> sorted(set(sample(run, 3, kind="draws", latents="aggregated").flatten().tolist()))
        [0.0, 1.0]
    """
    at_least(1, n=n)
    at_least(0, seed=seed)
    if latents not in ("prior", "aggregated"):
        raise ValueError(f"latents are drawn from the prior or the aggregated posterior; got latents {latents!r}")
    run = open_run(run)
    model = run.model
    with torch.no_grad(), evaluating(model):
        values = model.at_origin().event_shape.numel() + model.prior().event_shape.numel()
    check(
        4 * n * values, f"{short(n)} samples of {values} numbers", "give a smaller n", device_memory(default_device())
    )
    examples = None if latents == "prior" else prepared(run, part_of(run, "train"))
    drawn: list[np.ndarray] = []
    for batch in model.sample_in_batches(n, kind=kind, examples=examples, seed=seed):
        drawn.append(batch.cpu().numpy())
        progress.update(sum(map(len, drawn)), n, "sampling")
    return np.concatenate(drawn)


def reconstruct(
    run: str | Path | Run,
    n: int = 10,
    *,
    split: SplitName = "test",
    data: NewData | None = None,
    seed: int = 0,
    progress: Progress = SILENT,
) -> tuple[np.ndarray, np.ndarray]:
    """Some examples (n, *shape), and their reconstructions by every component (S, n, *shape).

    Args:
        run: the run directory.
        n: how many examples.
        split: train, validation or test.
        data: new examples instead of the run's own, as in `evaluate`.
        seed: seed of the draws needed where p(x|z) has no mean in closed form.
        progress: where to report how new examples were treated; silent by default.

    Raises:
        ValueError: the data are not those it was trained on, or new ones do not fit the run.

    Example:
        >>> from mixvae.config import read
        >>> from mixvae.runs import reconstruct, train
        >>> flags = ["--data.limit=40", "--training.epochs=1", "--model.components=2"]
        >>> run = train(read("digits", flags), "runs/reconstructed")
        >>> [values.shape for values in reconstruct(run, 3)]
        [(3, 1, 8, 8), (2, 3, 1, 8, 8)]
    """
    at_least(0, seed=seed)
    run = open_run(run)
    x = prepared(run, examples_of(run, split, n, data, progress).part)
    return x.cpu().numpy(), run.model.reconstruct(x, seed=seed).cpu().numpy()


def interpolate(
    run: str | Path | Run,
    between: Sequence[int],
    *,
    steps: int = 8,
    spherical: bool = False,
    split: SplitName = "test",
    data: NewData | None = None,
    seed: int = 0,
    progress: Progress = SILENT,
) -> tuple[np.ndarray, np.ndarray]:
    """Two examples (2, *shape), and the path between them by every component (S, steps, *shape).

    See `mixvae.interpolate` for what a path is.

    Args:
        run: the run directory.
        between: numbers of the two examples, from 0.
        steps: points of a path, both ends included.
        spherical: take spherical paths instead of straight ones.
        split: train, validation or test.
        data: new examples instead of the run's own, as in `evaluate`.
        seed: seed of the draws needed where p(x|z) has no mean in closed form.
        progress: where to report how new examples were treated; silent by default.

    Raises:
        ValueError: there are no such examples, or a number is out of range.

    Example:
        >>> from mixvae.config import read
        >>> from mixvae.runs import interpolate, train
        >>> flags = ["--data.limit=40", "--training.epochs=1", "--model.components=2"]
        >>> run = train(read("digits", flags), "runs/interpolated")
        >>> [values.shape for values in interpolate(run, (3, 7), steps=5)]
        [(2, 1, 8, 8), (2, 5, 1, 8, 8)]
    """
    if len(between) != 2:
        raise ValueError(f"a path leads between 2 examples; got {len(between)}: give their two numbers")
    run = open_run(run)
    part = examples_of(run, split, data=data, progress=progress).part
    for number in between:
        if not isinstance(number, Integral) or not 0 <= number < len(part):
            raise ValueError(f"there is no example {number}: the {len(part)} examples are numbered from 0")
    x = prepared(run, part)[list(between)]
    path = path_between(run.model, x[0], x[1], steps=steps, spherical=spherical, seed=seed)
    return x.cpu().numpy(), path.cpu().numpy()


def encode_split(
    run: str | Path | Run,
    *,
    split: SplitName = "test",
    examples: int | None = None,
    data: NewData | None = None,
    progress: Progress = SILENT,
) -> dict[str, np.ndarray]:
    """Mean and standard deviation of every component, (N, S, D) each, and labels (N,) if there are any.

    Args:
        run: the run directory.
        split: train, validation or test.
        examples: only the first N examples.
        data: new examples instead of the run's own, as in `evaluate`.
        progress: where to report how new examples were treated; silent by default.

    Raises:
        ValueError: the data are not those it was trained on, or new ones do not fit the run.

    Example:
        >>> from mixvae.config import read
        >>> from mixvae.runs import encode_split, train
        >>> run = train(read("digits", ["--data.limit=40", "--training.epochs=1"]), "runs/encoded")
        >>> {name: values.shape for name, values in encode_split(run, examples=5).items()}
        {'mean': (5, 1, 16), 'std': (5, 1, 16), 'labels': (5,)}
    """
    run = open_run(run)
    part = examples_of(run, split, examples, data, progress).part
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
    progress: Progress = SILENT,
) -> Representation:
    """Classify and cluster by the latents of a run; store the scores in `RUN/evaluations` and a figure.

    Stored scores for the same weights, data and settings are read instead of recomputed.

    Args:
        run: the run directory.
        split: the split to score; classifiers and clusters are fitted to training latents.
        seeds: one repetition for each.
        examples: at most this many training examples, chosen by the seed.
        samples: number of concatenated draws in the features of the paper's rival; by default the number of components.
        progress: where to report progress; silent by default.

    Raises:
        ValueError: the data have no labels, fewer than two classes, or fewer examples than classes; or there are no
            such scores, and no weights to compute them with.
    """
    run = open_run(run)
    part = part_of(run, split)
    if part.y is None:
        raise ValueError(f"{run.path} has data without labels ({run.data.name}): classification needs labels")
    train = run.data.split("train").to(default_device())
    at_least(1, samples=samples)
    blank = run.blank()
    draws = samples or _components(blank, part)
    identity = {
        "split": split, "fitted_to": min(examples, len(train)), "seeds": list(seeds), "samples": draws,
        "weights": run.weights_sha256, "data": run.data.sha256(), "labels": run.data.labels_sha256(),
    }  # fmt: skip
    if source := sources_of(blank):
        identity["source"] = source
    name = f"representation-{split}-{checksum(canonical(identity))[:12]}"
    file = run.layout.evaluations / f"{name}.json"
    stored = _stored(file, identity)
    if stored is not None:
        return stored
    run.refuse_remaking("scores of latents")

    def latents(of: Split, seed: int) -> Latents:
        assert of.y is not None
        x = prepared(run, of)
        mean, std = encode(run.model, x)
        drawn = draw_latents(run.model, x, draws, seed=seed)
        return Latents(mean.numpy(), std.numpy(), drawn.numpy(), of.y.cpu().numpy())

    def both(seed: int) -> tuple[Latents, Latents]:
        chosen = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[:examples]
        return latents(train.take(chosen.sort().values), seed), latents(part, seed)

    result = represent(both, seeds, progress)
    write_bytes(run.layout.figures / "representation.png", figures.png(result.figure))  # first: scores mark the end
    commit(file, {"identity": identity, "scores": result.scores}, {})
    return result


def _components(model: MixtureVAE, part: Split) -> int:
    """Number of components of a mixture, whatever its weights."""
    with torch.no_grad():
        model.eval()
        x = part.head(1).fixed(0).to(next(model.parameters()))
        return model.posterior(x).batch_shape[0]


def _stored(file: Path, identity: dict[str, object]) -> Representation | None:
    """Scores stored under an identity, if they are intact."""
    try:
        content = read_stored(file)
        return scores_in(content, file) if content.get("identity") == identity else None
    except (OSError, ValueError):
        return None


def representations(run: str | Path | Run) -> list[tuple[str, Representation]]:
    """Splits and scores stored for a run's current weights.

    Raises:
        ValueError: one of the files is damaged.
    """
    run = open_run(run)
    if run.is_legacy:
        return legacy.representations(run.path)
    stored = []
    for file in sorted(run.layout.evaluations.glob("representation-*.json")):
        content = read_stored(file)
        identity = content.get("identity", {})
        if is_current(identity, run):
            stored.append((str(identity.get("split")), scores_in(content, file)))
    return stored
