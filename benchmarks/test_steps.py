"""Training steps of the paper's fully connected models, side by side with the looped baseline.

Each round times one baseline step and then one of ours, so the ratio holds when the machine's speed drifts.
"""

import time

import numpy as np
import pytest
import torch
from baseline import PlainComposite, PlainConvPixelCNN, PlainMixtureVAE
from torch.utils.flop_counter import FlopCounterMode

from mixvae import (
    MLP,
    GatedEncoder,
    MixtureVAE,
    SeparateEncoders,
    StandardNormal,
    VampPrior,
    config,
    datasets,
    elbo,
    log_weights,
)  # fmt: skip
from mixvae.training import keep_freed_memory

SHAPE, LATENT, BATCH, PSEUDO = (1, 28, 28), 40, 100, 500


def peak_gflops():
    """Fastest of a few large float32 matrix products, in GFLOP/s."""
    a, b = torch.randn(2, 2048, 2048)
    seconds = []
    for _ in range(8):
        start = time.perf_counter()
        torch.mm(a, b)
        seconds.append(time.perf_counter() - start)
    return 2 * 2048**3 / min(seconds) / 1e9


def digits():
    """Real binary images of 28×28 pixels: scikit-learn's digits, three and a half times as large."""
    data = datasets.load("digits")
    return torch.nn.functional.interpolate(data.train.batch(slice(None)), size=SHAPE[1:])


@pytest.mark.parametrize("stage", ["start", "trained"])
@pytest.mark.parametrize("prior", ["normal", "vamp"])
@pytest.mark.parametrize("components", [1, 2, 4, 8])
def test_training_step(benchmark, components, prior, stage):
    """From random weights, and after 300 steps: components that moved apart underflow to slow denormal numbers."""
    torch.manual_seed(0)
    posterior = SeparateEncoders(lambda: GatedEncoder(SHAPE, LATENT), components)
    p = VampPrior(posterior, SHAPE, PSEUDO) if prior == "vamp" else StandardNormal(LATENT)
    model = MixtureVAE(posterior, p, MLP(LATENT, SHAPE))
    images = digits()
    x = images[:BATCH]
    if stage == "trained":
        optimizer = torch.optim.Adam(model.parameters(), 5e-4, fused=True)
        for _ in range(300):
            terms = model(images[torch.randint(len(images), (BATCH,))])
            optimizer.zero_grad()
            (-elbo(log_weights(terms), terms.weight).mean()).backward()
            optimizer.step()
    rounds = 12 if prior == "vamp" and components > 2 else 40
    measure(benchmark, model, PlainMixtureVAE(model), x, rounds)


@pytest.mark.parametrize(
    ("preset", "plain", "rounds"), [("conv", PlainConvPixelCNN, 5), ("composite", PlainComposite, 3)]
)
def test_convolutional_step(benchmark, preset, plain, rounds):
    """Conv + PixelCNN, and the composite with K = 500, at S = 4: seconds a step."""
    keep_freed_memory()  # as `mixvae train` does; the baseline profits too
    torch.manual_seed(0)
    images = digits()
    settings = config.read(preset, ["--model.components=4"])
    model = config.build(settings.model, SHAPE, images)
    measure(benchmark, model, plain(model), images[:BATCH], rounds, warmup=1)


def measure(benchmark, model, plain, x, rounds, warmup=3):
    """Time a training step of the model beside one of the baseline, in turn."""
    q = model.posterior(x[:1])
    noise = torch.randn(1, q.batch_shape[0], BATCH, q.event_shape[0])

    def bound():
        terms = model(x, noise=noise)
        return elbo(log_weights(terms), terms.weight).mean()

    with torch.no_grad():
        assert abs(bound() - plain(x, noise[0]).mean()) < 1e-4 * abs(bound()), "not the same maths"
    ours = torch.optim.Adam(model.parameters(), 5e-4, fused=True)
    theirs = torch.optim.Adam(plain.parameters(), 5e-4)

    def step():
        ours.zero_grad()
        (-bound()).backward()
        ours.step()

    def plain_step():
        theirs.zero_grad()
        (-plain(x, noise[0]).mean()).backward()
        theirs.step()

    baseline = []

    def timed_baseline():
        start = time.perf_counter()
        plain_step()
        baseline.append(time.perf_counter() - start)

    benchmark.pedantic(step, setup=timed_baseline, rounds=rounds, warmup_rounds=warmup)
    with FlopCounterMode(display=False) as counter:
        step()
    own = np.array(benchmark.stats.stats.data)
    ratio = np.array(baseline[-len(own) :]) / own
    benchmark.extra_info |= {
        "baseline_ms": 1e3 * float(np.median(baseline[-len(own) :])),
        "ours_ms": 1e3 * float(np.median(own)),
        "ratio": float(np.median(ratio)),
        "share_of_peak": counter.get_total_flops() / np.median(own) / 1e9 / peak_gflops(),
    }
