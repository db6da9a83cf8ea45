"""`MixtureSCANVI`: scvi-tools' scANVI with a mixture of encoders."""

from __future__ import annotations

from typing import Any, Literal

from anndata import AnnData
from scvi.model import SCANVI, SCVI

from mixvae.priors import StandardNormal
from mixvae.single_cell.choices import check_known, check_labels
from mixvae.single_cell.data import check_setup
from mixvae.single_cell.loading import LabelSplitter
from mixvae.single_cell.minifying import Minifying
from mixvae.single_cell.model import MixtureSCVI
from mixvae.single_cell.plans import FusedSemiSupervisedTrainingPlan
from mixvae.single_cell.scanvae import MixtureSCANVAE


class MixtureSCANVI(Minifying, SCANVI):
    """`scvi.model.SCANVI` with `n_components` encoders, q(z₁|x) = 1/S Σ_s q_s(z₁|x); everything else is scANVI's.

    `predict` averages the components' probabilities, so that a cell on which they disagree is predicted with less
    confidence. Likelihoods and bounds are those under the prior induced by labels, p(z₁) = Σ_y p(y) ∫ p(z₂) p(z₁|z₂, y)
    dz₂, for which z₂ is one more latent; scvi-tools uses a standard normal prior there.

    Args:
        adata: cells set up by `setup_anndata`, some of which have labels.
        registry: setup of data from a data module, as for scANVI.
        n_hidden: units per hidden layer.
        n_latent: dimensions of the latent.
        n_layers: hidden layers of encoders and decoder.
        dropout_rate: dropout rate of the networks.
        dispersion: gene, gene-batch, gene-label or gene-cell.
        gene_likelihood: zinb, nb or poisson.
        use_observed_lib_size: take the library size from the counts; otherwise it is one more latent.
        linear_classifier: classify by a linear layer.
        datamodule: provides the cells instead of `adata`.
        n_components: number of encoders S; 1 is scANVI.
        **model_kwargs: everything else that `scvi.module.SCANVAE` takes.

    Raises:
        ValueError: there are no components; the data are not counts; a cell is empty; the AnnData was not set up.

    Example:
        >>> import numpy as np
        >>> from anndata import AnnData
        >>> from mixvae.single_cell import MixtureSCANVI
        >>> adata = AnnData(np.random.default_rng(0).poisson(2.0, (30, 12)).astype(np.float32))
        >>> adata.obs["type"] = ["B", "T", "unknown"] * 10
        >>> MixtureSCANVI.setup_anndata(adata, labels_key="type", unlabeled_category="unknown")
        >>> model = MixtureSCANVI(adata, n_components=3, n_hidden=8, n_latent=2)
        >>> model.predict(soft=True).shape  # next: model.train(), or MixtureSCANVI.from_scvi_model(…)
        (30, 2)

    References:
        Xu et al., Probabilistic harmonization and annotation of single-cell transcriptomics data with deep generative
        models (2021), https://doi.org/10.15252/msb.20209620
        Kviman et al., Cooperation in the Latent Space (2023), https://arxiv.org/abs/2209.15514
    """

    _module_cls = MixtureSCANVAE
    _training_plan_cls = FusedSemiSupervisedTrainingPlan
    _data_splitter_cls = LabelSplitter
    module: MixtureSCANVAE  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(
        self,
        adata: AnnData | None = None,
        registry: dict | None = None,
        n_hidden: int = 128,
        n_latent: int = 10,
        n_layers: int = 1,
        dropout_rate: float = 0.1,
        dispersion: Literal["gene", "gene-batch", "gene-label", "gene-cell"] = "gene",
        gene_likelihood: Literal["zinb", "nb", "poisson"] = "zinb",
        use_observed_lib_size: bool = True,
        linear_classifier: bool = False,
        datamodule: Any = None,
        *,
        n_components: int = 4,
        **model_kwargs: Any,
    ):
        if n_components < 1:
            raise ValueError(f"n_components must be at least 1; got {n_components}")
        super().__init__(
            adata,
            registry,
            n_hidden,
            n_latent,
            n_layers,
            dropout_rate,
            dispersion,
            gene_likelihood,
            use_observed_lib_size,
            linear_classifier,
            datamodule,
            n_components=n_components,
            **model_kwargs,
        )
        self._model_summary_string = (
            f"MixtureSCANVI, a mixture of {n_components} encoders; otherwise {self._model_summary_string}"
        )
        self.init_params_ = self._get_init_params(locals())
        if adata is not None and not self._awaits_minifying(adata):
            self._check_counts(adata)

    @classmethod
    def setup_anndata(
        cls,
        adata: AnnData,
        labels_key: str,
        unlabeled_category: str,
        layer: str | None = None,
        batch_key: str | None = None,
        size_factor_key: str | None = None,
        categorical_covariate_keys: list[str] | None = None,
        continuous_covariate_keys: list[str] | None = None,
        use_minified: bool = True,
        **kwargs: Any,
    ) -> None:
        """Register counts, labels, batches and covariates, as `scvi.model.SCANVI.setup_anndata` does.

        Args:
            adata: the cells.
            labels_key: column of `obs` with labels.
            unlabeled_category: the label of cells without one.
            layer: layer of the raw counts; `X` by default.
            batch_key: column of `obs` with the batch.
            size_factor_key: column of `obs` with size factors to use instead of library sizes.
            categorical_covariate_keys: columns of `obs` with further categories.
            continuous_covariate_keys: columns of `obs` with numbers.
            use_minified: register minified cells as such.
            **kwargs: what scvi-tools passes on when it transfers a setup.

        Raises:
            MissingKey: a column or layer is missing; both a `KeyError`, as in scvi-tools, and a `ValueError`.
            ValueError: a column lacks the value of a cell or holds text for numbers, the counts are a sparse array, or
                `adata` is not an AnnData.
        """
        source = kwargs.get("source_registry")
        filled_in = source is not None and labels_key not in getattr(adata, "obs", ())  # by scvi-tools, which warns
        labels = [] if filled_in else [labels_key]
        categories = [batch_key, *labels, *(categorical_covariate_keys or [])]
        check_setup(adata, categories, [size_factor_key, *(continuous_covariate_keys or [])], layer)
        if source is None:
            check_labels(adata.obs[labels_key], unlabeled_category)
        elif labels:
            known = source["field_registries"]["labels"]["state_registry"]["categorical_mapping"]
            check_known(adata.obs[labels_key], known, f"give such cells the label {unlabeled_category!r}")
        super().setup_anndata(
            adata,
            labels_key,
            unlabeled_category,
            layer,
            batch_key,
            size_factor_key,
            categorical_covariate_keys,
            continuous_covariate_keys,
            use_minified,
            **kwargs,
        )

    @classmethod
    def from_scvi_model(
        cls, scvi_model: SCVI, unlabeled_category: str, labels_key: str | None = None, *args: Any, **kwargs: Any
    ) -> MixtureSCANVI:
        """Start from a trained mixture: its encoders and its decoder.

        Args:
            scvi_model: a trained `MixtureSCVI`.
            unlabeled_category: the label of cells without one.
            labels_key: column of `obs` with the labels; by default that of the model's setup.
            *args: what `scvi.model.SCANVI.from_scvi_model` takes.
            **kwargs: what `scvi.model.SCANVI.from_scvi_model` takes.

        Raises:
            ValueError: the model is not a mixture, has a frozen decoder, or has a prior that scANVI cannot use.
        """
        if not isinstance(scvi_model, MixtureSCVI):
            raise ValueError(
                f"from_scvi_model takes a MixtureSCVI; got a {type(scvi_model).__name__}: "
                "MixtureSCVI.from_scvi_model(…, n_components=…) makes one from a trained SCVI"
            )
        if not isinstance(scvi_model.module.prior, StandardNormal):
            raise ValueError(
                "scANVI has a prior made of labels: start from a MixtureSCVI with the prior standard_normal"
            )
        scvi_model.becomes_mixture = True
        try:
            return super().from_scvi_model(scvi_model, unlabeled_category, labels_key, *args, **kwargs)
        finally:
            del scvi_model.becomes_mixture
