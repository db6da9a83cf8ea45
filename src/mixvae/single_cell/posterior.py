"""The posterior of cells in scvi-tools' form: a distribution with cells first."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution, constraints

from mixvae.distributions import DiagonalGaussian


class CellPosterior(Distribution):
    """q(z|x_b) = 1/S Σ_s N(z; μ_bs, diag σ²_bs) for a batch of cells.

    It replaces the Normal that scvi-tools calls `qz`: cells come first, so that batches can be concatenated and cells
    indexed along axis 0, and `log_prob` ends in an axis of size 1, which scvi-tools sums over.

    Args:
        means: μ.
        scales: σ.

    Example:
        >>> import torch
        >>> from mixvae.single_cell import CellPosterior
        >>> qz = CellPosterior(torch.zeros(5, 3, 2), torch.ones(5, 3, 2))  # cells, components, latents
        >>> qz.sample((4,)).shape, qz.log_prob(torch.zeros(5, 2)).shape
        (torch.Size([4, 5, 2]), torch.Size([5, 1]))
    """

    arg_constraints = {"means": constraints.real, "scales": constraints.positive}
    support = constraints.real
    has_rsample = True

    def __init__(self, means: Float[Tensor, "B S D"], scales: Float[Tensor, "B S D"]):
        self.means, self.scales = means, scales
        self.components = DiagonalGaussian(means.transpose(0, 1), 2 * scales.transpose(0, 1).log())
        self.mixture = self.components.mixture()
        super().__init__(means.shape[:1] + means.shape[2:], validate_args=False)

    @property
    def loc(self) -> Float[Tensor, "B D"]:
        """Mean of the mixture."""
        return self.mixture.mean

    mean = loc

    @property
    def scale(self) -> Float[Tensor, "B D"]:
        """Standard deviation of the mixture, within the components and between them."""
        return self.variance.sqrt()

    stddev = scale

    @property
    def variance(self) -> Float[Tensor, "B D"]:
        """Variance of the mixture, within the components and between them."""
        return self.mixture.variance

    def sample(self, sample_shape: Sequence[int] = ()) -> Float[Tensor, "*L B D"]:
        """Draw from the mixture: choose a component for every draw and cell, then draw from it."""
        return self.mixture.sample(sample_shape)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Float[Tensor, "*L B D"]:
        """Draw from the mixture with gradients, as `Mixture.rsample` does."""
        return self.mixture.rsample(sample_shape)

    def log_prob(self, value: Float[Tensor, "*L #B D"]) -> Float[Tensor, "*L B 1"]:
        """Log-density in nats; points with a cell axis of size 1 are scored for every cell, as one product."""
        cells = len(self.means)
        if value.shape[-2] == cells:
            return self.mixture.log_prob(value).unsqueeze(-1)
        scored = self.components.pairwise_log_prob(value.reshape(-1, value.shape[-1])) + self.components.log_pi[:, None]
        return scored.logsumexp(-2).reshape(*value.shape[:-2], cells, 1)

    def mean_entropy(self) -> Float[Tensor, " B"]:
        """Mean over components of their entropies, in nats."""
        return (0.5 * math.log(2 * math.pi * math.e) + self.scales.log()).sum(-1).mean(-1)

    def kl_to_standard_normal(self) -> Float[Tensor, " B"]:
        """Mean over components of KL(q_s ‖ N(0, I)), in closed form; minus the JSD, it is the mixture's KL."""
        square = self.means.square() + self.scales.square()
        return 0.5 * (square - 1 - 2 * self.scales.log()).sum(-1).mean(-1)


class ComponentEncoders(nn.ModuleDict):
    """S encoders of scvi-tools in place of a single one.

    They are named c0, c1, … because surgery on a trained model (scArches) finds layers by ".0." and ".1." in their
    names, and would unfreeze an encoder named 0.

    Args:
        encoders: of the class `scvi.nn.Encoder`.
    """

    def __init__(self, encoders: Iterable[nn.Module]):
        super().__init__({f"c{i}": encoder for i, encoder in enumerate(encoders)})

    def transform(self, z: Tensor) -> Tensor:
        """Turn latents into the decoder's input: softmax for the logistic normal, nothing for the normal."""
        transformation: Callable[[Tensor], Tensor] = self["c0"].z_transformation
        return transformation(z)

    def z_transformation(self, z: Tensor) -> Tensor:
        """Return z unchanged: the posterior's densities are those of z before `transform`."""
        return z

    def forward(self, x: Float[Tensor, "B G"], *covariates: Tensor) -> tuple[CellPosterior, None]:
        """Return the posterior of every cell; draws are taken from it when needed."""
        means, scales = zip(*(moments(encoder, x, *covariates) for encoder in self.values()), strict=True)
        return CellPosterior(torch.stack(means, 1), torch.stack(scales, 1)), None


def moments(encoder: Any, x: Float[Tensor, "B G"], *covariates: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and scale of one encoder of scvi-tools.

    Its forward pass would draw as well. No draw may be taken before it is needed: cells with counts and minified ones,
    which are not encoded, then have the same draws for the same seed.
    """
    hidden = _hidden(encoder.encoder, x, *covariates)
    variance = encoder.var_activation(encoder.var_encoder(hidden)) + encoder.var_eps
    return encoder.mean_encoder(hidden), variance.sqrt()


def _hidden(layers: Any, x: Tensor, *covariates: Tensor) -> Tensor:
    """Output of scvi-tools' hidden layers, whose own forward pass copies x even if it joins no covariates to it."""
    if layers.n_cov:
        return layers(x, *covariates)
    for layer in chain.from_iterable(layers.fc_layers):
        x = x if layer is None else layer(x)
    return x
