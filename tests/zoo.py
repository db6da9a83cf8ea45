"""Every kind of posterior, prior and decoder, small enough for exact answers."""

import torch
from torch import nn

from mixvae.decoders import (
    Bernoulli,
    ContinuousBernoulli,
    ConvDecoder,
    Decoder,
    GaussianLikelihood,
    LogisticMixture,
    MLPDecoder,
    PixelCNNDecoder,
)  # fmt: skip
from mixvae.flows import CouplingFlow, InverseAutoregressiveFlow
from mixvae.networks import (
    GatedConvEncoder,
    GatedConvTrunk,
    GatedEncoder,
    GatedTrunk,
    GaussianNetwork,
    TwoLevelConv,
    TwoLevelDense,
)  # fmt: skip
from mixvae.posteriors import FlowPosterior, OneHotPosterior, SeparateEncoders, TwoLevelPosterior
from mixvae.priors import GaussianMixturePrior, StandardNormal, TwoLevelPrior, VampPrior

SHAPE, LATENT, COMPONENTS, BATCH = (1, 4, 4), 2, 3, 4
LAYERS = ((3, 3, 1), (2, 3, 2))


class UserEncoder(nn.Module):
    """What a user may have: no base class, dropout and all."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2 * LATENT))

    def forward(self, x):
        return self.net(x).chunk(2, -1)


def separate():
    return SeparateEncoders(lambda: GatedEncoder(SHAPE, LATENT, (5,)), COMPONENTS, [3.0, 2.0, 1.0])


def two_level(latent=LATENT // 2):
    return TwoLevelPosterior(lambda: TwoLevelDense(SHAPE, latent, (5,)), COMPONENTS)


POSTERIORS = {
    "separate": lambda: SeparateEncoders(lambda: GatedEncoder(SHAPE, LATENT, (5,)), COMPONENTS),
    "separate, weighted": lambda: SeparateEncoders(
        lambda: GatedEncoder(SHAPE, LATENT, (5,)), COMPONENTS, [3.0, 2.0, 1.0]
    ),
    "separate, learned weights": lambda: SeparateEncoders(UserEncoder, COMPONENTS, learn_weights=True),
    "convolutional": lambda: SeparateEncoders(lambda: GatedConvEncoder(SHAPE, LATENT, LAYERS), COMPONENTS),
    "shared autoregressive flow": lambda: FlowPosterior(
        separate(), lambda: InverseAutoregressiveFlow(LATENT, 2, (6,)), LATENT
    ),
    "flow per component": lambda: FlowPosterior(
        separate(), lambda: CouplingFlow(LATENT, 2, (6,)), LATENT, per_component=True
    ),
    "one-hot": lambda: OneHotPosterior(lambda: GatedTrunk(SHAPE, (5,)), SHAPE, LATENT, COMPONENTS),
    "one-hot, convolutional, weighted": lambda: OneHotPosterior(
        lambda: GatedConvTrunk(SHAPE, LAYERS), SHAPE, LATENT, COMPONENTS, [3.0, 2.0, 1.0]
    ),
    "two levels": two_level,
    "two levels, flow on the lower": lambda: FlowPosterior(
        TwoLevelPosterior(lambda: TwoLevelConv(SHAPE, 1, LAYERS, 5), COMPONENTS), lambda: CouplingLike(), 1
    ),
}
PRIORS = {
    "standard normal": lambda q: StandardNormal(LATENT),
    "Gaussian mixture": lambda q: GaussianMixturePrior(LATENT, 3),
    "VampPrior": lambda q: VampPrior(q, SHAPE, 5),
    "VampPrior from examples": lambda q: VampPrior(q, SHAPE, 5, examples=data("Bernoulli")[0].repeat(3, 1, 1, 1)),
    "VampPrior on the real line": lambda q: VampPrior(q, SHAPE, 5, squash=nn.Identity()),
}
TWO_LEVEL_PRIORS = {
    "chain": lambda q: TwoLevelPrior(StandardNormal(1), GaussianNetwork(1, 1, (5,)), 1),
    "chain with VampPrior": lambda q: TwoLevelPrior(
        VampPrior(two_level().double().top_level(), SHAPE, 4), GaussianNetwork(1, 1, (5,)), 1
    ),
}
DECODERS = {
    "Bernoulli": lambda: MLPDecoder(LATENT, SHAPE, (5,)),
    "continuous Bernoulli": lambda: MLPDecoder(LATENT, SHAPE, (5,), ContinuousBernoulli),
    "Gaussian": lambda: MLPDecoder(LATENT, SHAPE, (5,), GaussianLikelihood(SHAPE)),
    "convolutional": lambda: ConvDecoder(LATENT, SHAPE, 3),
    "discretised logistics": lambda: MLPDecoder(LATENT, SHAPE, (5,), LogisticMixture(SHAPE)),
    "PixelCNN": lambda: PixelCNNDecoder(LATENT, SHAPE, 3, 4),
    "PixelCNN of discretised logistics": lambda: PixelCNNDecoder(
        LATENT, SHAPE, 2, 4, likelihood=LogisticMixture(SHAPE)
    ),
    "user network": lambda: Decoder(nn.Sequential(nn.Linear(LATENT, 16), nn.Unflatten(-1, SHAPE)), Bernoulli),
}


BINARY = ("Bernoulli", "user network", "convolutional", "PixelCNN")


class CouplingLike(nn.Module):
    """A flow on one coordinate, with torch's own transforms."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([1.3]))

    def forward(self):
        return torch.distributions.transforms.IndependentTransform(
            torch.distributions.transforms.AffineTransform(0.2, self.scale), 1
        )


def data(decoder):
    x = torch.rand(BATCH, *SHAPE)
    return ((x < 0.5).float() if decoder in BINARY else (x * 255).round() / 255), BATCH
