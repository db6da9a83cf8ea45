"""Turn the ordinary VAE of `plain_vae.py`, unchanged, into a Mixture VAE, and measure both honestly.

    python examples/mixture_of_a_plain_vae.py

The encoder becomes a mixture in one line, the decoder gets the likelihood that its loss stood for, and the prior is a
plain torch Distribution. Nothing of the VAE has a base class of mixvae.
"""

import torch
from plain_vae import VAE, Encoder, images, train
from torch.distributions import Independent, Normal

from mixvae import Bernoulli, Decoder, MixtureVAE, SeparateEncoders, evaluate, paired_gain
from mixvae.bounds import elbo, log_weights


def as_mixture(vae: VAE, components: int) -> MixtureVAE:
    """The same model as a mixture: the VAE's trained encoder, and noisy copies of it."""
    prior = Independent(Normal(torch.zeros(8), torch.ones(8)), 1)
    posterior = SeparateEncoders(Encoder, components=1)  # the one line: any module that gives mean and log-variance
    posterior.encoders[0].load_state_dict(vae.encoder.state_dict())
    return MixtureVAE(posterior, prior, Decoder(vae.decoder, Bernoulli)).extended(components)


def train_on(model: MixtureVAE, x: torch.Tensor, epochs: int, draws_per_encoder: int) -> None:
    """The usual loop, with the mixture's bound as the loss."""
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(epochs):
        for batch in x[torch.randperm(len(x))].split(100):
            terms = model(batch, draws_per_encoder)
            optimizer.zero_grad()
            (-elbo(log_weights(terms), terms.weight).mean()).backward()
            optimizer.step()


def main(epochs: int = 60, total_draws: int = 1000) -> dict[int, float]:
    """Train the VAE, then go on for as long with one encoder and with four; NLL by number of encoders."""
    torch.manual_seed(0)
    x = images()
    training, test = x[:1500], x[1500:]
    vae = VAE()
    train(vae, training, epochs)
    estimates = {}
    for components in (1, 4):
        model = as_mixture(vae, components)
        train_on(model, training, epochs, draws_per_encoder=4 // components)  # four draws per step either way
        estimates[components] = evaluate(model, test, total_draws)
        summary = estimates[components].summary()
        print(f"S = {components}: NLL {summary['nll_pooled']:.2f} ± {summary['nll_pooled_se']:.2f} nats")
    gain, error = paired_gain(estimates[4], estimates[1])
    print(f"four encoders gain {gain:+.2f} ± {error:.2f} nats over one with as many draws; it is one training of each")
    return {components: -float(estimate.pooled.mean()) for components, estimate in estimates.items()}


if __name__ == "__main__":
    main()
