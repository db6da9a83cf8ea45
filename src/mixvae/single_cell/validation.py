"""What models of cells check before scvi-tools does: counts, genes and setup of every AnnData, and saved models."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from anndata import AnnData
from scvi import REGISTRY_KEYS
from scvi.data._constants import _FIELD_REGISTRIES_KEY, _SETUP_ARGS_KEY
from scvi.data._utils import _is_minified
from scvi.model.base import ArchesMixin, BaseMinifiedModeModelClass, RNASeqMixin, VAEMixin

from mixvae.single_cell.choices import check_categories, check_groups, chosen_cells
from mixvae.single_cell.data import check_counts, check_genes, check_setup
from mixvae.single_cell.loading import CellLoader
from mixvae.single_cell.priors import weights_to_come


class ValidatedCells(RNASeqMixin, VAEMixin, ArchesMixin, BaseMinifiedModeModelClass):
    """A model of scvi-tools that refuses wrong cells; precedes SCVI's class or scANVI's among the bases."""

    module: Any
    _data_loader_cls = CellLoader

    def __init__(self, *args: Any, **kwargs: Any):
        self._checked: set[str] = set()
        super().__init__(*args, **kwargs)

    @classmethod
    def load_query_data(
        cls,
        adata: AnnData | None = None,
        reference_model: Any = None,
        registry: dict | None = None,
        inplace_subset_query_vars: bool = False,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Map new cells onto a reference model by scArches surgery, as scvi-tools does.

        Args:
            adata: the new cells.
            reference_model: a trained model, or the folder of one.
            registry: setup of data from a data module, instead of cells.
            inplace_subset_query_vars: match the genes of `adata` to the reference's.
            *args: what scvi-tools' `load_query_data` takes.
            **kwargs: what scvi-tools' `load_query_data` takes.

        Raises:
            ValueError: the genes are not those of the reference.

        References:
            Lotfollahi et al., Mapping single-cell data to reference atlases by transfer learning (2022),
            https://doi.org/10.1038/s41587-021-01001-7
        """
        if adata is not None and reference_model is not None and not inplace_subset_query_vars:
            genes = cls.prepare_query_anndata(adata, reference_model, return_reference_var_names=True)
            check_genes(adata.var_names, genes)
        with weights_to_come():
            return super().load_query_data(adata, reference_model, registry, inplace_subset_query_vars, *args, **kwargs)

    @staticmethod
    def prepare_query_anndata(
        adata: AnnData, reference_model: Any, return_reference_var_names: bool = False, inplace: bool = True
    ) -> Any:
        """Match the genes of new cells to those of a reference model, as scvi-tools does.

        Genes that the cells lack get counts of 0; a warning says how many there are.

        Args:
            adata: the new cells.
            reference_model: a trained model, or the folder of one.
            return_reference_var_names: return the names of the model's genes instead.
            inplace: change `adata`; otherwise return what it would become.
        """
        genes = ArchesMixin.prepare_query_anndata(adata, reference_model, return_reference_var_names=True)
        if return_reference_var_names:
            return genes
        lacking = genes.difference(adata.var_names)
        if 0 < len(lacking) < len(genes):
            warnings.warn(
                f"these cells lack {len(lacking)} of the model's {len(genes)} genes (such as {lacking[0]}), which get "
                "counts of 0 as if they had been measured: results may be unreliable",
                UserWarning,
                stacklevel=2,
            )
        return ArchesMixin.prepare_query_anndata(adata, reference_model, inplace=inplace)

    @classmethod
    def load(cls, dir_path: str, adata: AnnData | None = None, *args: Any, **kwargs: Any) -> Any:
        """Load a saved model, as scvi-tools does; the file is a pickle: load only what you trust.

        Args:
            dir_path: folder written by `save`.
            adata: cells with the same genes; by default those that were saved with the model.
            *args: what scvi-tools' `load` takes.
            **kwargs: what scvi-tools' `load` takes.

        Raises:
            ValueError: the genes are not those on which the model was trained.
        """
        if "n_components" in kwargs:
            raise ValueError(
                f"the number of components is that of the model in {dir_path}: leave n_components out "
                "(MixtureSCVI.from_scvi_model makes a mixture of any size from a trained SCVI)"
            )
        with warnings.catch_warnings(), weights_to_come():
            warnings.filterwarnings("error", message="`var_names` for the loaded")
            try:
                return super().load(dir_path, adata, *args, **kwargs)
            except ValueError as error:
                if not str(error).startswith("It appears you are loading a model from a different class"):
                    raise
                raise ValueError(
                    f"{dir_path} holds a model of another class than {cls.__name__}: load it with its own class, and "
                    f"pass it to {cls.__name__}.from_scvi_model"
                ) from None
            except UserWarning:
                raise ValueError(
                    f"this AnnData does not have the genes that {dir_path} was trained on, in their order: "
                    f"{cls.__name__}.prepare_query_anndata(adata, dir_path) brings them into line"
                ) from None

    def _validate_anndata(self, adata: AnnData | None = None, copy_if_view: bool = True) -> AnnData:
        """Check the cells of a query, and set them up like those of the model."""
        if adata is not None and adata is not self._adata and not _is_minified(adata):
            if "X" not in self.registry[_FIELD_REGISTRIES_KEY]:
                raise ValueError("this model was made without cells and knows no genes: give batches as dataloader=…")
            check_genes(adata.var_names, self.get_var_names())
            setup = self.registry[_SETUP_ARGS_KEY]
            categories = [setup["batch_key"], *(setup["categorical_covariate_keys"] or [])]
            numbers = [setup["size_factor_key"], *(setup["continuous_covariate_keys"] or [])]
            check_setup(adata, categories, numbers, setup["layer"])
            check_categories(adata, self.registry)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*has fewer than 3 cells")  # matters only to a training
            return super()._validate_anndata(adata, copy_if_view)

    def differential_expression(
        self,
        adata: AnnData | None = None,
        groupby: str | None = None,
        group1: Any = None,
        group2: Any = None,
        idx1: Any = None,
        idx2: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Genes that are expressed differently in groups of cells, as in scvi-tools' `differential_expression`.

        Args:
            adata: the cells; those of the model by default.
            groupby: column of `obs` with the groups.
            group1: the group, or groups, to compare; all by default.
            group2: the group to compare with; all other cells by default.
            idx1: numbers or mask of the cells to compare, or a query of `obs`, instead of groups.
            idx2: the cells to compare with, likewise.
            *args: what scvi-tools' `differential_expression` takes.
            **kwargs: what scvi-tools' `differential_expression` takes.

        Raises:
            MissingKey: there is no such column.
            ValueError: there are no such groups or cells, or counts on disk were opened by anndata.
        """
        adata = self._validate_anndata(adata)
        several = [group1] if group1 is None or isinstance(group1, str) or not np.iterable(group1) else group1
        check_groups(adata, groupby, [*several, group2], [idx1, idx2])
        counts = self.get_anndata_manager(adata, required=True).get_from_registry(REGISTRY_KEYS.X_KEY)
        if kwargs.get("all_stats", True) and not hasattr(counts, "sum"):
            raise ValueError(
                "differential expression sums counts, which cannot be done where anndata leaves them on disk: open the "
                "file with mixvae.single_cell.read_cells([file], backed=True), or read it into memory"
            )
        return super().differential_expression(adata, groupby, group1, group2, idx1, idx2, *args, **kwargs)

    @property
    def _counted(self) -> bool:
        """Whether the likelihood is of counts."""
        return self.module.gene_likelihood != "normal"

    def _make_data_loader(
        self,
        adata: AnnData,
        indices: Any = None,
        batch_size: int | None = None,
        shuffle: bool = False,
        data_loader_class: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Batches of cells, whose counts and indices are checked first."""
        self._check_counts(adata)
        numbers = chosen_cells(indices, adata.n_obs)
        data_loader_class = data_loader_class or self._data_loader_cls
        if issubclass(data_loader_class, CellLoader):
            kwargs["counted"] = self._counted
        return super()._make_data_loader(adata, numbers, batch_size, shuffle, data_loader_class, **kwargs)

    def _check_counts(self, adata: AnnData) -> None:
        """Check the counts of an AnnData: all at first, and later a sample, as they may have been changed in place."""
        manager = self.get_anndata_manager(adata, required=True)
        known = manager.adata_uuid in self._checked
        if _is_minified(adata) or (known and adata.isbacked):  # batches from disk are checked when they are read
            return
        layer, counts = self.registry[_SETUP_ARGS_KEY]["layer"], manager.get_from_registry(REGISTRY_KEYS.X_KEY)
        check_counts(adata, counts, layer, counted=self._counted, sampled=known)
        self._checked.add(manager.adata_uuid)
