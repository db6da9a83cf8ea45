"""Variance of the encoders' gradient under each estimator, on the digits.

    python benchmarks/gradients.py

Trains the preset `digits` (S = 2) for some epochs, stops it there, and measures on one batch of 100 images how much the
gradient of the bound in the posterior's weights varies from draw to draw: the sum of the variances over all weights,
from 200 repetitions, relative to the plain estimator's. The error of each ratio is about 10 %.
"""

import torch

from mixvae import config, datasets, fit
from mixvae.bounds import elbo, pooled
from mixvae.gradients import doubly_reparameterised, reparameterised, sticking_the_landing

REPETITIONS = 200
CASES = (
    ("elbo", elbo, 1, (reparameterised, sticking_the_landing)),
    ("pooled", pooled, 5, (reparameterised, doubly_reparameterised)),
    ("pooled", pooled, 50, (reparameterised, doubly_reparameterised)),
)


def variance(estimator, model, x, bound, draws):
    """Sum over the posterior's weights of the variance of the gradient."""
    parameters = list(model.posterior.parameters())
    rows = []
    for seed in range(REPETITIONS):
        torch.manual_seed(seed)
        value = estimator(model, x, bound, draws).mean()
        gradient = torch.cat([g.flatten() for g in torch.autograd.grad(value, parameters)]).double()
        rows.append(gradient)
    return float(torch.stack(rows).var(0).sum())


def main():
    data = datasets.load_dataset("digits")
    print("| epochs | bound | draws per component | estimator | variance | relative |\n|--:|---|--:|---|--:|--:|")
    for epochs in (2, 60):
        torch.manual_seed(0)
        model = config.build(config.read("digits", ["--model.components=2"]).model, data.shape)
        fit(model, data, epochs=epochs, seed=0)
        x = data.train.batch(slice(0, 100), torch.Generator().manual_seed(0))
        for name, bound, draws, estimators in CASES:
            plain = None
            for estimator in estimators:
                found = variance(estimator, model, x, bound, draws)
                plain = plain or found
                cells = (epochs, name, draws, estimator.__name__, f"{found:.4g}", f"{found / plain:.3f}")
                print("| " + " | ".join(map(str, cells)) + " |", flush=True)


if __name__ == "__main__":
    main()
