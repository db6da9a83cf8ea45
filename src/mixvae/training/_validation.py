"""The bound by which epochs are compared, and its parts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal, TypedDict

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mixvae.analysis import shares
from mixvae.bounds import Terms, elbo, jsd, log_weights, miselbo, pooled
from mixvae.datasets import Split
from mixvae.distributions import Components, keyed_normal
from mixvae.model import MixtureVAE
from mixvae.training._options import TrainingOptions

BOUNDS = {"miselbo": miselbo, "pooled": pooled}
"""Bounds by which epochs can be compared, by name."""
BATCH = 500
"""Number of examples validated at once."""
SEED = 0


def validation_terms(
    model: MixtureVAE,
    x: Float[Tensor, "B ..."],
    subset: Int[Tensor, " S"] | None,
    noise: Float[Tensor, "L S B D"],
) -> Terms:
    """Terms of the model, or of a fixed subset Φ of its components as a mixture of its own; see `validation_bound`."""
    terms = model(x, len(noise), active=subset, scored=subset, noise=noise)
    if subset is None:
        return terms
    return replace(terms, log_pi=terms.log_pi - terms.log_pi.logsumexp(0), weight=terms.weight / terms.weight.sum())


def validation_bound(
    model: MixtureVAE,
    x: Float[Tensor, "B ..."],
    subset: Int[Tensor, " S"] | None,
    noise: Float[Tensor, "L S B D"],
    bound: Literal["miselbo", "pooled"] = "miselbo",
) -> Float[Tensor, " B"]:
    """MISELBO of the model, or of a fixed subset Φ of its components as a mixture of its own, in nats per example.

    q_Φ(z|x) = Σ_{s∈Φ} π_s q_s(z|x) / Π with Π = Σ_{s∈Φ} π_s, and the value is

        Σ_{s∈Φ} π_s/Π log 1/L Σ_l p(x, z_sl) / q_Φ(z_sl|x),    z_sl ~ q_s(z|x),

    a lower bound on log p(x) for every Φ, as q_Φ is a distribution. The estimators for subsets that training uses are
    unbiased over a *random* Φ, but not a bound for a fixed one: their outer weights A/S · π_s do not sum to one over Φ,
    and draws of Φ scored under all components can exceed log p(x), by log A/S if the others lie far away. A bad
    component outside Φ goes unnoticed; in return only Φ is encoded. The pooled bound is the same with the sum over s
    within the logarithm.

    Args:
        model: the model.
        x: a batch of observations.
        subset: the components Φ; all by default.
        noise: standard normal noise of the draws.
        bound: miselbo or pooled.
    """
    terms = validation_terms(model, x, subset, noise)
    return BOUNDS[bound](log_weights(terms), terms.weight)


class Measured(TypedDict):
    """What validation measures; `Epoch` defines it."""

    validation: float
    reconstruction: float
    kl: float
    jsd: float
    used_components: float


class Validation:
    """Validates a model on the same examples with the same noise each time.

    Args:
        examples: the validation examples, on the model's device.
        subset: the components to validate as a mixture of their own; all by default.
        noise_shape: number of components drawn from, and latent size.
        device: where the model is.
        draws: draws L of each component.
        bound: miselbo or pooled.
    """

    def __init__(
        self,
        examples: Split,
        subset: Int[Tensor, " S"] | None,
        noise_shape: tuple[int, int],
        device: torch.device,
        *,
        draws: int = 1,
        bound: Literal["miselbo", "pooled"] = "miselbo",
    ):
        self.draws, self.bound = draws, BOUNDS[bound]
        self.examples, self.subset, self.noise_shape, self.device = examples, subset, noise_shape, device

    @classmethod
    def of(
        cls,
        examples: Split,
        options: TrainingOptions,
        q: Components,
        device: torch.device,
        *,
        subset_on_device: bool = True,
    ) -> Validation:
        """The validation that the options of a training ask for.

        Args:
            examples: the validation examples, on the model's device.
            options: the options.
            q: the posterior's components for any examples.
            device: where the model is.
            subset_on_device: whether indices of components are on the device too, or on the CPU.

        Raises:
            ValueError: the draws cannot be divided equally among the components.
        """
        components, latent = q.batch_shape[0], q.event_shape[0]
        count = options.validation_components or components
        draws = options.validation_draws or count
        if draws % count:
            raise ValueError(
                f"validation_draws must be a multiple of the number of validated components, {count}; got {draws}"
            )
        order = torch.randperm(components, generator=torch.Generator().manual_seed(SEED))
        fixed = order[:count].sort().values.to(device if subset_on_device else "cpu")
        subset = fixed if count < components else None
        bound = options.validation_bound
        return cls(examples, subset, (count, latent), device, draws=draws // count, bound=bound)

    def __call__(
        self,
        model: MixtureVAE,
        over_all: Callable[[Tensor], Tensor],
        *,
        rank: int = 0,
        world: int = 1,
        report: Callable[[int], object] = lambda done: None,
    ) -> Measured:
        """Means over all examples; each process computes its share.

        Args:
            model: the model, in evaluation mode.
            over_all: sums a tensor over all processes.
            rank: number of this process.
            world: number of processes.
            report: called with the number of examples that this process has done.
        """
        device, dtype = self.device, next(model.parameters()).dtype
        sums, done = torch.zeros(4 + self.noise_shape[0], dtype=torch.float64, device=device), 0
        for rows in torch.arange(len(self.examples))[rank::world].split(BATCH):
            x = self.examples.batch(rows.to(device)).to(dtype)
            noise = keyed_normal(SEED, rows.numpy(), 0, self.draws, self.noise_shape).to(x)
            terms = validation_terms(model, x, self.subset, noise)
            each = (
                self.bound(log_weights(terms), terms.weight),
                elbo(terms.log_px, terms.weight),
                elbo(terms.log_mixture() - terms.log_pz, terms.weight),
                jsd(terms),
            )
            sums += torch.cat([torch.stack([value.double().sum() for value in each]), shares(terms).sum(-1)])
            done += len(rows)
            report(done)
        mean = over_all(sums) / len(self.examples)
        used = torch.special.entr(mean[4:]).sum().exp()
        validation, reconstruction, kl, divergence, used = [*mean[:4].tolist(), float(used)]
        return Measured(
            validation=validation, reconstruction=reconstruction, kl=kl, jsd=divergence, used_components=used
        )
