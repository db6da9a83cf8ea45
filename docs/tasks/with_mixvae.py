"""The twelve tasks in mixvae. Run in an empty folder."""

from functools import partial
from shutil import copytree

from given import EPOCHS, Encoder, Pixels, new, test, train, validation
from lightning_fabric.loggers import CSVLogger

from mixvae import (
    Bernoulli,
    Decoder,
    MixtureVAE,
    MLPDecoder,
    SeparateEncoders,
    StandardNormal,
    encode,
    evaluate,
    export,
    fit,
    interpolate,
    load,
    paired_gain,
)
from mixvae.networks import GatedEncoder

# %% Train on your own array
posterior = SeparateEncoders(partial(GatedEncoder, (1, 8, 8), 8), components=4)
model = MixtureVAE(posterior, StandardNormal(8), MLPDecoder(8, (1, 8, 8)))
fit(model, (train, validation), epochs=EPOCHS)

# %% Your own encoder and decoder
own = MixtureVAE(SeparateEncoders(Encoder, components=4), StandardNormal(8), Decoder(Pixels(), Bernoulli))

# %% Resume an interrupted training
fit(own, (train, validation), epochs=EPOCHS, run="runs/mine")

# %% Write the losses of every epoch to a file
fit(own, (train, validation), epochs=EPOCHS, loggers=[CSVLogger("losses")])

# %% Negative log-likelihood with its standard error
estimate = evaluate(model, test, total_draws=1000)
print(estimate.summary()["nll"], estimate.summary()["nll_se"])

# %% Embed
# the mean of the mixture; encode gives mean and standard deviation of every component, (N, 4, 8)
z = encode(model, test)[0].mean(1)

# %% Sample
samples = model.sample(16)

# %% Interpolate between two pictures
path = interpolate(model, test[0], test[1], steps=8)

# %% Compare two models, with an error
print(paired_gain(estimate, evaluate(own, test, total_draws=1000)))

# %% Embed new data with a model trained earlier
trained = load("runs/mine")
z = encode(trained, new)[0].mean(1)

# %% Export the decoder as a program that needs no library but torch
export(model, "decoder.pt2", part="decoder")

# %% Share a trained model
copytree("runs/mine", "shared")
received = load("shared")
