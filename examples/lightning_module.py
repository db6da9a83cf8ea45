"""A Mixture VAE inside somebody else's training: a LightningModule, whose Trainer does the rest.

`mixvae.fit` needs none of this. It is for projects whose loop, callbacks and clusters are Lightning's already.
"""

from __future__ import annotations

from functools import partial

import lightning.pytorch as lightning
import torch
from torch import Tensor
from torch.utils.data import DataLoader

import mixvae
from mixvae.bounds import elbo, log_weights
from mixvae.gradients import reparameterised
from mixvae.networks import GatedEncoder


class LightningMixture(lightning.LightningModule):
    """Maximises the ELBO of a `MixtureVAE`."""

    def __init__(self, model: mixvae.MixtureVAE, rate: float = 1e-3):
        super().__init__()
        self.model, self.rate = model, rate

    def training_step(self, x: Tensor, index: int) -> Tensor:
        """Negative ELBO, in nats per example."""
        return -reparameterised(self.model, x, elbo, draws_per_component=1).mean()

    def validation_step(self, x: Tensor, index: int) -> None:
        """The same with fresh draws, as the metric `validation`."""
        terms = self.model(x)
        self.log("validation", elbo(log_weights(terms), terms.weight).mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), self.rate)


def main(epochs: int = 5) -> float:
    """Train on the digits; returns the validation ELBO in nats."""
    data = mixvae.load_dataset("digits", binarize="threshold", limit=500)
    posterior = mixvae.SeparateEncoders(partial(GatedEncoder, data.shape, 2, (32,)), components=3)
    model = mixvae.MixtureVAE(posterior, mixvae.StandardNormal(2), mixvae.MLPDecoder(2, data.shape, (32,)))
    examples = (part.batch(slice(None)) for part in (data.train, data.validation))
    train, validation = (DataLoader(x, 100) for x in examples)  # pyright: ignore[reportArgumentType]
    trainer = lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(LightningMixture(model), train, validation)
    return float(trainer.callback_metrics["validation"])


if __name__ == "__main__":
    torch.manual_seed(0)
    print(f"validation ELBO {main():.2f} nats")
