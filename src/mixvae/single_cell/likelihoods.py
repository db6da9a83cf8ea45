"""Bounds on log p(x) of cells under SCVI, scANVI and mixtures: amortised ones, and a tight one by refined proposals."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from numbers import Integral
from typing import Any, Literal

import numpy as np
import torch
from anndata import AnnData
from scvi import REGISTRY_KEYS, settings
from scvi.data._constants import ADATA_MINIFY_TYPE
from scvi.model import SCANVI, SCVI

from mixvae.bounds import Terms
from mixvae.distributions import DiagonalGaussian, keyed_normal
from mixvae.evaluation import (
    WITH_GRAPH,
    Accumulator,
    Estimate,
    Fingerprint,
    ProposalName,
    check_draws,
    chunks,
    draws_of_each,
    weigh,
)
from mixvae.proposals import refine, together
from mixvae.single_cell.choices import check_source, chosen_cells
from mixvae.single_cell.joint import Batch, CellJoint, joint_and_posterior, terms_of
from mixvae.single_cell.loading import CellLoader

BoundName = Literal["log_px", "pooled", "miselbo", "elbo"]
DECODED = 2**24
"""Expression values decoded at once while bounds are computed: draws × components × cells × genes."""


def bounds(
    model: SCVI | SCANVI,
    adata: AnnData | None = None,
    indices: Sequence[int] | np.ndarray | None = None,
    n_mc_samples: int = 1_000,
    batch_size: int | None = None,
    *,
    proposal: ProposalName = "refined",
    seed: int = 0,
    dataloader: Iterable[Batch] | None = None,
    decoded: int = DECODED,
) -> Estimate:
    """Log p(x) of every cell, and ELBO, MISELBO and pooled bound, with errors and diagnostics, in nats.

    The headline `log_px` takes its draws from a proposal that is refined for each cell (its modes, the curvature there,
    pilot rounds), so that models can be compared however good their encoders are; `pareto_k`, `ess` and `bias` say
    how tight it is. The other bounds take theirs from the encoders. With a latent library size all of them average over
    it too. Noise is keyed by (seed, cell, draw): the numbers do not depend on batch size or the order of cells, up to
    rounding, which moves the refined proposals, and with them `log_px` of a cell, by up to 0.012 nats in a trial with
    20 draws. Estimates of the same counts can be paired (`paired_gain`, `split_gain`); those of batches from a
    `dataloader` have no checksum of their counts, and cannot.

    Args:
        model: a trained SCVI, scANVI, or mixture of either.
        adata: the cells; those of the model by default.
        indices: use only these cells.
        n_mc_samples: draws per cell over all components, rounded up to a multiple of S.
        batch_size: cells at once.
        proposal: where the draws of the headline come from, refined or posterior.
        seed: seed of the draws.
        dataloader: batches of cells, instead of `adata`.
        decoded: expression values decoded at once; memory depends on it.

    Raises:
        ValueError: there are no draws, there is no such proposal, or the counts were not kept in minified data.

    References:
        Lopez et al., Deep generative modeling for single-cell transcriptomics (2018),
        https://doi.org/10.1038/s41592-018-0229-2
        Bugallo et al., Adaptive Importance Sampling: The past, the present, and the future (2017),
        https://doi.org/10.1109/MSP.2017.2699226

    Example:
        >>> import numpy as np
        >>> from anndata import AnnData
        >>> from scvi.model import SCVI
        >>> from mixvae.single_cell import bounds
        >>> adata = AnnData(np.random.default_rng(0).poisson(2.0, (30, 12)).astype(np.float32))
        >>> SCVI.setup_anndata(adata)
        >>> model = SCVI(adata, n_hidden=8, n_latent=2)
        >>> model.is_trained_ = True  # next time: model.train()
        >>> estimate = bounds(model, n_mc_samples=100)
        >>> estimate.log_px.shape, estimate.proposal, bool((estimate.pareto_k < 0.7).mean() > 0.9)
        ((30,), 'refined', True)
    """
    if proposal not in ("refined", "posterior"):
        raise ValueError(f"proposal must be refined or posterior; got {proposal!r}")
    draws_per_component(n_mc_samples, 1)
    check_draws(n_mc_samples, seed=seed)
    done: list[dict[str, np.ndarray]] = []
    notes: list[dict[str, int]] = []
    components = each = 0
    count, batches = numbered(model, adata, indices, batch_size, dataloader)
    digest = None if count is None else Fingerprint((count, model.module.n_input))
    with torch.inference_mode(mode=False), torch.no_grad():
        for tensors, numbers in batches:
            if digest is not None:
                digest.add(tensors[REGISTRY_KEYS.X_KEY])
            size = max(1, decoded // (WITH_GRAPH * tensors[REGISTRY_KEYS.X_KEY].shape[1]))
            for start in range(0, len(numbers), size):
                own = {name: value[start : start + size].clone() for name, value in tensors.items()}
                joint, q = joint_and_posterior(model.module, own)
                components = q.batch_shape[0]
                each = draws_per_component(n_mc_samples, components)
                at_once = max(1, decoded // joint.x.numel())
                keys = numbers[start : start + size]
                arrays = _amortised(joint, q, keys, each, seed, max(1, at_once // components))
                if proposal == "refined":
                    refined = refine(joint, q, components * each, examples=keys, seed=seed, at_once=at_once)
                    arrays |= weigh(refined.proposal, joint, q, at_once)
                    notes.append(refined.notes())
                done.append(arrays)
    if not done:
        raise ValueError("there are no cells to score: give at least one")
    joined = {name: np.concatenate([part[name] for part in done]) for name in done[0]}
    made: dict[str, Any] = {"components": components, "draws_per_component": each, "seed": seed}
    made["observations"] = None if digest is None else digest.hexdigest()
    return Estimate(**joined, **made, proposal=proposal, proposal_notes=together(notes))


def get_marginal_ll(
    model: SCVI | SCANVI,
    adata: AnnData | None = None,
    indices: Sequence[int] | np.ndarray | None = None,
    n_mc_samples: int = 1_000,
    batch_size: int | None = None,
    return_mean: bool = True,
    dataloader: Iterable[Batch] | None = None,
    *,
    bound: BoundName = "log_px",
    seed: int = 0,
) -> float | torch.Tensor:
    """Lower bound of the marginal log-likelihood in nats; higher is better.

    A replacement for `scvi.model.SCVI.get_marginal_ll`, whose draws come from the encoder: for counts of hundreds of
    genes that bound lies nats below log p(x), and lower for a worse encoder.

    Args:
        model: a trained SCVI, scANVI, or mixture of either.
        adata: the cells; those of the model by default.
        indices: use only these cells.
        n_mc_samples: draws per cell over all components, rounded up to a multiple of S.
        batch_size: cells at once.
        return_mean: return the mean over cells, a NumPy number as in scvi-tools; otherwise one value per cell.
        dataloader: batches of cells, instead of `adata`.
        bound: log_px, the tightest, by refined proposals; or, from the encoders' draws, the pooled bound, the paper's
            MISELBO, or the ELBO. `bounds` returns all, with errors.
        seed: seed of the draws.

    Raises:
        ValueError: there are no draws, there is no such bound, or the counts were not kept in minified data.
    """
    if bound not in (names := ("log_px", "pooled", "miselbo", "elbo")):
        raise ValueError(f"bound must be one of {', '.join(names)}; got {bound!r}")
    proposal: ProposalName = "refined" if bound == "log_px" else "posterior"
    estimate = bounds(
        model, adata, indices, n_mc_samples, batch_size, proposal=proposal, seed=seed, dataloader=dataloader
    )
    values: np.ndarray = getattr(estimate, bound)
    return values.mean(dtype=np.float64) if return_mean else torch.from_numpy(values)


def numbered(
    model: SCVI | SCANVI,
    adata: AnnData | None,
    indices: Sequence[int] | np.ndarray | None,
    batch_size: int | None,
    dataloader: Iterable[Batch] | None,
) -> tuple[int | None, Iterator[tuple[Batch, np.ndarray]]]:
    """Number of cells, None if batches are given, and batches of them with the cells' indices.

    The module is in evaluation mode.

    Raises:
        ValueError: the data are minified, and their counts were not kept.
    """
    if model.minified_data_type == ADATA_MINIFY_TYPE.LATENT_POSTERIOR:
        raise ValueError("bounds need the counts, which minified data lack: use the full AnnData")
    check_source(adata, indices, dataloader)
    numbers = None
    if dataloader is None:
        model._check_if_trained(warn=False)
        adata = model._validate_anndata(adata)
        numbers = chosen_cells(indices, adata.n_obs)
        dataloader = model._make_data_loader(
            adata=adata,
            indices=numbers,
            batch_size=batch_size or settings.batch_size,
            data_loader_class=CellLoader,
        )
    model.module.eval()
    return None if numbers is None else len(numbers), _with_numbers(dataloader, numbers)


def _with_numbers(batches: Iterable[Batch], numbers: np.ndarray | None) -> Iterator[tuple[Batch, np.ndarray]]:
    """Batches with the numbers of their cells, by default from 0."""
    first = 0
    for tensors in batches:
        last = first + len(tensors[REGISTRY_KEYS.X_KEY])
        yield tensors, np.arange(first, last) if numbers is None else numbers[first:last]
        first = last


def draws_per_component(n_mc_samples: int, components: int) -> int:
    """Draws of each component: its share, rounded up.

    Raises:
        ValueError: there are none.
    """
    if not isinstance(n_mc_samples, Integral) or isinstance(n_mc_samples, bool) or n_mc_samples < 1:
        raise ValueError(f"n_mc_samples must be a whole number, at least 1; got {n_mc_samples}")
    return draws_of_each(components, n_mc_samples, None)


def keyed_terms(joint: CellJoint, q: DiagonalGaussian, numbers: np.ndarray, start: int, stop: int, seed: int) -> Terms:
    """Log-densities of some draws of every component, whose noise is keyed by the cells' numbers."""
    noise = keyed_normal(seed, numbers, start, stop, (q.batch_shape[0], joint.latent))
    return terms_of(joint, q, q.rsample((stop - start,), noise.to(joint.like)))


def _amortised(
    joint: CellJoint, q: DiagonalGaussian, numbers: np.ndarray, each: int, seed: int, at_once: int
) -> dict[str, np.ndarray]:
    """ELBO, MISELBO and pooled bound by draws from the posterior."""
    accumulator = Accumulator(each)
    for start, stop in chunks(each, at_once):
        accumulator.add(keyed_terms(joint, q, numbers, start, stop, seed), start)
    return accumulator.result()
