"""Queries of a trained mixture about cells: latents, bounds, responsibilities, parameters of the likelihood."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from anndata import AnnData
from scvi import REGISTRY_KEYS
from scvi.model import SCVI
from scvi.module._constants import MODULE_KEYS

from mixvae.analysis import shares
from mixvae.bounds import Terms, jsd
from mixvae.distributions import keyed_normal
from mixvae.evaluation import Accumulator, Estimate, chunks
from mixvae.single_cell.module import MixtureModule
from mixvae.single_cell.posterior import CellPosterior

DECODED = 2**24
"""Expression values decoded at once while bounds are computed: draws × components × cells × genes."""
OBSM_KEY = "X_mixvae_responsibilities"
OF_COUNTS = ("zinb", "nb")
"""Likelihoods with the parameters that scvi-tools reads by name."""


class MixtureQueries(SCVI):
    """The queries of `scvi.model.SCVI` that a mixture answers differently."""

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
        dataloader: Iterator[dict[str, torch.Tensor]] | None = None,
        *,
        components: bool = False,
        **data_loader_kwargs: Any,
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """Latent representation of the cells.

        Args:
            adata: the cells; those of the model by default.
            indices: use only these cells.
            give_mean: return the mean of the mixture; otherwise one draw from it.
            mc_samples: draws to estimate the mean by if it has no closed form (`latent_distribution="ln"`).
            batch_size: cells at once.
            return_dist: return mean and variance of the mixture instead, both (cells, latent).
            dataloader: batches of cells, instead of `adata`.
            components: return means and variances of every component instead, both (cells, S, latent): the paper's
                features.
            **data_loader_kwargs: what scvi-tools' data loader takes.

        Returns:
            (cells, latent), or a pair of arrays. With "ln", moments are of z before the softmax.
        """
        self._check_if_trained(warn=False)
        dataloader = self._batches(adata, indices, batch_size, dataloader, **data_loader_kwargs)
        parts: list[tuple[torch.Tensor, ...]] = []
        for tensors in dataloader:
            qz: CellPosterior = self.module.inference(**self.module._get_inference_input(tensors))[MODULE_KEYS.QZ_KEY]
            if components:
                parts.append((qz.means, qz.scales.square()))
            elif return_dist:
                parts.append((qz.loc, qz.variance))
            elif not give_mean:
                parts.append((self.module.z_encoder.transform(qz.sample()),))
            elif self.module.latent_distribution == "ln":
                parts.append((self.module.z_encoder.transform(qz.sample((mc_samples,))).mean(0),))
            else:
                parts.append((qz.loc,))
        arrays = tuple(torch.cat(part).cpu().numpy() for part in zip(*parts, strict=True))
        return (arrays[0], arrays[1]) if len(arrays) == 2 else arrays[0]

    def get_bounds(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | np.ndarray | None = None,
        n_mc_samples: int = 1_000,
        batch_size: int | None = None,
        *,
        seed: int = 0,
        dataloader: Iterator[dict[str, torch.Tensor]] | None = None,
        decoded: int = DECODED,
    ) -> Estimate:
        """ELBO, MISELBO and pooled bound of log p(x) of every cell, with errors and diagnostics, in nats.

        Noise is keyed by (seed, cell, draw): the numbers do not depend on batch size or the order of cells.

        Args:
            adata: the cells; those of the model by default.
            indices: use only these cells.
            n_mc_samples: draws per cell over all components, rounded up to a multiple of S.
            batch_size: cells at once.
            seed: seed of the draws.
            dataloader: batches of cells, instead of `adata`.
            decoded: expression values decoded at once; memory depends on it.

        Raises:
            ValueError: there are no draws, or the data are minified.
        """
        parts = []
        each = self._draws_per_component(n_mc_samples)
        for tensors, numbers in self._numbered(adata, indices, batch_size, dataloader):
            accumulator = Accumulator(each)
            most = decoded // (self.module.n_components * tensors[REGISTRY_KEYS.X_KEY].numel())
            for start, stop in chunks(each, most):
                accumulator.add(self._keyed_terms(tensors, numbers, start, stop, seed))
            parts.append(accumulator.result())
        arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        return Estimate(**arrays, components=self.module.n_components, draws_per_component=each, seed=seed)

    def get_marginal_ll(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | np.ndarray | None = None,
        n_mc_samples: int = 1_000,
        batch_size: int | None = None,
        return_mean: bool = True,
        dataloader: Iterator[dict[str, torch.Tensor]] | None = None,
        data_loader_kwargs: dict | None = None,
        *,
        bound: Literal["pooled", "miselbo", "elbo"] = "pooled",
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
            bound: pooled, the tightest; the paper's MISELBO; or the ELBO. `get_bounds` returns all, with errors.
            seed: seed of the draws.
            n_mc_samples_per_pass: ignored, as memory is bounded anyway; for scvi-tools' callers.
        """
        del data_loader_kwargs, n_mc_samples_per_pass
        estimate = self.get_bounds(adata, indices, n_mc_samples, batch_size, seed=seed, dataloader=dataloader)
        values: np.ndarray = getattr(estimate, bound)
        return float(values.mean()) if return_mean else torch.from_numpy(values)

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
        each = self._draws_per_component(n_mc_samples)
        covered, apart = [], []
        for tensors, numbers in self._numbered(adata, indices, batch_size, None):
            terms = self._keyed_terms(tensors, numbers, 0, each, seed)
            covered.append(shares(terms).T.cpu().numpy())
            apart.append(jsd(terms).cpu().numpy())
        if key_added is not None and indices is None:
            (self.adata if adata is None else adata).obsm[key_added] = np.concatenate(covered)
        return np.concatenate(covered), np.concatenate(apart)

    def _batches(
        self,
        adata: AnnData | None,
        indices: Sequence[int] | np.ndarray | None,
        batch_size: int | None,
        dataloader: Iterator[dict[str, torch.Tensor]] | None,
        **data_loader_kwargs: Any,
    ) -> Any:
        """Batches of cells: the given ones, or those of an AnnData."""
        if dataloader is not None:
            return dataloader
        adata = self._validate_anndata(adata)
        return self._make_data_loader(adata=adata, indices=indices, batch_size=batch_size, **data_loader_kwargs)

    def _draws_per_component(self, n_mc_samples: int) -> int:
        if n_mc_samples < 1:
            raise ValueError(f"n_mc_samples must be at least 1; got {n_mc_samples}")
        return -(-n_mc_samples // self.module.n_components)

    def _numbered(
        self,
        adata: AnnData | None,
        indices: Sequence[int] | np.ndarray | None,
        batch_size: int | None,
        dataloader: Iterator[dict[str, torch.Tensor]] | None,
    ) -> Iterator[tuple[dict[str, torch.Tensor], np.ndarray]]:
        """Batches of cells with the cells' indices, in evaluation mode."""
        if self.minified_data_type is not None:
            raise ValueError("bounds need the counts, which minified data lack: use the full AnnData")
        numbers = None
        if dataloader is None:
            self._check_if_trained(warn=False)
            adata = self._validate_anndata(adata)
            numbers = np.arange(adata.n_obs)[slice(None) if indices is None else np.asarray(indices)]
            dataloader = self._make_data_loader(adata=adata, indices=numbers, batch_size=batch_size)
        self.module.eval()
        first = 0
        for tensors in dataloader:
            last = first + len(tensors[REGISTRY_KEYS.X_KEY])
            yield tensors, np.arange(first, last) if numbers is None else numbers[first:last]
            first = last

    @torch.inference_mode()
    def _keyed_terms(
        self, tensors: dict[str, torch.Tensor], numbers: np.ndarray, start: int, stop: int, seed: int
    ) -> Terms:
        latent = self.module.n_latent + (not self.module.use_observed_lib_size)
        noise = keyed_normal(seed, numbers, start, stop, (self.module.n_components, latent))
        return self.module.terms(tensors, stop - start, noise=noise.float())

    @torch.inference_mode()
    def get_likelihood_parameters(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | np.ndarray | None = None,
        n_samples: int = 1,
        give_mean: bool = False,
        batch_size: int | None = None,
        dataloader: Iterator[dict[str, torch.Tensor]] | None = None,
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
        """Decoded expression as by `scvi.model.SCVI.get_normalized_expression`, each draw from one component.

        Args:
            *args: what `scvi.model.SCVI.get_normalized_expression` takes.
            **kwargs: what `scvi.model.SCVI.get_normalized_expression` takes.

        Raises:
            ValueError: importance weights are requested for a likelihood for which scvi-tools cannot compute them.
        """
        if kwargs.get("weights") == "importance" and self.module.gene_likelihood not in OF_COUNTS:
            raise ValueError(
                f"importance weights are for the likelihoods zinb and nb; got {self.module.gene_likelihood}: use "
                'weights="uniform"'
            )
        return super().get_normalized_expression(*args, **kwargs)
