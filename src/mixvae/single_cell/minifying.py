"""Minified data of mixtures: posteriors of cells instead of their counts."""

from __future__ import annotations

import warnings

import scipy.sparse as sp
from anndata import AnnData
from scvi.data._constants import ADATA_MINIFY_TYPE

from mixvae.single_cell.atlas import Atlas
from mixvae.single_cell.data import check_stored
from mixvae.single_cell.queries import MixtureQueries

TEMPORARY = ("_mixvae_qzm", "_mixvae_qzv")
"""Keys of `obsm` that hold posteriors while data are minified."""


class Minifying(MixtureQueries):
    """Minification as in scvi-tools, which keeps every component."""

    def minify_adata(
        self,
        minified_data_type: str = ADATA_MINIFY_TYPE.LATENT_POSTERIOR,
        use_latent_qzm_key: str | None = None,
        use_latent_qzv_key: str | None = None,
    ) -> None:
        """Keep the posteriors of the cells instead of their counts, as scvi-tools does.

        Means and variances of all components are stored side by side, (cells, S·latent). They are computed unless
        the keys of `obsm` that hold them are given. Those keys may also hold mean and variance of the mixture, (cells,
        latent), as `get_latent_representation(return_dist=True)` returns them: the posterior is then kept as one
        Gaussian with these moments.

        Args:
            minified_data_type: whether to keep the counts too, as in scvi-tools.
            use_latent_qzm_key: key of `obsm` with the means.
            use_latent_qzv_key: key of `obsm` with the variances.

        Raises:
            ValueError: one key without the other, arrays of another shape, or counts that stay on disk.
        """
        if isinstance(self.adata, Atlas):
            raise ValueError(
                "cells whose counts stay on disk cannot be minified: load the model for adata.to_memory(), "
                "and minify that"
            )
        if self._awaits_minifying(self.adata):
            warnings.warn(
                "the cells have no counts, so their library sizes are kept as 0: do not compute expression from them",
                UserWarning,
                stacklevel=2,
            )
        keys = [use_latent_qzm_key, use_latent_qzv_key]
        if None not in keys:
            kept = check_stored(self.adata, keys, self.module.n_latent, self.module.n_components)
            if kept < self.module.n_components:
                warnings.warn(
                    f"one Gaussian with the moments of the mixture is kept instead of its {self.module.n_components} "
                    "components: minify_adata() without keys keeps them all",
                    UserWarning,
                    stacklevel=2,
                )
            super().minify_adata(minified_data_type, *keys)
            return
        if any(keys):
            raise ValueError(f"give keys of both means and variances, or of neither; got {keys[0]} and {keys[1]}")
        moments = self.get_latent_representation(components=True)
        for key, values in zip(TEMPORARY, moments, strict=True):
            self.adata.obsm[key] = values.reshape(len(values), -1)
        original = self.adata
        try:
            super().minify_adata(minified_data_type, *TEMPORARY)
        finally:
            for key in TEMPORARY:
                original.obsm.pop(key, None)
                self.adata.obsm.pop(key, None)

    def _awaits_minifying(self, adata: AnnData) -> bool:
        """Whether cells come without counts but with posteriors, under the keys by which scvi-tools recognises them."""
        held = adata.obsm or {}  # None in a collection
        posteriors = (f"_{self._LATENT_QZM_KEY}", f"_{self._LATENT_QZV_KEY}")
        if adata.isbacked or not all(key in held for key in posteriors):
            return False
        return sp.issparse(adata.X) and adata.X.nnz == 0
