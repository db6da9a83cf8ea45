"""How far apart components are, and how much of the posterior each one covers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from mixvae import figures
from mixvae._resources import check, short
from mixvae._tables import Row, Tabular
from mixvae._trying import Observations, observations
from mixvae.bounds import Terms, jsd, log_weights
from mixvae.distributions import keyed_normal
from mixvae.model import MixtureVAE, evaluating

DENSITIES = 2**22
"""Cross densities computed at once."""
SAME = 0.1
"""Symmetrised KL in nats below which two components count as one."""
IDLE = 0.01
"""Share of the posterior, relative to 1/S, below which a component counts as idle."""


@dataclass(frozen=True, repr=False)
class Overlap(Tabular):
    """How the components of a mixture relate to each other, and what each one does for each of N examples.

    Args:
        kl: KL(q_i ‖ q_j) in nats, averaged over examples, (S, S).
        jsd: Jensen–Shannon divergence of the components in nats, (N,).
        kl_prior: KL(q_s(z|x) ‖ p(z)) in nats, (N, S).
        shares: share of the exact posterior p(z|x) that each component is responsible for, (N, S); sums to one over S.
        labels: class of every example (N,), if there are any.

    Example:
        >>> import numpy as np
        >>> from mixvae.analysis import Overlap
        >>> kl = np.array([[0.0, 0.01, 5.0], [0.01, 0.0, 5.0], [5.0, 5.0, 0.0]])
        >>> measured = Overlap(kl, np.ones(4), np.ones((4, 3)), np.tile([0.5, 0.2, 0.3], (4, 1)))
        >>> measured.redundant()
        {1: 'is the same as component 0 within 0.02 nats'}
        >>> measured.nearest()
        [(1, 0.02), (0, 0.02), (0, 10.0)]
    """

    kl: np.ndarray
    jsd: np.ndarray
    kl_prior: np.ndarray
    shares: np.ndarray
    labels: np.ndarray | None = None

    @property
    def share(self) -> np.ndarray:
        """Share of the posterior that each component covers, averaged over examples, (S,); sums to one."""
        return self.shares.mean(0)

    @property
    def table(self) -> list[Row]:
        """One row per component: share, kl_prior, nearest, kl_nearest (both ways, in nats), redundant."""
        redundant = self.redundant()
        return [
            {
                "component": j, "share": float(self.share[j]), "kl_prior": float(self.kl_prior[:, j].mean()),
                "nearest": other, "kl_nearest": distance, "redundant": redundant.get(j, ""),
            }
            for j, (other, distance) in enumerate(self.nearest())
        ]  # fmt: skip

    @property
    def figure(self) -> Figure:
        """Pairwise KL of the components as a matrix, with their shares beside it."""
        return figures.overlap(self.kl, self.share, self.redundant())

    @property
    def spread(self) -> Figure:
        """Box plots over examples of the JSD, and of every component's KL to the prior."""
        return figures.spread(self.jsd, self.kl_prior)

    def by_label(self) -> tuple[np.ndarray, np.ndarray]:
        """Classes (C,), and the share of each class's posterior that each component covers, (C, S).

        Raises:
            ValueError: the examples have no labels.
        """
        if self.labels is None:
            raise ValueError("responsibilities by label need labels; these data have none")
        classes = np.unique(self.labels)
        return classes, np.stack([self.shares[self.labels == c].mean(0) for c in classes])

    @property
    def classes(self) -> Figure:
        """Which component explains which class: shares by label as a matrix."""
        return figures.classes(*self.by_label())

    def nearest(self) -> list[tuple[int, float]]:
        """For each component the nearest other one, and their symmetrised KL in nats; itself if it is the only one."""
        both = self.kl + self.kl.T
        np.fill_diagonal(both, np.inf)
        return [(int(row.argmin()), float(row.min())) if len(row) > 1 else (0, np.inf) for row in both]

    def redundant(self, same: float = SAME, idle: float = IDLE) -> dict[int, str]:
        """Components that could be left out, each with the reason.

        From the smallest share to the largest, a component is redundant if it is idle, or the same as one that is kept.

        Args:
            same: symmetrised KL in nats below which two components count as one.
            idle: share, relative to 1/S, below which a component counts as idle.
        """
        both, reasons = self.kl + self.kl.T, dict[int, str]()
        for j in np.argsort(self.share):
            others = [i for i in range(len(self.share)) if i != j and i not in reasons]
            if self.share[j] < idle / len(self.share):
                reasons[int(j)] = f"covers {self.share[j]:.2%} of the posterior"
            elif others and both[j, others].min() < same:
                twin = others[int(both[j, others].argmin())]
                reasons[int(j)] = f"is the same as component {twin} within {both[j, twin]:.2g} nats"
        return dict(sorted(reasons.items()))


def shares(terms: Terms) -> Float[Tensor, "J B"]:
    """Share of the exact posterior p(z|x) that each component covers, E_{p(z|x)}[π_j q_j(z) / q(z)], in float64.

    Estimated as its responsibility under self-normalised importance weights, with a bias of order 1/draws; sums to
    one over j.

    Args:
        terms: the densities of one pass.

    Example:
        >>> import torch
        >>> from mixvae.analysis import shares
        >>> from mixvae.bounds import Terms
        >>> zero, pi = torch.zeros(8, 2, 1), torch.tensor([0.25, 0.75])  # equal components of weights ¼ and ¾
        >>> shares(Terms(zero, zero, torch.zeros(8, 2, 2, 1), pi.log(), pi, torch.arange(2))).T.numpy().round(4)
        array([[0.25, 0.75]])
    """
    log_w = log_weights(terms).double() + terms.weight.double().log()[:, None]
    normalised = log_w.flatten(0, 1).softmax(0).view_as(log_w)
    responsibility = (terms.log_q.double() + terms.log_pi.double()[:, None]).softmax(2)
    return torch.einsum("lsb,lsjb->jb", normalised, responsibility)


def overlap(
    model: MixtureVAE,
    x: Observations,
    draws_per_component: int = 16,
    *,
    seed: int = 0,
    labels: np.ndarray | None = None,
    examples: Sequence[int] | None = None,
) -> Overlap:
    """Measure how far components are from each other and from the prior, and what share of p(z|x) each one covers.

    KL(q_i ‖ q_j) = E_{q_i}[log q_i(z) − log q_j(z)], and likewise against the prior, is estimated from draws of every
    component, flows and chains included. The share of component j is E_{p(z|x)}[π_j q_j(z) / q(z)], its responsibility
    under importance weights.

    Args:
        model: the model.
        x: observations, an array or tensor of numbers.
        draws_per_component: draws per component.
        seed: seed of the draws.
        labels: class of every example (N,), if there are any.
        examples: numbers of the examples, which key their noise; their positions in x by default.

    Raises:
        ValueError: there are no examples or no draws.

    Example:
        >>> import torch
        >>> from mixvae import MixtureVAE, MLPDecoder, SeparateEncoders, StandardNormal
        >>> from mixvae.networks import GatedEncoder
        >>> from mixvae.analysis import overlap
        >>> posterior = SeparateEncoders(lambda: GatedEncoder((4,), 2, (5,)), 3)
        >>> model = MixtureVAE(posterior, StandardNormal(2), MLPDecoder(2, (4,), (5,)))
        >>> measured = overlap(model, torch.ones(6, 4))
        >>> measured.kl.shape, measured.jsd.shape, measured.shares.shape
        ((3, 3), (6,), (6, 3))
    """
    x = observations(x, model)
    if len(x) == 0 or draws_per_component < 1:
        raise ValueError(f"the overlap needs at least one example and one draw; got {len(x)} and {draws_per_component}")
    keys = np.arange(len(x)) if examples is None else np.asarray(examples)
    with torch.no_grad(), evaluating(model):
        prior = model.prior()
        components = model.posterior(x[:1]).batch_shape[0]
        needed = 8 * draws_per_component * components * (components + prior.event_shape.numel())
        check(needed, f"{short(draws_per_component)} draws of each of {components} components", "give fewer draws")
        size = max(1, DENSITIES // (draws_per_component * components**2))
        kl = x.new_zeros(components, components, dtype=torch.float64)
        parts: list[dict[str, Tensor]] = []
        for batch, numbers in zip(x.split(size), np.split(keys, range(size, len(keys), size)), strict=True):
            q = model.posterior(batch)
            noise = keyed_normal(seed, numbers, 0, draws_per_component, (components, q.event_shape[0]))
            terms = model.terms(batch, q, prior, draws_per_component, noise=noise.to(batch))
            log_q = terms.log_q.double()
            own = terms.log_own().double()
            kl += (own.unsqueeze(2) - log_q).mean(0).sum(-1)
            parts.append(
                {
                    "jsd": jsd(terms).double(),
                    "kl_prior": (own - terms.log_pz.double()).mean(0).T,
                    "shares": shares(terms).T,
                }
            )
    each = {name: torch.cat([part[name] for part in parts]).cpu().numpy() for name in parts[0]}
    return Overlap((kl / len(x)).cpu().numpy(), **each, labels=labels)
