"""Every kind of posterior, prior and decoder, small enough for exact answers."""

import math

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
from mixvae.distributions import Components
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


class FullGaussian(Components):
    """What a user may write: no weights, and noise taken as it comes, which `einsum` demands in one dtype."""

    def __init__(self, loc, factor, log_pi=None):
        self.loc, self.factor = loc, factor
        super().__init__(loc.shape[:2], loc.shape[2:], log_pi)

    def rsample(self, sample_shape=(), noise=None):
        noise = torch.randn(*sample_shape, *self.loc.shape).to(self.loc) if noise is None else noise
        return self.loc + torch.einsum("sbij,...sbj->...sbi", self.factor, noise)

    def noise_of(self, value):
        return torch.linalg.solve_triangular(self.factor, (value - self.loc).unsqueeze(-1), upper=False).squeeze(-1)

    def log_prob(self, value):
        log_det = self.factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return -self.noise_of(value).square().add(math.log(2 * math.pi)).sum(-1) / 2 - log_det

    def select(self, index):
        log_pi = self.log_pi[index] + math.log(len(self.log_pi) / len(index))
        return FullGaussian(self.loc[index], self.factor[index], log_pi)


class OwnFamily(SeparateEncoders):
    """A posterior of the user's own components."""

    def forward(self, x, index=None):
        q = super().forward(x, index)
        factor = torch.diag_embed(q.scale) + 0.3 * torch.ones(LATENT, LATENT).tril(-1).to(q.loc)
        return FullGaussian(q.loc, factor, None if index is None else self.log_pi(index))


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
    "a user's own family": lambda: OwnFamily(lambda: GatedEncoder(SHAPE, LATENT, (5,)), COMPONENTS),
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
