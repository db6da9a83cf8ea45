"""Training steps four ways, pair by pair: published code, a plain function of the same maths, ours, ours compiled.

    OMP_NUM_THREADS=2 python benchmarks/compiled.py [CASE …]

Fully connected models of the paper's sizes (28×28, latent 40, gated 300-300, batch 100). Every round times one step of
each way, optimiser included, one after another, and what is printed are medians of the rounds and of each pair's
ratio. All ways must first give the same bound to 10⁻⁴. For the one-hot encoder the rival is an ordinary VAE, compiled.
"""

import math
import platform
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F
from baseline import PlainMixtureVAE
from test_steps import BATCH, LATENT, PSEUDO, SHAPE, digits, peak_gflops
from torch.utils.flop_counter import FlopCounterMode

from mixvae import MixtureVAE, MLPDecoder, OneHotPosterior, SeparateEncoders, StandardNormal, VampPrior
from mixvae.bounds import elbo
from mixvae.gradients import reparameterised
from mixvae.model import unread
from mixvae.networks import GatedEncoder, GatedTrunk  # fmt: skip
from mixvae.training import keep_freed_memory
from mixvae.training._objective import Inputs, Objective

LOG_2PI = math.log(2 * math.pi)


def separate(components, prior="normal"):
    """A mixture of separate encoders."""
    torch.manual_seed(0)
    posterior = SeparateEncoders(lambda: GatedEncoder(SHAPE, LATENT), components)
    p = VampPrior(posterior, SHAPE, PSEUDO) if prior == "vamp" else StandardNormal(LATENT)
    return MixtureVAE(posterior, p, MLPDecoder(LATENT, SHAPE))


def one_hot(components):
    """One encoder that is told which component to be."""
    torch.manual_seed(0)
    posterior = OneHotPosterior(lambda: GatedTrunk(SHAPE), SHAPE, LATENT, components)
    return MixtureVAE(posterior, StandardNormal(LATENT), MLPDecoder(LATENT, SHAPE))


def plain_function(model):
    """The bound as one function of tensors: what is left when everything but the maths of `model` is taken away."""
    encoders, (trunk, last, _) = model.posterior.encoders, model.decoder.network
    pseudo = model.prior.raw_inputs if isinstance(model.prior, VampPrior) else None
    log_s = math.log(len(encoders))

    def gated(x, layers):
        for layer in layers:
            x = F.glu(F.linear(x, layer.linear.weight, layer.linear.bias), -1)
        return x

    def encode(x):
        heads = [F.linear(gated(x, e.trunk), e.head.weight, e.head.bias).chunk(2, -1) for e in encoders]
        return torch.stack([m for m, _ in heads]), torch.stack([v for _, v in heads]).clamp(-6, 2)

    def log_prior(z):
        if pseudo is None:
            return -0.5 * (z.square() + LOG_2PI).sum(-1)
        mean, log_var = (part.flatten(0, 1).double() for part in encode(torch.sigmoid(pseudo).flatten(1)))
        precision, points = (-log_var).exp(), z.reshape(-1, z.shape[-1]).double()
        constant = -0.5 * (mean.square() * precision + log_var + LOG_2PI).sum(-1)
        weights = torch.cat([-0.5 * precision, mean * precision], -1)
        scored = torch.addmm(constant, torch.cat([points.square(), points], -1), weights.T).float()
        scored = scored.masked_fill(scored < scored.detach().amax(1, keepdim=True) - 60, -math.inf)
        return (scored.logsumexp(1) - math.log(len(mean))).reshape(z.shape[:-1])

    def bound(x, noise):
        flat = x.flatten(1)
        mean, log_var = encode(flat)  # (S, B, D)
        z = torch.addcmul(mean, (0.5 * log_var).exp(), noise)
        square = ((z[:, None] - mean) * (-0.5 * log_var).exp()).square().sum(-1)
        log_q = -0.5 * (square + (log_var + LOG_2PI).sum(-1))  # (S, J, B)
        logits = F.linear(gated(z.reshape(-1, LATENT), trunk), last.weight, last.bias).reshape(*z.shape[:2], -1)
        log_px = (flat * logits - F.softplus(logits, threshold=40.0)).sum(-1)
        return (log_px + log_prior(z) - (log_q.logsumexp(1) - log_s)).mean(0)

    return bound


def stepper(bound, parameters, fused=True):
    """A training step on a bound, and the bound before it."""
    optimizer = torch.optim.Adam(parameters, 5e-4, fused=fused)

    def step():
        optimizer.zero_grad()
        (-bound().mean()).backward()
        optimizer.step()

    return step


def ours(model, x, noise, active=None, compile="none"):
    """The bound as a training computes it."""
    step = Objective(model, elbo, reparameterised, score_all=True, compile=compile, whole=len(x))

    def bound():
        with unread(model):
            return step(Inputs(x, noise, active)) / len(x)

    return bound


def ways(components, prior, x):
    """Every way to take a step of a mixture of separate encoders, from the same weights on the same noise."""
    noise = torch.randn(1, components, BATCH, LATENT, generator=torch.Generator().manual_seed(0))
    made = {}
    plain = PlainMixtureVAE(separate(components, prior))
    made["published"] = (lambda: plain(x, noise[0])), list(plain.parameters())
    for name, compile in (("plain function", "none"), ("plain function, compiled", "default")):
        model = separate(components, prior)
        function = plain_function(model)
        if compile != "none":
            function = torch.compile(function, fullgraph=True, dynamic=False)
        made[name] = (lambda function=function: function(x, noise[0])), list(model.parameters())
    for name, compile in (("ours", "none"), ("ours, compiled", "default")):
        model = separate(components, prior)
        made[name] = ours(model, x, noise, compile=compile), list(model.parameters())
    with torch.no_grad():
        values = {name: float(bound().mean()) for name, (bound, _) in made.items()}
    for name, value in values.items():
        assert abs(value - values["published"]) < 1e-4 * abs(value), f"{name} is not the same maths: {values}"
    return {name: stepper(bound, p, fused=name != "published") for name, (bound, p) in made.items()}


def against_a_vae(components, x):
    """A step of a one-hot mixture with one active component, and one of an ordinary VAE, both compiled and both not."""
    made = {}
    active = torch.tensor([1])
    noise = torch.randn(1, 1, BATCH, LATENT, generator=torch.Generator().manual_seed(0))
    for compile in ("none", "default"):
        suffix = ", compiled" if compile != "none" else ""
        for name, model, chosen in (("VAE", separate(1), None), ("ours", one_hot(components), active)):
            bound = ours(model, x, noise, chosen, compile)
            made[name + suffix] = stepper(bound, list(model.parameters()))
    return made


def measure(steps, rounds):
    """Seconds of every way, (rounds, ways): in each round one step of each in turn."""
    for step in steps.values():
        for _ in range(3):
            step()
    times = np.empty((rounds, len(steps)))
    for row in times:
        for i, step in enumerate(steps.values()):
            start = time.perf_counter()
            step()
            row[i] = time.perf_counter() - start
    return dict(zip(steps, times.T, strict=True))


def gflops(step):
    """Floating-point operations of a step, in 10⁹."""
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops() / 1e9


def main(*chosen):
    """Print one table for each case."""
    keep_freed_memory()
    x = digits()[:BATCH]
    cores = next((line.partition(":")[2].strip() for line in open("/proc/cpuinfo") if "model name" in line), "")
    print(f"{cores or platform.processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    cases = [(f"S={s} {prior}", s, prior) for s, prior in ((1, "normal"), (4, "normal"), (8, "normal"), (4, "vamp"))]
    for title, components, prior in [*cases, ("one-hot 400", 400, None)]:
        if chosen and title not in chosen:
            continue
        steps = ways(components, prior, x) if prior else against_a_vae(components, x)
        rounds = 15 if prior == "vamp" else 60
        times, peak = measure(steps, rounds), peak_gflops()
        work = gflops(steps["ours"])
        print(f"\n{title}: {rounds} rounds, peak sgemm {peak:.0f} GFLOP/s, ours {work:.2f} GFLOP a step", flush=True)
        first = next(iter(times))
        print(f"| way | ms | {first} ÷ it | it ÷ plain function | of peak |\n|---|--:|--:|--:|--:|")
        for name, seconds in times.items():
            ms = 1e3 * np.median(seconds)
            against = times.get("plain function" + (", compiled" if "compiled" in name else ""))
            plain = "" if against is None else f"{np.median(seconds / against):.2f}"
            share = f"{work / np.median(seconds) / peak:.0%}" if name.startswith(("ours", "plain")) else ""
            print(f"| {name} | {ms:.1f} | {np.median(times[first] / seconds):.2f} | {plain} | {share} |", flush=True)
        if prior is None:
            print(f"ours ÷ VAE, both compiled: {np.median(times['ours, compiled'] / times['VAE, compiled']):.2f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
