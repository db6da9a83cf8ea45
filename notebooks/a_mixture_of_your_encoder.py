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
# # A mixture of your encoder
#
# An ordinary VAE of digits becomes a Mixture VAE in one line. Then: a likelihood with its errors, a paired
# comparison, and a training that can be killed and resumed. It downloads nothing.
#
# ## Your VAE
#
# An encoder that returns a mean and a log-variance, and a decoder that returns logits. Nothing here knows of mixvae.

# %%
# %matplotlib inline
import torch
from torch import nn


class Encoder(nn.Module):
    """Mean and log-variance of z."""

    def __init__(self, latent: int = 8):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU())
        self.mean, self.log_var = nn.Linear(128, latent), nn.Linear(128, latent)

    def forward(self, x):
        """Encode images (B, 1, 8, 8)."""
        h = self.body(x)
        return self.mean(h), self.log_var(h)


class Pixels(nn.Module):
    """Logits of the pixels."""

    def __init__(self, latent: int = 8):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(latent, 128), nn.ReLU(), nn.Linear(128, 64), nn.Unflatten(-1, (1, 8, 8)))

    def forward(self, z):
        """Decode latents (…, latent)."""
        return self.body(z)


# %% [markdown]
# The data: scikit-learn's handwritten digits, 8×8, binarised at ½ to fit a Bernoulli likelihood.

# %%
import mixvae
from mixvae import figures

data = mixvae.load_dataset("digits", binarize="threshold")
x = data.test.batch(slice(None))
print(len(data.train), len(data.validation), len(data.test), "images of shape", data.shape)
figures.images(x[:24].numpy(), columns=12)

# %% [markdown]
# ## One line
#
# `SeparateEncoders` takes whatever makes one encoder, and the number of them. `Decoder` says which distribution the
# logits are the parameters of; a likelihood needs that, where a loss does not.


# %%
def mixture(components: int) -> mixvae.MixtureVAE:
    """The same VAE with more encoders."""
    torch.manual_seed(0)
    posterior = mixvae.SeparateEncoders(Encoder, components)  # the one line
    return mixvae.MixtureVAE(posterior, mixvae.StandardNormal(8), mixvae.Decoder(Pixels(), mixvae.Bernoulli))


# %% [markdown]
# Both are trained alike: the same bound, rate and number of epochs, and four draws per step, one from each of four
# encoders or four from one, because more draws alone raise the likelihood. β, the weight of the KL part, rises from 0
# to 1 during the first epochs, so that no latent is given up before the decoder can use it.

# %%
from functools import partial

options = mixvae.TrainingOptions(epochs=40, warmup=15, optimizer=partial(torch.optim.Adam, lr=4e-3))
models = {components: mixture(components) for components in (1, 4)}
histories = {
    components: mixvae.fit(model, data, options, draws_per_component=4 // components)
    for components, model in models.items()
}
for components, history in histories.items():
    best = max(row["validation"] for row in history if row["beta"] == 1)
    print(f"S = {components}: {best:.2f} nats on validation images, best of {len(history)} epochs")
histories[4].figure

# %% [markdown]
# ## A likelihood with its errors
#
# log p(x) is an integral over z. `evaluate` bounds it from below with draws from a proposal that is fitted to each
# image, and reports two errors: over images, and over draws. `total_draws` counts all draws of an image, so that both
# models are evaluated with as many. Every row of the table is an upper bound on −log p(x), so that lower is better: the
# headline NLL, and three that draw from the encoders alone.

# %%
estimates = {components: mixvae.evaluate(model, x, total_draws=400) for components, model in models.items()}
for components, estimate in estimates.items():
    summary = estimate.summary()
    print(
        f"S = {components}: NLL {summary['nll']:.2f} ± {summary['nll_se']:.2f} (images) "
        f"± {summary['nll_mc_se']:.3f} (draws), expected bias {summary['nll_bias']:.4f}, tight: {summary['tight']}"
    )
estimates[4]

# %% [markdown]
# `tight` is true where the bias is at most 0.01 nats and Pareto k̂ reliable for at least 95 % of the images. The
# picture shows both for every image.

# %%
estimates[4].figure

# %% [markdown]
# ## The gain, paired
#
# Images differ from each other far more than the models do. The difference on the same image leaves that out, and its
# error is the one that counts.

# %%
gain = mixvae.paired_gain(estimates[4], estimates[1])
print(f"four encoders gain {gain.mean:.2f} ± {gain.se:.2f} nats on the same {len(x)} images")

# %% [markdown]
# This error is over images. It says whether *these two trainings* differ, not whether four encoders are better:
# another seed is another training. `mixvae sweep` trains several, and [results](../docs/results.md) has such a
# comparison.
#
# ## What it has learnt
#
# Each row below is one component's path between two digits, decoded along the way: `interpolate` never mixes the
# coordinates of two encoders. Samples show the mean of p(x|z) for z from the prior.

# %%
paths = mixvae.interpolate(models[4], x[0], x[1], steps=9)
figures.interpolations(x[0].numpy(), x[1].numpy(), paths.numpy())

# %%
figures.images(models[4].sample(24, seed=0).numpy(), columns=12)

# %% [markdown]
# ## Killed, and resumed
#
# With `run=`, a training is a folder with checkpoints. The callback below stops the first training after eight
# epochs, as Ctrl-C or a power cut might; the same call without it continues from there.

# %%
from pathlib import Path
from tempfile import mkdtemp

from mixvae.training import StopTraining

folder = Path(mkdtemp())


def power_cut(row):
    """Stop after eight epochs."""
    if row["epoch"] == 8:
        raise StopTraining


interrupted = mixture(4)
first = mixvae.fit(interrupted, data, options, epochs=20, run=folder / "S4", callbacks=[power_cut])
second = mixvae.fit(mixture(4), data, options, epochs=20, run=folder / "S4")
print("stopped after", len(first), "epochs, then trained to", len(second))

# %% [markdown]
# The result is that of a training that nothing stopped, bit for bit. `load` is given a model to fill, since the
# classes of a notebook cannot be imported; those of a module can, and `mixvae.load(folder)` is enough.

# %%
whole = mixture(4)
mixvae.fit(whole, data, options, epochs=20)
resumed = mixvae.load(folder / "S4", mixture(4))
same = all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
print("the same weights:", same)
assert same

# %% [markdown]
# `mixvae list`, `mixvae evaluate` and `mixvae report` take that folder, too. Next: [which posterior is
# better?](which_posterior_is_better.py)
