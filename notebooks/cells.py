# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Cells
#
# `MixtureSCVI` is `scvi.model.SCVI` with several encoders: the same AnnData in, the same methods, one keyword more.
# Here: a latent space, a UMAP, held-out likelihoods that can be compared, how well cell types can be told apart, what
# the components are for, and labels for cells that have none.
# Needs `pip install 'mixvae[scvi]'`, and downloads nothing.

# %%
# %matplotlib inline
import logging
import warnings

warnings.filterwarnings("ignore")
for name in ("lightning.pytorch", "lightning.fabric"):
    logging.getLogger(name).setLevel(logging.ERROR)

import numpy as np
import scanpy as sc
import scvi

from mixvae.single_cell import MixtureSCVI, diagnose, pbmc68k

scvi.settings.verbosity = logging.ERROR
adata = pbmc68k()
adata

# %% [markdown]
# Blood cells (Zheng et al. 2017) that come with scanpy, as raw counts. `bulk_labels` are cell types that were found
# by comparing each cell with sorted populations; the models never see them.
#
# ## One encoder, and three
#
# Both are trained on the same four fifths of the cells, with the same seed and three draws per step: more draws alone
# raise the likelihood. The other cells are used for nothing but the figures below.


# %%
def trained(components: int) -> MixtureSCVI:
    """A model of four fifths of the cells."""
    scvi.settings.seed = 0
    model = MixtureSCVI(adata, n_components=components)
    model.train(
        max_epochs=80, train_size=0.8, validation_size=0.2, enable_progress_bar=False,
        plan_kwargs={"draws_per_component": 3 // components},
    )  # fmt: skip
    return model


MixtureSCVI.setup_anndata(adata, batch_key="phase")
models = {components: trained(components) for components in (1, 3)}
held_out = models[3].validation_indices
assert set(held_out) == set(models[1].validation_indices)
print(len(models[3].train_indices), "training cells,", len(held_out), "held out")

# %% [markdown]
# ## Latents and a map
#
# The latent of a cell is the mean of the mixture. `components=True` gives the mean and variance of every component
# instead.

# %%
adata.obsm["X_mixvae"] = models[3].get_latent_representation()
mean, variance = models[3].get_latent_representation(components=True)
print("latents", adata.obsm["X_mixvae"].shape, "of each component", mean.shape)

# %%
sc.pp.neighbors(adata, use_rep="X_mixvae", random_state=0)
sc.tl.umap(adata, random_state=0)
sc.pl.umap(adata, color="bulk_labels")

# %% [markdown]
# ## A likelihood that can be compared
#
# Draws from the encoders make a poor estimate of log p(x) of a cell: k̂ says so. `get_bounds` fits a proposal to
# every cell; ELBO, MISELBO and the pooled bound still take their draws from the encoders.

# %%
scored = held_out[:60]  # some of the held-out cells, to save time
usual = models[3].get_bounds(indices=scored, n_mc_samples=1000, proposal="posterior")
estimates = {components: model.get_bounds(indices=scored, n_mc_samples=1000) for components, model in models.items()}
for name, estimate in (("draws from the encoders", usual), ("refined proposal", estimates[3])):
    summary = estimate.summary()
    print(
        f"{name}: NLL {summary['nll']:.2f}, k̂ too large for {summary['pareto_k_unreliable']:.0%} of the cells, "
        f"{summary['ess']:.0f} effective draws of {summary['total_draws']}"
    )
estimates[3].figure

# %% [markdown]
# What three encoders gain over one, cell by cell: in log p(x), a better model, and in −KL(q(z|x) ‖ p(z|x)), a better
# posterior. Together they are the gain of the ELBO.

# %%
from mixvae.evaluation import split_gain

for name, gain in split_gain(estimates[3], estimates[1])._asdict().items():
    print(f"{name:>9}: {gain.mean:+.2f} ± {gain.se:.2f} nats per cell")

# %% [markdown]
# These errors are over cells of one training each; they say nothing about the method.
#
# ## Do the latents keep the cell types?
#
# A linear SVM is fitted to the latents of the training cells and scored on held-out ones, beside ten principal
# components of the same counts, log-normalised.

# %%
from mixvae.analysis import classifiers, classify

normalised = adata.copy()
sc.pp.normalize_total(normalised)
sc.pp.log1p(normalised)
sc.pp.pca(normalised, n_comps=10, random_state=0)
labels = adata.obs["bulk_labels"].to_numpy()
spaces = {"PCA": np.asarray(normalised.obsm["X_pca"])}
spaces |= {f"S = {count}": np.asarray(model.get_latent_representation()) for count, model in models.items()}
train = models[3].train_indices
svm = {"svm": classifiers()["svm"]}
for name, z in spaces.items():
    accuracy = classify(z[train], labels[train], z[held_out], labels[held_out], svm)["svm"]
    print(f"{name}: {accuracy:.1%} of {len(held_out)} held-out cells")

# %% [markdown]
# ## What the components are for
#
# Each row: the share of the cells' exact posteriors that a component covers, the cells that it dominates, and the
# genes whose decoded expression sets its draws apart most.

# %%
found = diagnose(models[3])
print(f"{found.effective_components:.2f} of {models[3].module.n_components} components differ")
found.table

# %%
found.figure({"cell type": adata.obs["bulk_labels"]})

# %% [markdown]
# ## Labels for cells without one
#
# Half of the labels are hidden. `MixtureSCANVI` begins with all encoders and the decoder of a trained mixture, learns
# from the cells whose labels it is shown, and predicts the others. Each component votes; where they disagree, the
# probability is lower.

# %%
from mixvae.single_cell import MixtureSCANVI

types = adata.obs["bulk_labels"].astype(str).to_numpy()
hidden = np.random.default_rng(0).random(adata.n_obs) < 0.5
adata.obs["shown"] = np.where(hidden, "unknown", types)
labelled = MixtureSCANVI.from_scvi_model(models[3], "unknown", labels_key="shown")
labelled.train(max_epochs=20, n_samples_per_label=100, enable_progress_bar=False)
soft = labelled.predict(soft=True)
right = soft.idxmax(axis=1).to_numpy() == types
sure = soft.max(axis=1).to_numpy() > 0.9
print(f"{right[hidden].mean():.1%} of {hidden.sum()} hidden labels are predicted right")
print(f"{right[hidden & sure].mean():.1%} of the {(hidden & sure).sum()} to which the model gives more than 90 %")

# %%
adata.obs["predicted"] = soft.idxmax(axis=1)
sc.pl.umap(adata, color=["bulk_labels", "predicted"], wspace=0.5)

# %% [markdown]
# [Single cells](../docs/single_cell.md) has differential expression, starting from a trained SCVI, and the command
# line.
