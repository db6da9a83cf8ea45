"""Bounds on log p(x) per example, with their standard errors: amortised ones, and a tight one by refined proposals.

Every number is computed in evaluation mode with noise keyed by (seed, example, stream, draw block), so it does not
depend on batch size, chunk, or order of the examples; the modes of refined proposals are found in the model's own
precision, so that rounding may change their estimates, by less than 10⁻³ nats.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from mixvae._failures import at_least
from mixvae._resources import check, check_count, device_memory, short
from mixvae._trying import INSTEAD, Observations, check_parts, coupling, observations
from mixvae.distributions import DRAW_BLOCK, Components, keyed_normal
from mixvae.evaluation._estimate import Estimate, fingerprint
from mixvae.evaluation._sums import SHORTEST_TAIL, Accumulator, tail_length, weigh
from mixvae.joint import ModelJoint
from mixvae.model import MixtureVAE, evaluating
from mixvae.progress import SILENT, Progress
from mixvae.proposals import Proposal, Refined, keyed_uniform, refine, scores_own_draws, systematic_counts, together

ProposalName = Literal["refined", "posterior"]
LARGEST_BATCH = 256
WITH_GRAPH = 8
"""How many latents decode in the memory that one takes with its gradient and curvature."""
MOST_DRAWS = 100_000_000
"""Maximum draws per example, which already take a minute or more for each."""
WEIGHTS = 4
"""Copies of an example's weights that fitting k̂ makes."""


def evaluate(
    model: MixtureVAE,
    x: Observations,
    total_draws: int = 5000,
    *,
    draws_per_component: int | None = None,
    proposal: ProposalName = "refined",
    chunk: int = 1024,
    seed: int = 0,
    examples: Sequence[int] | np.ndarray | None = None,
    progress: Progress = SILENT,
) -> Estimate:
    """Estimate log p(x) of every example, and ELBO, MISELBO and the pooled bound of its posterior.

    ELBO, MISELBO and the pooled bound are amortised: their draws come from q(z|x). The headline `log_px` takes the
    same number from a proposal that is refined for each example, and is tight where that proposal fits; `pareto_k`,
    `ess` and `bias` say whether it does. With `proposal="posterior"` it is the pooled bound.

    Memory depends on `chunk` only: bounds, errors and diagnostics are accumulated over the draws. There are never fewer
    draws than requested: ELBO and MISELBO take L = ⌈total_draws / S⌉ of every component. With unequal weights the
    pooled bound takes L·S draws in proportion to them, by systematic random rounding.

    Args:
        model: put into evaluation mode, and back into its own mode afterwards.
        x: observations: an array or tensor (N, *shape), grey images (N, H, W), or data of any kind that `as_dataset`
            takes, such as a `Split` or a `DataLoader`, all of which are read into memory.
        total_draws: total draws per example, L·S, so that models with different S are compared at equal cost.
        draws_per_component: L itself, the paper's protocol; overrides `total_draws`.
        proposal: where the draws of the headline come from, refined or posterior.
        chunk: latents decoded at once.
        seed: seed of the noise.
        examples: numbers of the examples, which key their noise; their positions in x by default.
        progress: where progress is reported, such as `mixvae.progress.Terminal()`; silent by default.

    Raises:
        ValueError: there are no examples, a number is not positive, or there is no such proposal.

    References:
        Kviman et al., Multiple Importance Sampling ELBO (2022), https://arxiv.org/abs/2202.10951
        Bugallo et al., Adaptive Importance Sampling: The past, the present, and the future (2017),
        https://doi.org/10.1109/MSP.2017.2699226
        Vehtari et al., Pareto Smoothed Importance Sampling (2024), https://arxiv.org/abs/1507.02646

    Example:
        >>> import torch
        >>> from mixvae import MixtureVAE, MLPDecoder, SeparateEncoders, StandardNormal, evaluate
        >>> from mixvae.networks import GatedEncoder
        >>> posterior = SeparateEncoders(lambda: GatedEncoder((4,), 2, (5,)), 3)
        >>> model = MixtureVAE(posterior, StandardNormal(2), MLPDecoder(2, (4,), (5,)))
        >>> estimate = evaluate(model, torch.ones(6, 4), total_draws=30)
        >>> estimate.log_px.shape, estimate.draws_per_component
        ((6,), 10)
    """
    check_draws(total_draws, draws_per_component, chunk, seed)
    if proposal not in ("refined", "posterior"):
        raise ValueError(f"proposal must be refined or posterior; got {proposal!r}")
    x = observations(x, model)
    keys = np.arange(len(x)) if examples is None else np.asarray(examples)
    if len(x) == 0 or len(keys) != len(x):
        raise ValueError(f"evaluation needs at least one example, each with one number; got {len(x)} and {len(keys)}")
    done: list[dict[str, np.ndarray]] = []
    notes: list[dict[str, Any]] = []
    with torch.no_grad(), evaluating(model):
        check_parts(model, x[:2])
        if what := coupling(model, x):
            raise ValueError(
                f"{what} lets the likelihood of an example depend on its batch, in evaluation mode too, so that "
                f"there is no bound on log p(x): {INSTEAD}"
            )
        joint = ModelJoint(model, x)
        components = model.posterior(x[:1]).batch_shape[0]
        each = draws_of_each(components, total_draws, draws_per_component)
        _check_memory(x, joint.latent, components, each, chunk)
        size, outer = _at_once(components, each, chunk), group_size(components, each, chunk)
        finished = 0
        for first in range(0, len(x), outer):
            whole, theirs = joint.part(first, first + outer), keys[first : first + outer]
            parts = [(whole, theirs, None)]
            if proposal == "refined":
                parts = _refined(whole, theirs, components * each, seed, chunk)
            for group, numbers, refined in parts:
                if refined is not None:
                    notes.append(refined.notes())
                for start in range(0, group.size, size):
                    part = group.part(start, start + size)
                    own = None if refined is None else refined.proposal.part(start, start + size)
                    done.append(_evaluate_batch(part, numbers[start : start + size], each, seed, chunk, own))
                    finished += part.size
                    progress.update(finished, len(x), "evaluating")
    arrays = {name: np.concatenate([part[name] for part in done]) for name in done[0]}
    made = {"components": components, "draws_per_component": each, "seed": seed, "observations": fingerprint(x)}
    return Estimate(**arrays, **made, proposal=proposal, proposal_notes=together(notes))


def _refined(
    whole: ModelJoint, numbers: np.ndarray, draws: int, seed: int, chunk: int
) -> Iterator[tuple[ModelJoint, np.ndarray, Refined]]:
    """Proposals of examples whose modes are sought together, with the examples and their numbers.

    Those whose posterior fails to score its own draws are apart, as their proposals do without it.
    """
    q = whole.model.posterior(whole.x)
    sound = scores_own_draws(q, numbers, seed, whole.like).cpu().numpy()
    cuts = [0, *map(int, np.flatnonzero(np.diff(sound)) + 1), whole.size]
    for low, high in itertools.pairwise(cuts):
        group, own = whole.part(low, high), numbers[low:high]
        posterior = q if group.size == whole.size else whole.model.posterior(group.x)
        settings = {"seed": seed, "at_once": chunk // group.size, "with_posterior": bool(sound[low])}
        yield group, own, refine(group, posterior, draws, examples=own, **settings)


def _at_once(components: int, each: int, chunk: int) -> int:
    """Examples whose draws are decoded together."""
    return min(max(1, chunk // (components * min(each, DRAW_BLOCK))), LARGEST_BATCH)


def group_size(components: int, each: int, chunk: int) -> int:
    """Number of examples whose modes are sought together: the others in a group change an estimate only by rounding.

    Example:
        >>> from mixvae.evaluation import group_size
        >>> group_size(components=4, each=1250, chunk=1024)
        128
    """
    size = _at_once(components, each, chunk)
    return max(size, min(chunk // WITH_GRAPH, LARGEST_BATCH) // size * size)


def _evaluate_batch(
    joint: ModelJoint, numbers: np.ndarray, each: int, seed: int, chunk: int, proposal: Proposal | None
) -> dict[str, np.ndarray]:
    """Bounds of a few examples, the headline from a proposal if there is one."""
    q = joint.model.posterior(joint.x)
    arrays = _amortised(joint, q, numbers, each, seed, chunk)
    return arrays if proposal is None else arrays | weigh(proposal, joint, q, chunk // joint.size)


def _amortised(
    joint: ModelJoint, q: Components, numbers: np.ndarray, each: int, seed: int, chunk: int
) -> dict[str, np.ndarray]:
    """ELBO, MISELBO and pooled bound by draws from the posterior."""
    components, batch = q.batch_shape
    counts = proportional_counts(q, numbers, each, seed)
    accumulator = Accumulator(each, None if counts is None else counts.to(joint.x.device))
    for low, high, own in _rounds(counts, each, components):
        drawn = None if len(own) == components else torch.from_numpy(own).to(joint.x.device)
        for start, stop in chunks(high, chunk // (len(own) * batch), low):
            noise = keyed_normal(seed, numbers, start, stop, (components, q.event_shape[0]))[:, own]
            terms = joint.model.terms(joint.x, q, joint.prior, stop - start, own=drawn, noise=noise.to(joint.like))
            accumulator.add(terms, start)
    return accumulator.result()


def proportional_counts(q: Components, numbers: np.ndarray, each: int, seed: int) -> Int[Tensor, "S B"] | None:
    """Draws of each component for each example in proportion to unequal weights; None if the weights are equal."""
    pi = q.log_pi.double().exp().cpu().numpy()
    if np.allclose(pi, 1 / len(pi), rtol=1e-6):
        return None
    total = each * len(pi)
    counts = [systematic_counts(pi, total, keyed_uniform(seed, int(number))) for number in numbers]
    return torch.from_numpy(np.stack(counts, 1))


def _rounds(counts: Tensor | None, each: int, components: int) -> Iterator[tuple[int, int, np.ndarray]]:
    """Ranges of draws that come from the same components, and those components: (start, stop, positions)."""
    most = np.full(components, each)
    if counts is not None:
        most = np.maximum(most, counts.amax(1).cpu().numpy())
    levels = [0, *sorted(set(map(int, most)))]
    for low, high in itertools.pairwise(levels):
        yield low, high, np.flatnonzero(most > low)


def check_draws(total_draws: int, draws_per_component: int | None = None, chunk: int = 1, seed: int = 0) -> None:
    """Refuse evaluation settings that are out of range.

    Raises:
        ValueError: a setting is out of range.

    Example:
        >>> from mixvae.evaluation import check_draws
        >>> check_draws(0)
        Traceback (most recent call last):
        ValueError: total_draws must be at least 1; got 0
    """
    at_least(1, total_draws=total_draws, draws_per_component=draws_per_component, chunk=chunk)
    at_least(0, seed=seed)
    _check_weights(total_draws if draws_per_component is None else draws_per_component)


def _check_memory(x: Tensor, latent: int, components: int, each: int, chunk: int) -> None:
    """Refuse draws that do not fit into memory: one chunk, or all weights of one example, which k̂ needs.

    Raises:
        ValueError: they do not fit.
    """
    batch = min(max(1, chunk // (components * min(each, DRAW_BLOCK))), LARGEST_BATCH, len(x))
    at_once = components * batch * min(each, max(1, chunk // (components * batch)))
    needed = at_once * (8 * latent + (latent + x[0].numel() + components) * x.element_size())  # noise, z, p(x|z), log q
    check(needed, f"evaluating {short(at_once)} latents at once", "give a smaller chunk", device_memory(x.device))
    _check_weights(components * each)


def _check_weights(draws: int) -> None:
    """Refuse draws per example that are too many to fit k̂ to, or that would take too long."""
    if tail_length(draws) >= SHORTEST_TAIL:
        remedy = "give fewer draws; time grows with their number too"
        check(WEIGHTS * 8 * draws, f"Pareto k̂ of {short(draws)} draws", remedy)
    check_count(draws, MOST_DRAWS, "draws per example", "give fewer draws")


def draws_of_each(components: int, total_draws: int, draws_per_component: int | None) -> int:
    """Draws L per component: the given number, or its share of the total, rounded up.

    Example:
        >>> from mixvae.evaluation import draws_of_each
        >>> draws_of_each(3, 100, None), draws_of_each(3, 100, 7)
        (34, 7)
    """
    return draws_per_component or -(-total_draws // components)


def chunks(draws: int, most: int, first: int = 0) -> Iterator[tuple[int, int]]:
    """Ranges that cover all draws from `first` on, each at most `most` long, in whole blocks where possible.

    Example:
        >>> from mixvae.evaluation import chunks
        >>> list(chunks(10, 4))
        [(0, 4), (4, 8), (8, 10)]
    """
    step = max(1, most)
    step -= step % DRAW_BLOCK if step > DRAW_BLOCK else 0
    for start in range(first, draws, step):
        yield start, min(draws, start + step)
