"""Queries of a trained mixture about cells: latents, bounds, responsibilities, parameters of the likelihood."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from anndata import AnnData
from scvi import settings
from scvi.data._constants import ADATA_MINIFY_TYPE
from scvi.module._constants import MODULE_KEYS

from mixvae.analysis import shares
from mixvae.bounds import jsd
from mixvae.evaluation import Estimate, ProposalName
from mixvae.single_cell.choices import check_source
from mixvae.single_cell.joint import joint_and_posterior
from mixvae.single_cell.likelihoods import (
    DECODED,
    BoundName,
    bounds,
    draws_per_component,
    get_marginal_ll,
    keyed_terms,
    numbered,
)
from mixvae.single_cell.module import MixtureModule
from mixvae.single_cell.posterior import CellPosterior
from mixvae.single_cell.validation import ValidatedCells

OBSM_KEY = "X_mixvae_responsibilities"
AT_ONCE = 2**20
"""Counts that a query encodes at once by default: batches larger than in training are read and encoded faster,
and networks in evaluation mode give the same results."""
OF_COUNTS = ("zinb", "nb")
"""Likelihoods with the parameters that scvi-tools reads by name."""


class MixtureQueries(ValidatedCells):
    """The queries of scvi-tools that a mixture answers differently; a base before SCVI's class or scANVI's."""

    module: MixtureModule

    @torch.inference_mode()
    def get_latent_representation(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | np.ndarray | None = None,
        give_mean: bool = True,
        mc_samples: int = 5_000,
        batch_size: int | None = None,
        return_dist: bool = False,
        dataloader: Iterable[dict[str, torch.Tensor]] | None = None,
        *,
        components: bool = False,
        **data_loader_kwargs: Any,
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """Latent representation of the cells.

        Args:
            adata: the cells; those of the model by default.
            indices: use only these cells.
            give_mean: return the mean of the mixture; otherwise one draw from it.
            mc_samples: draws from which to estimate the mean if it has no closed form (`latent_distribution="ln"`).
            batch_size: cells at once.
            return_dist: return mean and variance of the mixture instead, both (cells, latent).
            dataloader: batches of cells, instead of `adata`.
            components: return means and variances of every component instead, both (cells, S, latent): the paper's
                features.
            **data_loader_kwargs: what scvi-tools' data loader takes.

        Returns:
            (cells, latent), or a pair of arrays. With "ln", moments are of z before the softmax.
        """
        if not components:
            found = super().get_latent_representation(
                adata, indices, give_mean, mc_samples, batch_size, return_dist, dataloader, **data_loader_kwargs
            )
            if give_mean or return_dist:
                return found
            return self.module.z_encoder.transform(torch.from_numpy(found)).numpy()
        self._check_if_trained(warn=False)
        means, variances = [], []
        for tensors in self._batches(adata, indices, batch_size, dataloader, **data_loader_kwargs):
            qz: CellPosterior = self.module.inference(**self.module._get_inference_input(tensors))[MODULE_KEYS.QZ_KEY]
            means.append(qz.means.cpu())
            variances.append(qz.scales.square().cpu())
        return torch.cat(means).numpy(), torch.cat(variances).numpy()

    def get_bounds(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | np.ndarray | None = None,
        n_mc_samples: int = 1_000,
        batch_size: int | None = None,
        *,
        proposal: ProposalName = "refined",
        seed: int = 0,
        dataloader: Iterable[dict[str, torch.Tensor]] | None = None,
        decoded: int = DECODED,
    ) -> Estimate:
        """Log p(x) of every cell, and ELBO, MISELBO and pooled bound, as `mixvae.single_cell.bounds` computes them.

        Args:
            adata: the cells; those of the model by default.
            indices: use only these cells.
            n_mc_samples: draws per cell over all components, rounded up to a multiple of S.
            batch_size: cells at once.
            proposal: where the draws of the headline `log_px` come from, refined or posterior.
            seed: seed of the draws.
            dataloader: batches of cells, instead of `adata`.
            decoded: expression values decoded at once; memory depends on it.

        Raises:
            ValueError: there are no draws, there is no such proposal, or the counts were not kept in minified data.
        """
        made: dict[str, Any] = {"proposal": proposal, "seed": seed, "dataloader": dataloader, "decoded": decoded}
        return bounds(self, adata, indices, n_mc_samples, batch_size, **made)

    def get_marginal_ll(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | np.ndarray | None = None,
        n_mc_samples: int = 1_000,
        batch_size: int | None = None,
        return_mean: bool = True,
        dataloader: Iterable[dict[str, torch.Tensor]] | None = None,
        data_loader_kwargs: dict | None = None,
        *,
        bound: BoundName = "log_px",
        seed: int = 0,
        n_mc_samples_per_pass: int | None = None,
    ) -> float | torch.Tensor:
        """Lower bound of the marginal log-likelihood in nats; higher is better.

        Args:
            adata: the cells; those of the model by default.
            indices: use only these cells.
            n_mc_samples: draws per cell over all components, rounded up to a multiple of S.
            batch_size: cells at once.
            return_mean: return the mean over cells; otherwise one value per cell.
            dataloader: batches of cells, instead of `adata`.
            data_loader_kwargs: ignored; for scvi-tools' callers.
            bound: log_px, the tightest, by refined proposals; or, from the encoders' draws, the pooled bound, the
                paper's MISELBO, or the ELBO. `get_bounds` returns all, with errors.
            seed: seed of the draws.
            n_mc_samples_per_pass: ignored, as memory is bounded anyway; for scvi-tools' callers.
        """
        del data_loader_kwargs, n_mc_samples_per_pass
        if self.minified_data_type == ADATA_MINIFY_TYPE.LATENT_POSTERIOR:
            return super().get_marginal_ll()  # refused in the words of scvi-tools
        made: dict[str, Any] = {"bound": bound, "seed": seed}
        return get_marginal_ll(self, adata, indices, n_mc_samples, batch_size, return_mean, dataloader, **made)

    def get_responsibilities(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | np.ndarray | None = None,
        n_mc_samples: int = 64,
        batch_size: int | None = None,
        *,
        seed: int = 0,
        key_added: str | None = OBSM_KEY,
    ) -> np.ndarray:
        """Share of each cell's exact posterior p(z|x) that each component covers, (cells, S); rows sum to one.

        Args:
            adata: the cells; those of the model by default.
            indices: use only these cells.
            n_mc_samples: draws per cell over all components, rounded up to a multiple of S.
            batch_size: cells at once.
            seed: seed of the draws.
            key_added: also write them to `adata.obsm[key_added]`, unless `indices` are given.
        """
        return self._shares_and_jsd(adata, indices, n_mc_samples, batch_size, seed, key_added)[0]

    def _shares_and_jsd(
        self,
        adata: AnnData | None,
        indices: Sequence[int] | np.ndarray | None,
        n_mc_samples: int,
        batch_size: int | None,
        seed: int,
        key_added: str | None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Responsibilities, (cells, S), also written to `obsm`, and JSD, (cells,), by the same draws."""
        each = draws_per_component(n_mc_samples, self.module.n_components)
        covered, apart = [], []
        _, batches = numbered(self, adata, indices, batch_size, None)
        with torch.inference_mode():
            for tensors, numbers in batches:
                terms = keyed_terms(*joint_and_posterior(self.module, tensors), numbers, 0, each, seed)
                covered.append(shares(terms).T.cpu().numpy())
                apart.append(jsd(terms).cpu().numpy())
        if key_added is not None and indices is None:
            (self.adata if adata is None else adata).obsm[key_added] = np.concatenate(covered)
        return np.concatenate(covered), np.concatenate(apart)

    def _make_data_loader(
        self,
        adata: AnnData,
        indices: Sequence[int] | np.ndarray | None = None,
        batch_size: int | None = None,
        **kwargs: Any,
    ) -> Any:
        """Batches of cells, as large as is useful for a query unless their size is given."""
        if batch_size is None:
            batch_size = max(settings.batch_size, AT_ONCE // adata.n_vars)
        return super()._make_data_loader(adata, indices, batch_size, **kwargs)

    def _batches(
        self,
        adata: AnnData | None,
        indices: Sequence[int] | np.ndarray | None,
        batch_size: int | None,
        dataloader: Iterable[dict[str, torch.Tensor]] | None,
        **data_loader_kwargs: Any,
    ) -> Any:
        """Batches of cells: the given ones, or those of an AnnData."""
        check_source(adata, indices, dataloader)
        if dataloader is not None:
            return dataloader
        adata = self._validate_anndata(adata)
        return self._make_data_loader(adata=adata, indices=indices, batch_size=batch_size, **data_loader_kwargs)

    @torch.inference_mode()
    def get_likelihood_parameters(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | np.ndarray | None = None,
        n_samples: int = 1,
        give_mean: bool = False,
        batch_size: int | None = None,
        dataloader: Iterable[dict[str, torch.Tensor]] | None = None,
        **data_loader_kwargs: Any,
    ) -> dict[str, np.ndarray]:
        """Parameters of p(x|z) at draws of the posterior.

        Args:
            adata: the cells; those of the model by default.
            indices: use only these cells.
            n_samples: draws per cell.
            give_mean: average over the draws.
            batch_size: cells at once.
            dataloader: batches of cells, instead of `adata`.
            **data_loader_kwargs: what scvi-tools' data loader takes.

        Returns:
            `mean`; `dispersions` of negative binomials, `dropout` where they are zero-inflated; `scale` of normals.
            Arrays are (cells, genes), with a leading axis of `n_samples` if there is more than one draw.
        """
        if self.module.gene_likelihood in OF_COUNTS:
            return super().get_likelihood_parameters(
                adata, indices, n_samples, give_mean, batch_size, dataloader, **data_loader_kwargs
            )
        dataloader = self._batches(adata, indices, batch_size, dataloader, **data_loader_kwargs)
        parts: dict[str, list[np.ndarray]] = {}
        for tensors in dataloader:
            _, generated = self.module.forward(tensors, inference_kwargs={"n_samples": n_samples}, compute_loss=False)
            px = generated[MODULE_KEYS.PX_KEY]
            values = {"mean": px.mean}
            if self.module.gene_likelihood == "normal":
                values["scale"] = px.stddev.expand_as(px.mean)
            for name, value in values.items():
                parts.setdefault(name, []).append(value.cpu().numpy())
        arrays = {name: np.concatenate(values, -2) for name, values in parts.items()}
        return {name: value.mean(0) for name, value in arrays.items()} if give_mean and n_samples > 1 else arrays

    def get_normalized_expression(self, *args: Any, **kwargs: Any) -> Any:
        """Decoded expression as in scvi-tools' `get_normalized_expression`, each draw from one component.

        Args:
            *args: what scvi-tools' `get_normalized_expression` takes.
            **kwargs: what scvi-tools' `get_normalized_expression` takes.

        Raises:
            ValueError: importance weights are requested for a likelihood for which scvi-tools cannot compute them.
        """
        if kwargs.get("weights") == "importance" and self.module.gene_likelihood not in OF_COUNTS:
            raise ValueError(
                f"importance weights are for the likelihoods zinb and nb; got {self.module.gene_likelihood}: use "
                'weights="uniform"'
            )
        return super().get_normalized_expression(*args, **kwargs)
