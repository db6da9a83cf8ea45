"""`MixtureSCVI`: scvi-tools' SCVI with a mixture of encoders."""

from __future__ import annotations

import inspect
import warnings
from typing import Any, Literal

import numpy as np
import torch
from anndata import AnnData
from scvi.data._constants import _FIELD_REGISTRIES_KEY
from scvi.data._utils import _is_minified
from scvi.model import SCVI
from scvi.model._utils import use_distributed_sampler
from scvi.model.base import BaseMinifiedModeModelClass

from mixvae.posteriors._base import add_noise
from mixvae.priors import StandardNormal
from mixvae.single_cell.data import check_setup
from mixvae.single_cell.loading import DataSplitter
from mixvae.single_cell.minifying import Minifying
from mixvae.single_cell.module import MixtureModule
from mixvae.single_cell.plans import MixtureTrainingPlan
from mixvae.single_cell.priors import begins_as_cells

LONGEST_WARMUP = 400
"""scvi-tools' default epochs of KL warm-up."""


class WithoutCells(BaseMinifiedModeModelClass):
    """Lets a model be made without cells, as scvi-tools does for classes named SCVI: a data module provides them."""

    def __init__(self, adata: AnnData | None = None, registry: dict | None = None):
        bare = adata is None and registry is None
        super().__init__(adata, {_FIELD_REGISTRIES_KEY: {}} if bare else registry)
        self._module_init_on_train = bare


class MixtureSCVI(Minifying, SCVI, WithoutCells):
    """`scvi.model.SCVI` with `n_components` encoders, q(z|x) = 1/S Σ_s q_s(z|x); everything else is SCVI's.

    Args:
        adata: cells set up by `setup_anndata`.
        registry: setup of data from a data module, as for SCVI.
        n_hidden: units per hidden layer.
        n_latent: dimensions of the latent.
        n_layers: hidden layers of encoders and decoder.
        dropout_rate: dropout rate of the networks.
        dispersion: gene, gene-batch, gene-label or gene-cell.
        gene_likelihood: zinb, nb, poisson or normal.
        use_observed_lib_size: take the library size from the counts; otherwise it is one more latent.
        latent_distribution: normal or ln, the logistic normal.
        n_components: number of encoders S; 1 is SCVI.
        freeze_decoder: train the encoders only; usually with `from_scvi_model`.
        prior: p(z): "standard_normal", "gaussian_mixture" of learned Gaussians, or "vamp", the posteriors of learned
            pseudo-cells, initialised as cells chosen at random.
        n_prior_components: number of Gaussians or pseudo-cells; has no meaning for the normal prior.
        **kwargs: everything else that `scvi.module.VAE` takes.

    Raises:
        ValueError: there are no components; the data are not counts although the likelihood is of counts; a cell is
            empty; the AnnData was not set up.

    Example:
        >>> import numpy as np
        >>> from anndata import AnnData
        >>> from mixvae.single_cell import MixtureSCVI
        >>> adata = AnnData(np.random.default_rng(0).poisson(2.0, (30, 12)).astype(np.float32))
        >>> MixtureSCVI.setup_anndata(adata)
        >>> model = MixtureSCVI(adata, n_components=3, n_hidden=8, n_latent=2)
        >>> model.module.n_components, model.is_trained  # next: model.train(), model.get_latent_representation()
        (3, False)

    References:
        Kviman et al., Cooperation in the Latent Space (2023), https://arxiv.org/abs/2209.15514
        Lopez et al., Deep generative modeling for single-cell transcriptomics (2018),
        https://doi.org/10.1038/s41592-018-0229-2
    """

    _module_cls = MixtureModule
    _data_splitter_cls = DataSplitter
    _training_plan_cls = MixtureTrainingPlan
    becomes_mixture = False
    """Whether it is being turned into another model with all of its encoders."""

    def __init__(
        self,
        adata: AnnData | None = None,
        registry: dict | None = None,
        n_hidden: int = 128,
        n_latent: int = 10,
        n_layers: int = 1,
        dropout_rate: float = 0.1,
        dispersion: Literal["gene", "gene-batch", "gene-label", "gene-cell"] = "gene",
        gene_likelihood: Literal["zinb", "nb", "poisson", "normal"] = "zinb",
        use_observed_lib_size: bool = True,
        latent_distribution: Literal["normal", "ln"] = "normal",
        *,
        n_components: int = 4,
        freeze_decoder: bool = False,
        prior: str = "standard_normal",
        n_prior_components: int = 50,
        **kwargs: Any,
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
            latent_distribution,
            n_components=n_components,
            freeze_decoder=freeze_decoder,
            prior=prior,
            n_prior_components=n_prior_components,
            **kwargs,
        )
        self._model_summary_string = (
            f"MixtureSCVI, a mixture of {n_components} encoders; otherwise {self._model_summary_string}"
        )
        self.init_params_ = self._get_init_params(locals())
        if adata is not None and not self._awaits_minifying(adata):
            self._check_counts(adata)
            self._begin_prior(adata)

    @classmethod
    def setup_anndata(
        cls,
        adata: AnnData,
        layer: str | None = None,
        batch_key: str | None = None,
        labels_key: str | None = None,
        size_factor_key: str | None = None,
        categorical_covariate_keys: list[str] | None = None,
        continuous_covariate_keys: list[str] | None = None,
        **kwargs: Any,
    ) -> None:
        """Register counts, batches, labels and covariates, as `scvi.model.SCVI.setup_anndata` does.

        Args:
            adata: the cells.
            layer: layer of the raw counts; `X` by default.
            batch_key: column of `obs` with the batch.
            labels_key: column of `obs` with labels.
            size_factor_key: column of `obs` with size factors to use instead of library sizes.
            categorical_covariate_keys: columns of `obs` with further categories.
            continuous_covariate_keys: columns of `obs` with numbers.
            **kwargs: what scvi-tools passes on when it transfers a setup.

        Raises:
            MissingKey: a column or layer is missing; both a `KeyError`, as in scvi-tools, and a `ValueError`.
            ValueError: a column lacks the value of a cell or holds text for numbers, the counts are a sparse array, or
                `adata` is not an AnnData.
        """
        categories = [batch_key, labels_key, *(categorical_covariate_keys or [])]
        check_setup(adata, categories, [size_factor_key, *(continuous_covariate_keys or [])], layer)
        super().setup_anndata(
            adata,
            layer=layer,
            batch_key=batch_key,
            labels_key=labels_key,
            size_factor_key=size_factor_key,
            categorical_covariate_keys=categorical_covariate_keys,
            continuous_covariate_keys=continuous_covariate_keys,
            **kwargs,
        )

    @classmethod
    def from_scvi_model(
        cls,
        scvi_model: SCVI,
        n_components: int = 4,
        *,
        noise: float = 0.01,
        freeze_decoder: bool = False,
    ) -> MixtureSCVI:
        """Start from a trained SCVI: its decoder, and S copies of its encoder.

        Args:
            scvi_model: a trained `scvi.model.SCVI`.
            n_components: number of encoders S.
            noise: standard deviation of the noise added to the weights of every copy but the first, relative to each
                tensor's own standard deviation.
            freeze_decoder: train the encoders only.

        Raises:
            ValueError: the model was not trained, is a mixture already, or its data are minified.
        """
        if isinstance(scvi_model, cls) or not isinstance(scvi_model, SCVI):
            raise ValueError(f"from_scvi_model takes a scvi.model.SCVI; got a {type(scvi_model).__name__}")
        if not scvi_model.is_trained_ or scvi_model.minified_data_type is not None:
            raise ValueError("from_scvi_model takes an SCVI that was trained, and whose data are not minified")
        model = _rebuild(cls, scvi_model, n_components=n_components, freeze_decoder=freeze_decoder)
        weights = {}
        for name, tensor in scvi_model.module.state_dict().items():
            part, _, rest = name.partition(".")
            copies = [f"{part}.c{i}.{rest}" for i in range(n_components)] if part == "z_encoder" else [name]
            weights |= dict.fromkeys(copies, tensor)
        model.module.load_state_dict(weights)
        for encoder in list(model.module.z_encoder.values())[1:]:
            for parameter in encoder.parameters():
                add_noise(parameter.data, noise)
        model.is_trained_ = True
        model.history_ = {name: frame.copy() for name, frame in (scvi_model.history_ or {}).items()}
        model.module.eval()
        return model

    def as_scvi(self, component: int = 0) -> SCVI:
        """A plain SCVI with one of the encoders, for uses that take only one encoder, such as scANVI.

        Args:
            component: which encoder.

        Raises:
            ValueError: there is no such component, or the prior is not SCVI's.
        """
        if not 0 <= component < self.module.n_components:
            raise ValueError(f"component must be from 0 to {self.module.n_components - 1}; got {component}")
        if not isinstance(self.module.prior, StandardNormal):
            raise ValueError("a plain SCVI has a standard normal prior, but this model has another one")
        model = _rebuild(SCVI, self)
        weights, own = {}, f"z_encoder.c{component}."
        for name, tensor in self.module.state_dict().items():
            if not name.startswith("z_encoder.") or name.startswith(own):
                weights[name.replace(own, "z_encoder.")] = tensor
        model.module.load_state_dict(weights)
        model.is_trained_ = self.is_trained_
        model.module.eval()
        return model

    def train(self, max_epochs: int | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train as `scvi.model.SCVI.train` does.

        The KL warm-up ends with the last epoch at the latest, whereas scvi-tools always takes 400 epochs, however few
        are trained. A batch of one cell at the end of an epoch, which BatchNorm cannot handle, is dropped from it.

        Args:
            max_epochs: maximum number of epochs; chosen by scvi-tools by default.
            *args: what `scvi.model.SCVI.train` takes.
            **kwargs: what `scvi.model.SCVI.train` takes.
        """
        if self.adata is not None:
            self._check_counts(self.adata)
        bound = inspect.signature(super().train).bind(max_epochs, *args, **kwargs)
        options: dict[str, Any] = {**bound.arguments}
        options |= options.pop("trainer_kwargs", options.pop("kwargs", {}))
        if options["max_epochs"] is None and self.adata is not None:
            from scvi.model._utils import get_max_epochs_heuristic

            options["max_epochs"] = get_max_epochs_heuristic(self.adata.n_obs)
        epochs, plan = options["max_epochs"], dict(options.get("plan_kwargs") or {})
        warmup = plan.get("n_epochs_kl_warmup", 0 if plan.get("n_steps_kl_warmup") else None)
        if warmup is None and epochs is not None and "plan_config" not in options:
            plan["n_epochs_kl_warmup"] = min(LONGEST_WARMUP, epochs)
        elif warmup and epochs is not None and warmup > epochs:
            warnings.warn(
                f"the KL warm-up of {warmup} epochs outlasts the {epochs} epochs of training, so that the KL weight "
                f"ends at {epochs / warmup:.2f}: give plan_kwargs={{'n_epochs_kl_warmup': …}} at most {epochs}",
                UserWarning,
                stacklevel=2,
            )
        options["plan_kwargs"] = plan
        loading = {"drop_last": True} if self._leaves_one_cell(options) else {}
        if options.get("datamodule") is None:
            loading["counted"] = self._counted
        options["datasplitter_kwargs"] = {**loading, **(options.get("datasplitter_kwargs") or {})}
        return super().train(**options)

    def _leaves_one_cell(self, options: dict[str, Any]) -> bool:
        """Whether the last batch of an epoch, of each process, would be one cell."""
        if options.get("datamodule") is not None:
            return False
        external = (options.get("datasplitter_kwargs") or {}).get("external_indexing")
        if external:
            cells = len(external[0])
        else:
            cells = int(np.ceil((options.get("train_size") or 0.9) * self.adata.n_obs))
        if use_distributed_sampler(options.get("strategy", "auto")) and isinstance(options.get("devices"), int):
            cells = -(-cells // (options["devices"] * options.get("num_nodes", 1)))
        return cells > 1 and cells % (options.get("batch_size") or 128) == 1

    def _begin_prior(self, adata: AnnData) -> None:
        """Initialise the pseudo-inputs of a VampPrior as cells chosen at random."""
        prior = getattr(getattr(self, "module", None), "prior", None)
        if not begins_as_cells(prior) or _is_minified(adata):
            return
        count = len(prior.raw_inputs)
        if count > adata.n_obs:
            raise ValueError(
                f"{count} pseudo-inputs begin as cells, of which there are {adata.n_obs}: lower n_prior_components"
            )
        chosen = torch.randperm(adata.n_obs)[:count].sort().values.numpy()
        prior.begin_as(next(iter(self._make_data_loader(adata=adata, indices=chosen, batch_size=count))))

    def _check_if_trained(self, warn: bool = True, message: str | None = None) -> None:
        """Refuse plain scANVI, which has one encoder and would silently leave it untrained."""
        if message is not None and message.startswith("Passed in scvi model") and not self.becomes_mixture:
            raise ValueError(
                "scANVI has one encoder and this model a mixture: use MixtureSCANVI.from_scvi_model(model, …), or pass "
                "one of the encoders, SCANVI.from_scvi_model(model.as_scvi(component), …)"
            )
        super()._check_if_trained(warn, **({} if message is None else {"message": message}))


def _rebuild(cls: type[SCVI], model: SCVI, **kwargs: Any) -> Any:
    """An untrained model of another class with a model's settings, data and categories."""
    kept = dict(model.init_params_["non_kwargs"])
    for extra in model.init_params_["kwargs"].values():
        kept |= extra
    for name, parameter in inspect.signature(MixtureSCVI).parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY:  # the mixture's own
            kept.pop(name, None)
    cls.setup_anndata(model.adata, source_registry=model.registry, **model.registry["setup_args"])
    return cls(model.adata, **kept, **kwargs)
