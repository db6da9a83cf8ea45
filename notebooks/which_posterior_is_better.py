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
# # Which posterior is better?
#
# A Mixture VAE may have a higher ELBO for two reasons: its decoder is better, or its posterior q(z|x) is nearer to
# the exact p(z|x). This notebook tells the two apart. The models have two latents, so that the exact posterior can be
# drawn. It downloads nothing.

# %%
# %matplotlib inline
from functools import partial

import numpy as np
import torch

import mixvae
from mixvae import figures
from mixvae.evaluation import split_gain
from mixvae.networks import GatedEncoder

data = mixvae.load_dataset("digits", binarize="threshold")
x, labels = data.test.batch(slice(0, 200)), np.asarray(data.test.y)[:200]


def mixture(components: int) -> mixvae.MixtureVAE:
    """Encoders for two latents, and one decoder."""
    torch.manual_seed(0)
    posterior = mixvae.SeparateEncoders(partial(GatedEncoder, data.shape, 2, (64, 64)), components)
    return mixvae.MixtureVAE(posterior, mixvae.StandardNormal(2), mixvae.MLPDecoder(2, data.shape, (64, 64)))


options = mixvae.TrainingOptions(epochs=40, warmup=15, optimizer=partial(torch.optim.Adam, lr=4e-3))
models = {components: mixture(components) for components in (1, 4)}
for components, model in models.items():
    rows = mixvae.fit(model, data, options, draws_per_component=4 // components)  # four draws per step for both
    print(f"S = {components}: {max(row['validation'] for row in rows):.2f} nats on validation images")

# %% [markdown]
# ## Draws from the encoder are not enough
#
# The usual estimate of log p(x) weighs draws from q(z|x). It is a lower bound, and loose where q misses a part of
# p(z|x). Pareto k̂ estimates how heavy the tail of the weights is; above the threshold, the estimate cannot be relied
# on.

# %%
usual = mixvae.evaluate(models[1], x, total_draws=400, proposal="posterior")
tight = mixvae.evaluate(models[1], x, total_draws=400)
for name, estimate in (("draws from the encoder", usual), ("refined proposal", tight)):
    summary = estimate.summary()
    print(
        f"{name}: NLL {summary['nll']:.2f}, k̂ too large for {summary['pareto_k_unreliable']:.0%} of the images, "
        f"{summary['ess']:.0f} effective draws of {summary['total_draws']}"
    )
usual.figure

# %% [markdown]
# The refined proposal is fitted to each image: its modes, the curvature there, and a few pilot draws that are then
# thrown away. Same model, same number of draws:

# %%
tight.figure

# %% [markdown]
# ## A better model, or a better posterior?
#
# With log p(x) known, the gain of the ELBO splits, image by image, into Δ log p(x), a better model, and −Δ KL(q(z|x)
# ‖ p(z|x)), a better posterior.

# %%
estimates = {1: tight, 4: mixvae.evaluate(models[4], x, total_draws=400)}


def show(gain) -> None:
    """The three parts, in nats."""
    for name, part in zip(("ELBO", "model", "posterior"), gain, strict=True):
        print(f"{name:>9}: {part.mean:+.3f} ± {part.se:.3f}")


show(split_gain(estimates[4], estimates[1]))

# %% [markdown]
# The errors are over images; another seed is another training.
#
# Here is a check with a known answer. Take the trained model of one encoder, copy its encoder four times, and train
# the copies behind the *same* decoder. The model cannot change, so all of the gain must be the posterior's.

# %%
frozen = models[1].extended(4)
frozen.freeze("decoder", "prior")
mixvae.fit(frozen, data, options, epochs=20, warmup=0)
gain = split_gain(mixvae.evaluate(frozen, x, total_draws=400), estimates[1])
show(gain)
assert abs(gain.model.mean) < 0.02  # the two estimates of log p(x) differ by their draws only

# %% [markdown]
# ## The exact posteriors
#
# With two latents, p(z|x) is a picture: below in grey, by quadrature, with the encoders as ellipses. These are the
# images where the one encoder fits worst. Where p(z|x) has two modes, a Gaussian lies between them or covers one;
# elsewhere the encoder simply misses.

# %%
from mixvae.analysis import exact_posteriors, overlap

chosen = [int(i) for i in tight.kl_posterior.argsort()[-3:]]  # where one encoder fits worst
exact_posteriors(models[1], x[chosen], points=121).figure

# %% [markdown]
# The four copies behind the same decoder, for the same images:

# %%
exact_posteriors(frozen, x[chosen], points=121).figure

# %% [markdown]
# ## What each component does
#
# KL between components says which of them are copies of each other; the share says how much of the exact posterior
# each one explains.

# %%
found = overlap(models[4], x, labels=labels)
print(found)
print("redundant:", found.redundant() or "none")
found.figure

# %% [markdown]
# Do components specialise on classes, or do they share out the posterior of every image?

# %%
found.classes

# %%
figures.reconstructions(x[:8].numpy(), models[4].reconstruct(x[:8]).numpy())

# %% [markdown]
# [Likelihoods](../docs/likelihoods.md) explains how the tight bound is made and checked.
