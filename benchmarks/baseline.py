"""A plain Mixture VAE, as published code writes it: Python loops over components, and the same maths.

One encoder call per component, one decoder call per component, S² densities one by one, the VampPrior computed
anew for every component with broadcast Normals, the Bernoulli likelihood by probabilities, log(sigmoid(l) + 1e-8), and
Adam as it comes.
"""

import copy
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
            self.pseudo = nn.Parameter(model.prior.raw_inputs.detach().clone())

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


def plain_pair(fused, weight, bias):
    """The two halves of a gated layer as layers of their own."""
    made = []
    for w, b in zip(weight.chunk(2), bias.chunk(2), strict=True):
        layer = fused(w.shape[1], w.shape[0])
        layer.weight.data.copy_(w)
        layer.bias.data.copy_(b)
        made.append(layer)
    return made


class PlainGatedConv(nn.Module):
    """Two convolutions and their product, in the default memory layout."""

    def __init__(self, fused):
        super().__init__()
        conv = fused.conv

        def make(inputs, outputs):
            return nn.Conv2d(inputs, outputs, conv.kernel_size, conv.stride, conv.padding)

        self.value, self.gate = plain_pair(make, conv.weight.contiguous(), conv.bias)

    def forward(self, x):
        return self.value(x) * torch.sigmoid(self.gate(x))


def plain_trunk(trunk):
    return nn.Sequential(*(PlainGatedConv(layer) for layer in trunk.convs), nn.Flatten())


class PlainPixelCNN(nn.Module):
    """Masked 3×3 convolutions of image and context together, once for every component."""

    def __init__(self, decoder):
        super().__init__()
        network = decoder.network
        self.conditioning = nn.Sequential(
            PlainGate(decoder.conditioning[0]), nn.Unflatten(-1, decoder.conditioning[1].unflattened_size)
        )
        first = torch.cat([network.image.weight, network.context.weight], 1).detach()
        above = torch.zeros(3, 3)
        above[0], above[1, 0] = 1, 1
        itself = above.clone()
        itself[1, 1] = 1
        channels = network.image.weight.shape[1]
        seen = torch.cat([above.expand(channels, 3, 3), torch.ones(first.shape[1] - channels, 3, 3)])
        self.weights = nn.ParameterList([first, *(layer.weight.detach().clone() for layer in network.hidden)])
        self.masks = [seen, *[itself] * len(network.hidden)]
        self.norms, self.out = copy.deepcopy(network.norms), copy.deepcopy(network.out)

    def forward(self, x, z):
        context, before = self.conditioning(z), None
        h = torch.cat([2 * x - 1, context], 1)
        for weight, mask, norm in zip(self.weights, self.masks, self.norms, strict=True):
            convolved = norm(F.conv2d(h, weight * mask, padding=1).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            h = F.relu(convolved if before is None else convolved + before)
            before = h
        return self.out(h)


class PlainComposite(nn.Module):
    """The composite's weights, computed in loops: two levels, VampPrior on z2, shared flow on z1, PixelCNN."""

    def __init__(self, model):
        super().__init__()
        self.encoders = copy.deepcopy(model.posterior.base.encoders)
        for encoder in self.encoders:
            encoder.upper, encoder.lower = plain_trunk(encoder.upper), plain_trunk(encoder.lower)
        self.flow, self.lower = copy.deepcopy(model.posterior.flows[0]), copy.deepcopy(model.prior.lower)
        self.pseudo = nn.Parameter(model.prior.top.raw_inputs.detach().clone())
        self.pixels = PlainPixelCNN(model.decoder)
        self.latent = model.posterior.latent

    def forward(self, x, noise):
        """ELBO of every example, with one draw per component; noise is (S, B, 2 D)."""
        d, s_all, total = self.latent, len(self.encoders), torch.zeros(len(x))
        encoded = [encoder(x) for encoder in self.encoders]
        for s, (mean, log_var, below) in enumerate(encoded):
            z2 = mean + (0.5 * log_var).exp() * noise[s, :, :d]
            mean1, log_var1 = below(z2)
            z1 = mean1 + (0.5 * log_var1).exp() * noise[s, :, d:]
            flowed, volume = self.flow().call_and_ladj(z1)
            log_q = []
            for m2, v2, other in encoded:
                m1, v1 = other(z2)
                log_q.append(
                    Normal(m2, (0.5 * v2).exp()).log_prob(z2).sum(-1)
                    + Normal(m1, (0.5 * v1).exp()).log_prob(z1).sum(-1)
                    - volume
                )
            log_mixture = torch.logsumexp(torch.stack(log_q), 0) - math.log(s_all)
            u, parts = torch.sigmoid(self.pseudo), []
            for encoder in self.encoders:
                m, v = encoder.encode_top(u)
                parts.append(Normal(m, (0.5 * v).exp()).log_prob(z2[:, None]).sum(-1))
            log_p2 = torch.logsumexp(torch.cat(parts, 1), 1) - math.log(len(u) * s_all)
            m, v = self.lower(z2)
            log_p1 = Normal(m, (0.5 * v).exp()).log_prob(flowed).sum(-1)
            p = torch.sigmoid(self.pixels(x, torch.cat([z2, flowed], -1)))
            log_px = (x * torch.log(p + 1e-8) + (1 - x) * torch.log(1 - p + 1e-8)).flatten(1).sum(1)
            total = total + log_px + log_p2 + log_p1 - log_mixture
        return total / s_all


class PlainConvPixelCNN(nn.Module):
    """Convolutional encoders and a PixelCNN decoder with a normal prior, in loops."""

    def __init__(self, model):
        super().__init__()
        self.encoders = copy.deepcopy(model.posterior.encoders)
        for encoder in self.encoders:
            encoder.trunk = plain_trunk(encoder.trunk)
        self.pixels = PlainPixelCNN(model.decoder)

    def forward(self, x, noise):
        """ELBO of every example, with one draw per component; noise is (S, B, D)."""
        parameters = [encoder(x) for encoder in self.encoders]
        total = torch.zeros(len(x))
        for s, (mean, log_var) in enumerate(parameters):
            z = mean + (0.5 * log_var).exp() * noise[s]
            log_q = [Normal(m, (0.5 * v).exp()).log_prob(z).sum(-1) for m, v in parameters]
            log_mixture = torch.logsumexp(torch.stack(log_q), 0) - math.log(len(log_q))
            p = torch.sigmoid(self.pixels(x, z))
            log_px = (x * torch.log(p + 1e-8) + (1 - x) * torch.log(1 - p + 1e-8)).flatten(1).sum(1)
            total = total + log_px + Normal(0.0, 1.0).log_prob(z).sum(-1) - log_mixture
        return total / len(parameters)
