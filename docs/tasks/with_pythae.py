"""The twelve tasks in pythae 0.1.2, https://github.com/clementchadebec/benchmark_VAE. Run in an empty folder."""

import json
import os
from glob import glob
from pathlib import Path

import numpy as np
import torch
from given import EPOCHS, Encoder, Pixels, new, test, train, validation
from pythae.models import VAE, AutoModel, VAEConfig
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from pythae.pipelines import TrainingPipeline
from pythae.samplers import NormalSampler
from pythae.trainers import BaseTrainerConfig
from pythae.trainers.training_callbacks import TrainHistoryCallback

# %% Train on your own array
model = VAE(VAEConfig(input_dim=(1, 8, 8), latent_dim=8, reconstruction_loss="bce"))
config = BaseTrainerConfig(output_dir="runs", num_epochs=EPOCHS, learning_rate=1e-3)
TrainingPipeline(model, config)(train, validation)


# %% Your own encoder and decoder
class OwnEncoder(Encoder, BaseEncoder):
    def forward(self, x):
        mean, log_var = super().forward(x)
        return ModelOutput(embedding=mean, log_covariance=log_var)


class OwnDecoder(Pixels, BaseDecoder):
    def forward(self, z):
        return ModelOutput(reconstruction=super().forward(z).sigmoid())


own = VAE(VAEConfig(input_dim=(1, 8, 8), latent_dim=8, reconstruction_loss="bce"), OwnEncoder(), OwnDecoder())

# %% Resume an interrupted training
# none: from the best weights so far; the optimiser, random numbers and the best loss start again
config = BaseTrainerConfig(output_dir="resumed", num_epochs=EPOCHS, learning_rate=1e-3, steps_saving=1)
if done := sorted(glob("resumed/*/checkpoint_epoch_*"), key=os.path.getmtime):
    own, config.num_epochs = AutoModel.load_from_folder(done[-1]), EPOCHS - len(done)
TrainingPipeline(own, config)(train, validation)

# %% Write the losses of every epoch to a file
history = TrainHistoryCallback()
TrainingPipeline(own, config)(train, validation, callbacks=[history])
Path("losses.json").write_text(json.dumps(history.history))

# %% Negative log-likelihood with its standard error
# none for the error: get_nll gives the mean of log p(x) by draws from the encoder
nll = -np.array([model.get_nll(torch.from_numpy(x)[None], n_samples=1000) for x in test])
print(nll.mean(), nll.std(ddof=1) / len(nll) ** 0.5)

# %% Embed
# one draw of z; model.encoder gives the mean
z = model.embed(torch.from_numpy(test))

# %% Sample
samples = NormalSampler(model).sample(16)

# %% Interpolate between two pictures
path = model.interpolate(torch.from_numpy(test[:1]), torch.from_numpy(test[1:2]), granularity=8)

# %% Compare two models, with an error
# none
a, b = (np.array([m.get_nll(torch.from_numpy(x)[None], n_samples=1000) for x in test]) for m in (own, model))
print((a - b).mean(), (a - b).std(ddof=1) / len(a) ** 0.5)

# %% Embed new data with a model trained earlier
trained = AutoModel.load_from_folder(max(glob("runs/*/final_model")))
z = trained.embed(torch.from_numpy(new))

# %% Export the decoder as a program that needs no library but torch
# none: torch.jit.trace works if not strict; the program gives a dictionary
torch.jit.trace(own.decoder, torch.zeros(2, 8), strict=False).save("decoder.pt")

# %% Share a trained model
own.save("shared")
received = AutoModel.load_from_folder("shared")
