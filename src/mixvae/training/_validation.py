"""The bound by which epochs are compared."""

from __future__ import annotations

from dataclasses import replace

from jaxtyping import Float, Int
from torch import Tensor

from mixvae.bounds import log_weights, miselbo
from mixvae.model import MixtureVAE


def validation_bound(
    model: MixtureVAE,
    x: Float[Tensor, "B ..."],
    subset: Int[Tensor, " S"] | None,
    noise: Float[Tensor, "L S B D"],
) -> Float[Tensor, " B"]:
    """MISELBO of the model, or of a fixed subset Φ of its components as a mixture of its own, in nats per example.

    q_Φ(z|x) = Σ_{s∈Φ} π_s q_s(z|x) / Π with Π = Σ_{s∈Φ} π_s, and the value is

        Σ_{s∈Φ} π_s/Π log 1/L Σ_l p(x, z_sl) / q_Φ(z_sl|x),    z_sl ~ q_s(z|x),

    a lower bound on log p(x) for every Φ, as q_Φ is a distribution. The estimators for subsets that training uses are
    unbiased over a *random* Φ and no bound for a fixed one: their outer weights A/S · π_s do not sum to one over Φ, and
    draws of Φ scored under all components can exceed log p(x), by log A/S if the others lie far away. That an unchosen
    component is bad is not seen here; in return only Φ is encoded.

    Args:
        model: the model.
        x: a batch of observations.
        subset: the components Φ; all by default.
        noise: standard normal noise of the draws.
    """
    terms = model(x, len(noise), active=subset, scored=subset, noise=noise)
    if subset is not None:
        terms = replace(
            terms, log_pi=terms.log_pi - terms.log_pi.logsumexp(0), weight=terms.weight / terms.weight.sum()
        )
    return miselbo(log_weights(terms), terms.weight)
