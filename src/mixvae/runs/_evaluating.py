"""Evaluations of a run: each is stored under its own identity, and reused only for the same identity."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mixvae import evaluation
from mixvae._failures import typed
from mixvae.evaluation import Check, Evaluation, Identity, ProposalName, draws_of_each
from mixvae.files import atomic, check_file, write_text
from mixvae.progress import SILENT, Progress
from mixvae.runs import _legacy as legacy
from mixvae.runs._examples import NewData, SplitName, examples_of, prepared
from mixvae.runs._opening import open_run
from mixvae.runs._requests import request
from mixvae.runs._run import Run
from mixvae.runs._stored import identity_in, is_current, read_evaluation


def evaluate(
    run: str | Path | Run,
    total_draws: int = 5000,
    *,
    draws_per_component: int | None = None,
    split: SplitName = "test",
    examples: int | None = None,
    chunk: int = 1024,
    seed: int = 0,
    proposal: ProposalName = "refined",
    data: NewData | None = None,
    progress: Progress = SILENT,
) -> Evaluation:
    """Estimate the likelihood of some examples, and store the result under its own identity in `RUN/evaluations`.

    A stored result for the same weights, data, examples, draws, seed and proposal is read instead of recomputed.
    Results on new examples are kept apart, in `RUN/evaluations/new`: `evaluation_of` and reports never show them as the
    run's result.

    Args:
        run: the run directory.
        total_draws: total draws per example, L·S.
        draws_per_component: L itself, the paper's protocol; overrides `total_draws`.
        split: train, validation or test.
        examples: evaluate only the first N examples.
        chunk: latents decoded at once; memory depends on nothing else.
        seed: seed of the draws.
        proposal: where the draws of the headline come from: proposals refined for each example, or the posterior.
        data: new examples to evaluate instead of the run's own: a file or folder, an array (N, *shape), a `Split`, or
            whatever else `as_dataset` takes, which is read into memory. They are treated as the run's test examples
            were: resized, and binarised once by the same seed.
        progress: where to report progress, such as `mixvae.progress.Terminal()`; silent by default.

    Raises:
        FileNotFoundError: it is not a run, or has not finished an epoch.
        ValueError: a number is out of range, the data are not those it was trained on, new ones do not fit the run, or
            a file is damaged.

    Example:
        >>> import numpy as np
        >>> from mixvae.config import read
        >>> from mixvae.runs import evaluate, train
        >>> flags = ["--data.limit=40", "--training.epochs=1", "--model.components=2"]
        >>> run = train(read("digits", flags), "runs/evaluated")
        >>> result = evaluate(run, total_draws=10, examples=20)
        >>> result["examples"], result["draws_per_component"], result.bounds["pooled"].shape
        (20, 5, (20,))
        >>> new = evaluate(run, total_draws=10, data=np.zeros((3, 8, 8)))
        >>> new.identity.split, new.bounds["log_px"].shape
        ('new', (3,))
    """
    asked = request(
        run, total_draws, draws_per_component=draws_per_component, split=split, examples=examples, chunk=chunk,
        seed=seed, proposal=proposal, data=data, progress=progress,
    )  # fmt: skip
    stored = asked.stored()
    if stored is None:
        if not asked.run.is_legacy:
            check_file(asked.file)
        return asked.finish(asked.estimate(progress))
    asked.copy(stored)
    return stored


def check(
    run: str | Path | Run,
    examples: int,
    total_draws: int = 5000,
    *,
    split: SplitName = "test",
    chunk: int = 1024,
    seed: int = 0,
    temperatures: int = 1000,
    data: NewData | None = None,
    progress: Progress = SILENT,
) -> Check:
    """Check the likelihood of a run's first examples by annealed importance sampling: `mixvae.evaluation.check`.

    Args:
        run: the run directory.
        examples: how many examples.
        total_draws: draws per example of the refined estimate.
        split: train, validation or test.
        chunk: latents decoded at once.
        seed: seed of all noise.
        temperatures: steps from prior to posterior.
        data: new examples to check instead of the run's own, as in `evaluate`.
        progress: where to report progress; silent by default.

    Raises:
        FileNotFoundError: it is not a run, or has not finished an epoch.
        ValueError: a number is out of range, or the data are not those it was trained on.
    """
    run = open_run(run)
    x = prepared(run, examples_of(run, split, examples, data).part)
    return evaluation.check(
        run.model, x, total_draws, temperatures=temperatures, chunk=chunk, seed=seed, progress=progress
    )


def evaluation_of(run: str | Path | Run) -> Evaluation:
    """The evaluation of a run's current weights to show: preferably on the test split, on most examples, newest.

    Raises:
        FileNotFoundError: the run has not been evaluated, or not since it was last trained, or is a run of cells.
        ValueError: a stored evaluation is damaged.
    """
    run = open_run(run)
    if run.is_legacy:
        stored = legacy.evaluation(run.path)
        if stored is None:
            raise FileNotFoundError(f"{run.path} has no evaluation: run `{typed('evaluate', run.path)}` first")
        return stored
    ranked = []
    for path in run.layout.evaluations.glob("*-draws*.json"):
        identity, created = identity_in(path)
        if is_current(identity, run):
            ranked.append((identity.split == "test", identity.examples, created, path))
    if not ranked:
        run.refuse_cells(FileNotFoundError)  # its latents are queried differently: nothing is damaged
        raise FileNotFoundError(
            f"{run.path} has no evaluation of its weights: run `{typed('evaluate', run.path)}` first"
        )
    return read_evaluation(max(ranked)[-1])


def find_evaluation(
    run: str | Path | Run,
    total_draws: int = 5000,
    *,
    draws_per_component: int | None = None,
    split: SplitName = "test",
    examples: int | None = None,
    seed: int = 0,
    proposal: ProposalName = "refined",
) -> Evaluation | None:
    """The stored evaluation of a run's current weights with these settings; None if there is none.

    See `evaluate` for the arguments. A legacy run has one evaluation, which is returned if it has these settings.
    """
    run = open_run(run)

    def matches(identity: Identity) -> bool:
        whole = run.manifest["runtime"]["data"].get("sizes", {}).get(split)
        size = whole if examples is None else examples if whole is None else min(examples, whole)
        each = draws_of_each(identity.components, total_draws, draws_per_component)
        has = (identity.split or split, identity.draws_per_component, identity.seed, identity.proposal)
        return has == (split, each, seed, proposal) and (size is None or identity.examples == size)

    if run.is_legacy:
        stored = legacy.evaluation(run.path)
        return stored if stored is not None and matches(stored.identity) else None
    for path in sorted(run.layout.evaluations.glob(f"{split}-*.json")):
        try:
            identity, _ = identity_in(path)
            if is_current(identity, run) and matches(identity):
                return read_evaluation(path)
        except (OSError, ValueError):  # damaged: `evaluate` recomputes it
            continue
    return None


def per_example(evaluation: Evaluation) -> dict[str, np.ndarray]:
    """Values of every example by name, (N,) each: its number, its NLL in nats, and every bound and diagnostic.

    `nll` is −log p(x), estimated from above, and `nll_mc_se` its Monte-Carlo standard error over the draws; `pareto_k`
    says whether it can be relied on. `elbo`, `miselbo` and `pooled` are bounds on log p(x), larger is better.

    The NLL is often taken as a score of how unlike the training data an example is. It says how many nats the model
    spends on this example, which ranks examples of one kind. It is not a test for examples of another kind: models give
    simple images from elsewhere higher likelihoods than the images they were trained on, as in Nalisnick et al. (2019),
    where SVHN beats CIFAR-10. A low NLL does not show that an example belongs to the data.

    References:
        Nalisnick et al., Do Deep Generative Models Know What They Don't Know? (2019), https://arxiv.org/abs/1810.09136

    Example:
        >>> import numpy as np
        >>> from mixvae.evaluation import Evaluation, Identity
        >>> from mixvae.runs import per_example
        >>> identity = Identity("3f…", "test", 2, None, components=4, draws_per_component=25, seed=0)
        >>> values = per_example(Evaluation(identity, {"log_px": np.array([-2.0, -4.0])}, {}))
        >>> values["example"].tolist(), values["nll"].tolist()
        ([0, 1], [2.0, 4.0])
    """
    bounds = evaluation.bounds
    found = {"example": np.arange(evaluation.identity.examples)}
    if "log_px" in bounds:
        found["nll"] = -bounds["log_px"]
    if "log_px_mc_se" in bounds:
        found["nll_mc_se"] = bounds["log_px_mc_se"]
    return found | dict(bounds)


def save_per_example(path: str | Path, evaluation: Evaluation) -> None:
    """Write what `per_example` returns, as arrays to `.npz` or as a table to `.csv`.

    Raises:
        ValueError: the path has another ending.

    Example:
        >>> from pathlib import Path
        >>> import numpy as np
        >>> from mixvae.evaluation import Evaluation, Identity
        >>> from mixvae.runs import save_per_example
        >>> identity = Identity("3f…", "test", 2, None, components=4, draws_per_component=25, seed=0)
        >>> save_per_example("each.csv", Evaluation(identity, {"log_px": np.array([-2.0, -4.5])}, {}))
        >>> print(Path("each.csv").read_text().strip())
        example,nll,log_px
        0,2.0,-2.0
        1,4.5,-4.5
    """
    values = per_example(evaluation)
    path = Path(path).expanduser()
    match path.suffix:
        case ".npz":
            save_arrays(path, values)
        case ".csv":
            rows = zip(*(column.tolist() for column in values.values()), strict=True)
            lines = [",".join(values), *(",".join(map(repr, row)) for row in rows)]
            write_text(path, "\n".join(lines) + "\n")
        case _:
            raise ValueError(f"values per example are written to a .npz or .csv file; got {path}")


def save_arrays(path: str | Path, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays by name as `.npz`, atomically.

    Example:
        >>> import numpy as np
        >>> from mixvae.runs import save_arrays
        >>> save_arrays("arrays.npz", {"x": np.zeros(3)})
        >>> np.load("arrays.npz")["x"].shape
        (3,)
    """
    with atomic(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]
