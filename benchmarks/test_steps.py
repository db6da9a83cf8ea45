"""Training steps of the paper's models, side by side with the looped baseline.

Each round times one baseline step and then one of ours, so the ratio holds when the machine's speed drifts.
"""

import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest
import torch
from baseline import PlainComposite, PlainConvPixelCNN, PlainMixtureVAE
from torch.utils.flop_counter import FlopCounterMode

from mixvae import MixtureVAE, MLPDecoder, SeparateEncoders, StandardNormal, VampPrior, config, datasets
from mixvae.bounds import elbo, log_weights
from mixvae.networks import GatedEncoder  # fmt: skip
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
    data = datasets.load_dataset("digits")
    return torch.nn.functional.interpolate(data.train.batch(slice(None)), size=SHAPE[1:])


@pytest.mark.parametrize("stage", ["start", "trained"])
@pytest.mark.parametrize("prior", ["normal", "vamp"])
@pytest.mark.parametrize("components", [1, 2, 4, 8])
def test_training_step(benchmark, components, prior, stage):
    """From random weights, and after 300 steps: components that moved apart underflow to slow denormal numbers."""
    torch.manual_seed(0)
    posterior = SeparateEncoders(lambda: GatedEncoder(SHAPE, LATENT), components)
    p = VampPrior(posterior, SHAPE, PSEUDO) if prior == "vamp" else StandardNormal(LATENT)
    model = MixtureVAE(posterior, p, MLPDecoder(LATENT, SHAPE))
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
    noise = noise_for(model, x)
    step, bound = training_step(model, x, noise)
    rival, same = plain_step(PlainMixtureVAE(model), x, noise)
    assert abs(bound - same) < 1e-4 * abs(bound), "not the same maths"
    measure(benchmark, step, lambda: seconds(rival), rounds)


@pytest.mark.parametrize("memory", ["kept", "as it comes"])
@pytest.mark.parametrize(
    ("preset", "plain", "rounds"), [("conv", PlainConvPixelCNN, 4), ("composite", PlainComposite, 2)]
)
def test_convolutional_step(benchmark, preset, plain, rounds, memory):
    """Conv + PixelCNN, and the composite with K = 500, at S = 4.

    The baseline runs in a process of its own: with freed memory kept as `mixvae train` keeps it, or as plain code runs.
    """
    keep_freed_memory()
    model, x, noise = convolutional(preset)
    step, bound = training_step(model, x, noise)
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        same = process.submit(start_rival, preset, plain, memory == "kept").result()
        assert abs(bound - same) < 1e-4 * abs(bound), "not the same maths"
        measure(benchmark, step, lambda: process.submit(timed_rival).result(), rounds, warmup=1)


def convolutional(preset):
    """A model, images and noise: the same ones in every process."""
    torch.manual_seed(0)
    images = digits()
    model = config.build(config.read(preset, ["--model.components=4"]).model, SHAPE, images)
    return model, images[:BATCH], noise_for(model, images)


RIVAL = {}


def start_rival(preset, plain, keep):
    """Make the baseline in this process; returns its bound."""
    if keep:
        keep_freed_memory()
    model, x, noise = convolutional(preset)
    RIVAL["step"], bound = plain_step(plain(model), x, noise)
    return bound


def timed_rival():
    """Seconds of one step of the baseline of this process."""
    return seconds(RIVAL["step"])


def noise_for(model, x):
    """Noise of one draw per component for a batch."""
    q = model.posterior(x[:1])
    return torch.randn(1, q.batch_shape[0], BATCH, q.event_shape[0])


def training_step(model, x, noise):
    """A training step of ours, and the bound before it."""

    def bound():
        terms = model(x, noise=noise)
        return elbo(log_weights(terms), terms.weight).mean()

    return stepper(bound, torch.optim.Adam(model.parameters(), 5e-4, fused=True))


def plain_step(plain, x, noise):
    """A training step of the baseline, and the bound before it."""
    return stepper(lambda: plain(x, noise[0]).mean(), torch.optim.Adam(plain.parameters(), 5e-4))


def stepper(bound, optimizer):
    """A step of an optimiser on a bound, and the bound before it."""

    def step():
        optimizer.zero_grad()
        (-bound()).backward()
        optimizer.step()

    with torch.no_grad():
        return step, float(bound())


def seconds(step):
    """Time one call."""
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def measure(benchmark, step, timed_baseline, rounds, warmup=3):
    """Time a step of ours beside one of the baseline, in turn."""
    baseline = []
    benchmark.pedantic(step, setup=lambda: baseline.append(timed_baseline()), rounds=rounds, warmup_rounds=warmup)
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
