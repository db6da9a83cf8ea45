"""A plain Mixture VAE, as published code writes it: Python loops over components, and the same maths.

One encoder call per component, one decoder call per component, S² densities one by one, the VampPrior computed
anew for every component with broadcast Normals, the Bernoulli likelihood by probabilities, log(sigmoid(l) + 1e-8), and
Adam as it comes.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.distributions import Normal

from mixvae.model import MixtureVAE
from mixvae.networks import GatedLinear
from mixvae.priors import VampPrior


class PlainGate(nn.Module):
    """Two linear layers and their product."""

    def __init__(self, fused: GatedLinear):
        super().__init__()
        (value, gate), (value_bias, gate_bias) = fused.linear.weight.chunk(2), fused.linear.bias.chunk(2)
        self.value, self.gate = (nn.Linear(w.shape[1], w.shape[0]) for w in (value, gate))
        for layer, w, b in ((self.value, value, value_bias), (self.gate, gate, gate_bias)):
            layer.weight.data.copy_(w)
            layer.bias.data.copy_(b)

    def forward(self, x):
        return self.value(x) * torch.sigmoid(self.gate(x))


class PlainEncoder(nn.Module):
    def __init__(self, encoder):
        super().__init__()
        self.trunk = nn.Sequential(*(PlainGate(layer) for layer in encoder.trunk))
        halves = zip(encoder.head.weight.chunk(2), encoder.head.bias.chunk(2), strict=True)
        self.heads = nn.ModuleList()
        for w, b in halves:
            head = nn.Linear(w.shape[1], w.shape[0])
            head.weight.data.copy_(w)
            head.bias.data.copy_(b)
            self.heads.append(head)

    def forward(self, x):
        h = self.trunk(x.flatten(1))
        return self.heads[0](h), F.hardtanh(self.heads[1](h), -6.0, 2.0)


class PlainMixtureVAE(nn.Module):
    """The weights of a `MixtureVAE`, computed in loops."""

    def __init__(self, model: MixtureVAE):
        super().__init__()
        network: Any = model.decoder.network
        encoders: Any = model.posterior.encoders
        self.encoders = nn.ModuleList(PlainEncoder(e) for e in encoders)
        gates, last, self.unflatten = network
        self.decoder = nn.Sequential(*(PlainGate(layer) for layer in gates))
        self.last = nn.Linear(last.in_features, last.out_features)
        self.last.load_state_dict(last.state_dict())
        self.pseudo = None
        if isinstance(model.prior, VampPrior):
            self.pseudo = nn.Parameter(model.prior.unsquashed.detach().clone())

    def log_prior(self, z):
        if self.pseudo is None:
            return Normal(0.0, 1.0).log_prob(z).sum(-1)
        u = torch.sigmoid(self.pseudo)
        parts = []
        for encoder in self.encoders:
            mean, log_var = encoder(u)
            parts.append(Normal(mean, (0.5 * log_var).exp()).log_prob(z[:, None]).sum(-1))
        return torch.logsumexp(torch.cat(parts, 1), 1) - math.log(len(u) * len(self.encoders))

    def forward(self, x, noise):
        """ELBO of every example, with one draw per component; noise is (S, B, D)."""
        parameters = [encoder(x) for encoder in self.encoders]
        total = torch.zeros(len(x))
        for s, (mean, log_var) in enumerate(parameters):
            z = mean + (0.5 * log_var).exp() * noise[s]
            p = torch.sigmoid(self.unflatten(self.last(self.decoder(z))))
            log_px = (x * torch.log(p + 1e-8) + (1 - x) * torch.log(1 - p + 1e-8)).flatten(1).sum(1)
            log_q = [Normal(m, (0.5 * v).exp()).log_prob(z).sum(-1) for m, v in parameters]
            log_mixture = torch.logsumexp(torch.stack(log_q), 0) - math.log(len(log_q))
            total = total + log_px + self.log_prior(z) - log_mixture
        return total / len(parameters)
