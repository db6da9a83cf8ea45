"""What a training maximises."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor, nn

from mixvae.bounds import Bound
from mixvae.gradients import Estimator
from mixvae.model import MixtureVAE


class Objective(nn.Module):
    """What is maximised: the bound of every example, as one module that Fabric can wrap.

    Args:
        model: the model to train.
        bound: which bound.
        gradient: how it is differentiated.
        score_all: score every draw under all components, not only under the active ones.
    """

    def __init__(self, model: MixtureVAE, bound: Bound, gradient: Estimator, *, score_all: bool):
        super().__init__()
        self.model, self.bound, self.gradient, self.score_all = model, bound, gradient, score_all

    def forward(
        self,
        x: Float[Tensor, "B ..."],
        noise: Float[Tensor, "L S B D"],
        beta: float,
        active: Int[Tensor, " S"] | None = None,
    ) -> Float[Tensor, " B"]:
        """Return the bound of every example, its KL part scaled by beta."""
        scored = None if self.score_all else active
        return self.gradient(
            self.model, x, self.bound, len(noise), beta=beta, active=active, scored=scored, noise=noise
        )
