"""Queries of a trained run: likelihoods, samples, reconstructions, paths, latents, and its networks as programs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from mixvae._failures import at_least
from mixvae._tables import counted
from mixvae.cli.output import show, show_comparison, show_scores, target, write
from mixvae.progress import Terminal

Split = Literal["train", "validation", "test"]
WIDEST = 50
"""Maximum number of pictures shown side by side."""


def evaluate_runs(
    runs: list[str],
    total_draws: int = 5000,
    draws_per_component: int | None = None,
    split: Split = "test",
    examples: int | None = None,
    chunk: int | None = None,
    seed: int = 0,
    proposal: Literal["refined", "posterior"] = "refined",
    per_example: str | None = None,
    check: int | None = None,
    data: str | None = None,
    shard: str | None = None,
    *,
    merge: bool = False,
    representation: bool = False,
    samples: int | None = None,
    data_name: str | None = None,
) -> None:
    """Estimate the likelihood of held-out data under one or more runs, store it in each and print a table with gains.

    An evaluation of the whole test split is copied to RUN/results.json. Stored results are not recomputed.

    Args:
        runs: the run directories.
        total_draws: total draws per example, over all components.
        draws_per_component: draws of each component instead, the paper's protocol.
        split: which examples.
        examples: evaluate only the first N examples.
        chunk: latents decoded at once; memory depends on nothing else; 1024 by default, with --merge as for the shards.
        seed: seed of the draws.
        proposal: where draws of the NLL come from: proposals refined for each example, or the posterior.
        per_example: also write the values of every example of one run, its NLL among them, to this .npz or .csv file.
        check: then check the NLL of the first N examples by annealed importance sampling; a few dozen take minutes.
        data: evaluate this file or folder of new examples instead of the run's own; results are stored separately.
        shard: evaluate only part I/N of the examples, such as 2/4, and store it for --merge.
        merge: combine the shards of all workers into the evaluation, with the same settings; evaluates nothing itself.
        representation: first classify and cluster by the latents, fitted to training examples; kept in RUN/evaluations.
        samples: number of draws concatenated in the features of the paper's rival; as many as components by default.
        data_name: new location of the run's own data, if they were moved.
    """
    from mixvae import reports
    from mixvae import runs as library

    at_least(1, check=check)
    if per_example is not None:
        if len(runs) > 1:
            raise ValueError(
                f"--per-example writes the values of one run; got {len(runs)} runs: evaluate each alone; stored "
                "results are not recomputed"
            )
        target(per_example, ".npz", ".csv", option="--per-example")
    if samples is not None and not representation:
        raise ValueError("--samples has an effect only with --representation: give both, or leave --samples out")
    if representation and data is not None:
        raise ValueError("--representation scores the run's own data; leave out --data, or --representation")
    opened = [library.open_run(run, data=data_name) for run in runs] if data_name else library.open_runs(runs)
    at_once = {} if chunk is None else {"chunk": chunk}
    settings: dict[str, Any] = {
        "total_draws": total_draws, "draws_per_component": draws_per_component, "split": split, "examples": examples,
        "seed": seed, "proposal": proposal, "data": data, **at_once,
    }  # fmt: skip
    if shard is not None:
        whole = {"--merge": merge, "--representation": representation, "--check": check, "--per-example": per_example}
        _evaluate_shard(opened, shard, [option for option, value in whole.items() if value], **settings)
        return
    evaluate = library.merge_shards if merge else library.evaluate
    for run in opened if representation else ():
        with Terminal() as progress:
            scores = library.representation(run, split=split, samples=samples, progress=progress)
        show_scores(scores.table, run.name if len(opened) > 1 else "")
    evaluations = []
    for run in opened:
        with Terminal() as progress:
            if len(opened) > 1:
                progress.announce(f"{run.path}:")
            evaluations.append(evaluate(run, **settings, progress=progress))
    if per_example is not None:
        library.save_per_example(per_example, evaluations[0])
    names = reports.data_sets(evaluations)
    for name in dict.fromkeys(names):  # one table for each data set
        pairs = [(run, one) for run, one, its in zip(opened, evaluations, names, strict=True) if its == name]
        show_comparison(reports.compare(*map(list, zip(*pairs, strict=True))))
    if legacy := [str(run.path) for run in opened if run.is_legacy]:
        show(f"note: nothing was stored in {', '.join(legacy)} (legacy); a newly trained run keeps its evaluations")
    if check is None:
        return
    for run, evaluation in zip(opened, evaluations, strict=True):
        draws = evaluation.identity.total_draws
        with Terminal() as progress:
            checked = library.check(run, check, draws, split=split, seed=seed, data=data, progress=progress, **at_once)
        show(f"{run.path}: {checked!r}" if len(opened) > 1 else repr(checked))


def _evaluate_shard(opened: Sequence[Any], shard: str, given: Sequence[str], **settings: Any) -> None:
    """Evaluate a part of the examples of each run.

    Args:
        opened: the runs.
        shard: which part, I/N.
        given: options that need the whole evaluation.
        settings: arguments of `evaluate_shard`.
    """
    from mixvae import runs as library

    part = re.fullmatch(r"(\d+)/(\d+)", shard)
    number, of = map(int, part.groups()) if part else (0, 0)
    if not 1 <= number <= of:
        raise ValueError(f"--shard takes I/N, part I of N from 1/N to N/N, such as 2/4; got {shard}")
    if given:
        raise ValueError(f"--shard stores a part of an evaluation: leave out {given[0]} until the shards are merged")
    for run in opened:
        with Terminal() as progress:
            made = library.evaluate_shard(run, number, of, **settings, progress=progress)
        if made.is_merged:
            show(f"{made.path} is the whole evaluation already: there is no shard {shard} to evaluate or to merge")
            continue
        show(
            f"{made.path}: shard {shard}, {counted(len(made), 'example')} from number {made.first} on\n"
            f"next, when all {of} are there: the same command with --merge in place of --shard"
        )


def sample(
    run: str,
    n: int = 64,
    out: str | None = None,
    kind: Literal["means", "draws"] = "means",
    latents: Literal["prior", "aggregated"] = "prior",
    seed: int = 0,
    data_name: str | None = None,
) -> None:
    """Draw latents and decode them, to a picture or an array of means of p(x|z), or of draws from it.

    Args:
        run: the run directory.
        n: how many samples.
        out: a .png or .npy file; RUN/figures/samples.png by default.
        kind: means of p(x|z), or draws from it, which have its noise.
        latents: drawn from the prior, or from the aggregated posterior of the training examples.
        seed: seed of all draws.
        data_name: new location of the run's own data, if they were moved.
    """
    from mixvae import figures, runs

    path = target(out or Path(run) / "figures" / "samples.png", ".png", ".npy")
    with Terminal() as progress:
        opened = runs.open_run(run, data=data_name)
        drawn = runs.sample(opened, n, kind=kind, latents=latents, seed=seed, progress=progress)
    write(path, drawn, lambda: figures.images(drawn), as_array=path.suffix == ".npy")


def reconstruct(
    run: str,
    n: int = 10,
    out: str | None = None,
    split: Split = "test",
    data: str | None = None,
    seed: int = 0,
    data_name: str | None = None,
) -> None:
    """Show examples beside their reconstructions by every component.

    Args:
        run: the run directory.
        n: how many examples.
        out: a .png file, or .npy for the reconstructions; RUN/figures/reconstructions.png by default.
        split: which examples.
        data: reconstruct this file or folder of new examples instead of the run's own.
        seed: seed of the draws that estimate the mean of p(x|z) where it has no closed form.
        data_name: new location of the run's own data, if they were moved.
    """
    from mixvae import figures, runs

    path = target(out or Path(run) / "figures" / "reconstructions.png", ".png", ".npy")
    _check_width(path, n, "--n", "examples")
    with Terminal() as progress:
        opened = runs.open_run(run, data=data_name)
        originals, rebuilt = runs.reconstruct(opened, n, split=split, data=data, seed=seed, progress=progress)
    write(path, rebuilt, lambda: figures.reconstructions(originals, rebuilt), as_array=path.suffix == ".npy")


def interpolate(
    run: str,
    between: list[int],
    steps: int = 8,
    out: str | None = None,
    split: Split = "test",
    data: str | None = None,
    seed: int = 0,
    data_name: str | None = None,
    *,
    spherical: bool = False,
) -> None:
    """Decode the path between two examples, for every component from its centre at one to its centre at the other.

    Args:
        run: the run directory.
        between: numbers of the two examples, from 0.
        steps: points of a path, both ends included.
        out: a .png file, or .npy for the paths, (S, steps, *shape); RUN/figures/interpolation.png by default.
        split: which examples.
        data: take the two examples from this file or folder instead of the run's own.
        seed: seed of the draws that estimate the mean of p(x|z) where it has no closed form.
        data_name: new location of the run's own data, if they were moved.
        spherical: interpolate spherically, at constant angular speed; straight paths by default.
    """
    from mixvae import figures, runs

    path = target(out or Path(run) / "figures" / "interpolation.png", ".png", ".npy")
    _check_width(path, steps, "--steps", "steps")
    with Terminal() as progress:
        opened = runs.open_run(run, data=data_name)
        ends, paths = runs.interpolate(
            opened, between, steps=steps, spherical=spherical, split=split, data=data, seed=seed, progress=progress
        )
    write(path, paths, lambda: figures.interpolations(ends[0], ends[1], paths), as_array=path.suffix == ".npy")


def _check_width(path: Path, shown: int, option: str, what: str) -> None:
    """Refuse a picture that is too wide."""
    if path.suffix == ".png" and shown > WIDEST:
        raise ValueError(
            f"a picture shows at most {WIDEST} {what}; got {option} {shown}: give --out a name that ends in .npy"
        )


def encode_run(
    run: str,
    out: str | None = None,
    split: Split = "test",
    data: str | None = None,
    data_name: str | None = None,
) -> None:
    """Write the mean and standard deviation of every component, and labels, as .npz.

    Args:
        run: the run directory.
        out: a .npz file with mean and std, (N, S, D) each, and labels (N,); RUN/latents.npz by default.
        split: which examples.
        data: encode this file or folder of new examples instead of the run's own; into FILE-latents.npz without --out.
        data_name: new location of the run's own data, if they were moved.
    """
    from mixvae import runs

    own = Path(run) / "latents.npz"
    path = target(out or (own if data is None else f"{Path(data).stem}-latents.npz"), ".npz")
    with Terminal() as progress:
        features = runs.encode_split(runs.open_run(run, data=data_name), split=split, data=data, progress=progress)
    runs.save_arrays(path, features)
    shapes = ", ".join(f"{name} {value.shape}" for name, value in features.items())
    show(f"wrote {path}: {shapes}")


def export(run: str, part: Literal["encoder", "decoder"] = "encoder", out: str | None = None) -> None:
    """Write a trained encoder or decoder as a program that runs without mixvae: torch.export's .pt2, or .onnx.

    Args:
        run: the run directory.
        part: the encoder, x to mean and standard deviation of every component, or the decoder, z to the mean of p(x|z).
        out: a .pt2 or .onnx file; RUN/encoder.pt2 or RUN/decoder.pt2 by default.
    """
    import mixvae

    path = target(out or Path(run) / f"{part}.pt2", ".pt2", ".onnx")
    program = mixvae.export(mixvae.load(run), path, part=part)
    show(f"wrote {path}: {program}")
