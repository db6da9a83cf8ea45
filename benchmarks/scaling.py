"""How a training step grows with the number of components: one-hot encoders (S2A, one active) and separate ones.

    python benchmarks/scaling.py [PICTURE.png]

Fully connected models of the paper's sizes (28×28, latent 40, gated 300-300, batch 100). Every round times an ordinary
VAE (one Gaussian, an encoder of its own) and then the mixture; medians of 15 rounds, and the ratio of each pair. Also
the share of the step that the cross densities take, forward and backward. Set OMP_NUM_THREADS=2.
"""

import sys
import time

import numpy as np
import torch

from mixvae import DiagonalGaussian, MixtureVAE, MLPDecoder, OneHotPosterior, SeparateEncoders, StandardNormal
from mixvae.bounds import elbo, log_weights
from mixvae.networks import GatedEncoder, GatedTrunk  # fmt: skip
from mixvae.training import keep_freed_memory

SHAPE, LATENT, BATCH, ROUNDS = (1, 28, 28), 40, 100, 15


def one_hot(components):
    return OneHotPosterior(lambda: GatedTrunk(SHAPE), SHAPE, LATENT, components)


def separate(components):
    return SeparateEncoders(lambda: GatedEncoder(SHAPE, LATENT), components)


def training_step(posterior, x, active):
    """A step of a mixture, all components scored."""
    model = MixtureVAE(posterior, StandardNormal(LATENT), MLPDecoder(LATENT, SHAPE))
    optimizer = torch.optim.Adam(model.parameters(), 5e-4, fused=True)

    def step():
        chosen = None if active is None else torch.randperm(posterior.components)[:active]
        terms = model(x, active=chosen)
        optimizer.zero_grad()
        (-elbo(log_weights(terms), terms.weight).mean()).backward()
        optimizer.step()

    return step


def cross_densities(components):
    """Cross densities of one draw per example under all components, forward and backward."""
    mean, log_var = torch.randn(2, components, BATCH, LATENT)
    mean.requires_grad_()
    log_var.requires_grad_()
    z = torch.randn(1, 1, BATCH, LATENT, requires_grad=True)

    def run():
        DiagonalGaussian(mean, log_var).cross_log_prob(z).logsumexp(-2).sum().backward()

    return run


def seconds(step):
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def measure(step, baseline):
    """Median milliseconds of a step, and the median of its ratio to the baseline timed just before."""
    pairs = np.array([(seconds(baseline), seconds(step)) for _ in range(ROUNDS + 3)])[3:]
    return 1e3 * np.median(pairs[:, 1]), np.median(pairs[:, 1] / pairs[:, 0])


def draw(path, rows):
    from mixvae import figures

    with open(path, "wb") as file:
        file.write(figures.png(figures.scaling(rows, "components A", "step relative to an ordinary VAE")))


def main(picture=None):
    torch.manual_seed(0)
    keep_freed_memory()
    x = (torch.rand(BATCH, *SHAPE) < 0.3).float()
    baseline = training_step(separate(1), x, None)
    curves = {}
    print("| encoder | components | step ms | relative to S = 1 | of it cross densities |\n|---|--:|--:|--:|--:|")
    for name, build, active, sizes in (
        ("one-hot, S2A, 1 active", one_hot, 1, (1, 4, 10, 40, 100, 200, 400, 800)),
        ("separate, all active", separate, None, (2, 4, 8)),
    ):
        curves[name] = []
        for components in sizes:
            ms, ratio = measure(training_step(build(components), x, active), baseline)
            share = ""
            if build is one_hot:
                cross, _ = measure(cross_densities(components), baseline)
                share = f"{cross / ms:.0%}"
            curves[name].append((components, ratio))
            print(f"| {name} | {components} | {ms:.1f} | {ratio:.1f} | {share} |", flush=True)
    if picture:
        draw(picture, curves)


if __name__ == "__main__":
    main(*sys.argv[1:])
