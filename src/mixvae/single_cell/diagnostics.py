"""What the components of a trained mixture represent, in cells and genes, and scores of integration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from matplotlib.figure import Figure
from scvi import REGISTRY_KEYS, settings
from scvi.module._constants import MODULE_KEYS

from mixvae import figures
from mixvae.evaluation import standard_error
from mixvae.single_cell.data import check_keys
from mixvae.single_cell.queries import OBSM_KEY, MixtureQueries

PSEUDOCOUNT = 1e-5
"""Added to expression shares before taking logarithms: a tenth of a count in 10,000."""


@dataclass(frozen=True)
class CellDiagnosis:
    """What the components of a mixture represent.

    Args:
        jsd: Jensen–Shannon divergence of the components of every cell, in nats, at most log S.
        responsibilities: share of each cell's exact posterior that each component covers, (cells, S).
        genes: genes that distinguish what each component covers, as returned by `distinguishing_genes`.
        latent: mean of every cell's mixture, (cells, latent).
        cells: names of the cells.

    Example:
        >>> import numpy as np
        >>> import pandas as pd
        >>> from mixvae.single_cell import CellDiagnosis
        >>> genes = pd.DataFrame({"component": [0, 1], "gene": ["Gad1", "Mbp"]})
        >>> shares = np.array([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7]])
        >>> diagnosis = CellDiagnosis(np.zeros(3), shares, genes, np.zeros((3, 2)), pd.Index(list("abc")))
        >>> diagnosis.dominant.tolist(), diagnosis.table["dominated_cells"].tolist()
        ([0, 1, 1], [1, 2])
    """

    jsd: np.ndarray
    responsibilities: np.ndarray
    genes: pd.DataFrame
    latent: np.ndarray
    cells: pd.Index

    def __repr__(self) -> str:
        """The table as text."""
        return f"{type(self).__name__} of {len(self.jsd)} cells\n{self.table}"

    @property
    def dominant(self) -> np.ndarray:
        """The component that covers most of each cell's posterior, (cells,)."""
        return self.responsibilities.argmax(1)

    @property
    def effective_components(self) -> float:
        """exp(mean JSD): the number of components that really differ, between 1 and S."""
        return float(np.exp(self.jsd.mean()))

    @property
    def table(self) -> pd.DataFrame:
        """One row per component: the share of posteriors it covers, the cells it dominates, its genes."""
        n = self.responsibilities.shape[1]
        names = [self.genes.loc[self.genes["component"] == s, "gene"].head(5) for s in range(n)]
        return pd.DataFrame(
            {
                "share": self.responsibilities.mean(0),
                "share_se": [standard_error(column) for column in self.responsibilities.T],
                "dominated_cells": np.bincount(self.dominant, minlength=n),
                "genes": [", ".join(own) for own in names],
            },
            index=pd.Index(range(n), name="component"),
        )

    @cached_property
    def umap(self) -> np.ndarray:
        """UMAP coordinates of the cells' latent means, (cells, 2), with scanpy's defaults."""
        import scanpy

        cells = AnnData(self.latent)
        scanpy.pp.neighbors(cells, use_rep="X")
        scanpy.tl.umap(cells)
        return np.asarray(cells.obsm["X_umap"])

    def figure(self, labels: Mapping[str, Any] | None = None) -> Figure:
        """UMAP of the cells, coloured by dominant component and, side by side, by your own labels.

        Args:
            labels: labels of the cells by title, such as {"cell type": adata.obs["cell_type"]}.
        """
        named = {title: np.asarray(values).astype(str) for title, values in (labels or {}).items()}
        return figures.embedding(self.umap, {"dominant component": self.dominant} | named, "UMAP")


def diagnose(
    model: MixtureQueries,
    adata: AnnData | None = None,
    indices: Sequence[int] | np.ndarray | None = None,
    n_mc_samples: int = 64,
    n_genes: int = 10,
    *,
    seed: int = 0,
    key_added: str | None = OBSM_KEY,
) -> CellDiagnosis:
    """Diagnose a trained mixture on cells; also writes responsibilities to `adata.obsm`.

    Args:
        model: a trained mixture.
        adata: the cells; those of the model by default.
        indices: use only these cells.
        n_mc_samples: draws per cell over all components.
        n_genes: genes per component.
        seed: seed of the draws.
        key_added: key of `adata.obsm` for the responsibilities; None writes nothing.
    """
    shares, jsd = model._shares_and_jsd(adata, indices, n_mc_samples, None, seed, key_added)
    cells = model.adata if adata is None else adata
    return CellDiagnosis(
        jsd=jsd,
        responsibilities=shares,
        genes=distinguishing_genes(model, adata, indices, n_genes, shares=shares),
        latent=model.get_latent_representation(adata, indices),
        cells=cells.obs_names if indices is None else cells.obs_names[np.asarray(indices)],
    )


@torch.inference_mode()
def distinguishing_genes(
    model: MixtureQueries,
    adata: AnnData | None = None,
    indices: Sequence[int] | np.ndarray | None = None,
    n_genes: int = 10,
    draws_per_component: int = 8,
    *,
    shares: np.ndarray | None = None,
) -> pd.DataFrame:
    """Genes whose decoded expression differs most between one component's draws and the other components'.

    For every cell, log₂ of the mean expression share ρ under component s over that under the others; averaged over
    cells weighted by responsibilities, so that cells count as far as the component covers their posterior.

    Args:
        model: a trained mixture.
        adata: the cells; those of the model by default.
        indices: use only these cells.
        n_genes: genes per component, those with the largest absolute mean.
        draws_per_component: draws per component and cell.
        shares: responsibilities, (cells, S); computed if not given.

    Returns:
        Columns component, gene, log2_fold_change, standard_error (over cells); no rows for a single component.

    Raises:
        ValueError: the data were minified to moments of the mixture.
    """
    module, adata = model.module, model._validate_anndata(adata)
    if shares is None:
        shares = model.get_responsibilities(adata, indices, key_added=None)
    changes = []
    for tensors in model._make_data_loader(adata=adata, indices=indices, batch_size=settings.batch_size):
        cells = len(tensors[REGISTRY_KEYS.X_KEY])
        outputs = module.inference(
            **module._get_inference_input(tensors), n_samples=draws_per_component, stratified=True
        )
        if outputs[MODULE_KEYS.QZ_KEY].means.shape[1] != module.n_components:
            raise ValueError("only moments of the mixture were kept when the data were minified: use the full AnnData")
        px = module.generative(**module._get_generative_input(tensors, outputs))[MODULE_KEYS.PX_KEY]
        scale = (
            px.get_normalized("scale").unflatten(0, (draws_per_component, module.n_components, cells)).mean(0)
        )  # (S, B, G)
        others = (scale.sum(0) - scale) / max(module.n_components - 1, 1)
        changes.append(((scale + PSEUDOCOUNT) / (others + PSEUDOCOUNT)).log2().cpu().numpy())
    change = np.concatenate(changes, 1)
    rows = []
    for s in range(module.n_components if module.n_components > 1 else 0):
        weight = shares[:, s] / max(shares[:, s].sum(), 1e-12)
        mean = weight @ change[s]
        error = np.sqrt((weight**2) @ (change[s] - mean) ** 2)
        for g in np.argsort(-np.abs(mean))[:n_genes]:
            rows.append((s, str(adata.var_names[g]), float(mean[g]), float(error[g])))
    return pd.DataFrame(rows, columns=["component", "gene", "log2_fold_change", "standard_error"])


def integration_scores(
    adata: AnnData, embeddings: Sequence[str], *, batch_key: str, label_key: str, jobs: int = 1
) -> pd.DataFrame:
    """Scores of batch correction and conservation of biology by scib-metrics, one row per embedding.

    Args:
        adata: cells whose `obsm` holds the embeddings.
        embeddings: keys of `obsm`, such as one from SCVI and one from MixtureSCVI.
        batch_key: column of `obs` with the batch.
        label_key: column of `obs` with the cell type.
        jobs: processes for finding neighbours.

    Raises:
        ValueError: there is only one batch, or a key is missing.

    References:
        Luecken et al., Benchmarking atlas-level data integration in single-cell genomics (2022),
        https://doi.org/10.1038/s41592-021-01336-8
    """
    from scib_metrics.benchmark import BatchCorrection, Benchmarker, BioConservation

    check_keys(adata, [batch_key, label_key], None)
    if missing := [key for key in embeddings if key not in adata.obsm]:
        raise ValueError(f"adata.obsm has no {missing[0]!r}: it has {', '.join(adata.obsm) or 'none'}")
    if adata.obs[batch_key].nunique() < 2:
        raise ValueError(f"scores of integration need at least 2 batches; {batch_key!r} has 1")
    benchmark = Benchmarker(
        adata,
        batch_key=batch_key,
        label_key=label_key,
        embedding_obsm_keys=list(embeddings),
        bio_conservation_metrics=BioConservation(),
        batch_correction_metrics=BatchCorrection(),
        n_jobs=jobs,
        progress_bar=False,
    )
    benchmark.benchmark()
    scores = benchmark.get_results(min_max_scale=False, clean_names=True)
    return scores.drop(index="Metric Type").astype(float)
