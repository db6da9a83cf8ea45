"""The twelve tasks in plain PyTorch. Run in an empty folder."""

import math
from pathlib import Path

import torch
from given import EPOCHS, Encoder, Pixels, new, test, train, validation
from torch.distributions import Bernoulli, Independent, Normal
from torch.export import Dim
from torch.optim import Adam


# %% Train on your own array
# without a choice of the best epoch, which the other two make
def bound(x):
    mean, log_var = encoder(x)
    z = mean + (log_var / 2).exp() * torch.randn_like(mean)
    reconstruction = Independent(Bernoulli(logits=decoder(z)), 3).log_prob(x)
    return (reconstruction - (mean.square() + log_var.exp() - 1 - log_var).sum(-1) / 2).mean()


def epoch():
    for x in torch.from_numpy(train)[torch.randperm(len(train))].split(100):
        optimizer.zero_grad()
        (-bound(x)).backward()
        optimizer.step()


encoder, decoder = Encoder(), Pixels()
optimizer = Adam([*encoder.parameters(), *decoder.parameters()], lr=1e-3)
for _ in range(EPOCHS):
    epoch()

# %% Your own encoder and decoder
encoder, decoder = Encoder(), Pixels()
optimizer = Adam([*encoder.parameters(), *decoder.parameters()], lr=1e-3)

# %% Resume an interrupted training
parts, start = {"encoder": encoder, "decoder": decoder, "optimizer": optimizer}, 0
if Path("state.pt").exists():
    state = torch.load("state.pt")
    start = state["done"]
    torch.set_rng_state(state["random"])
    for name, part in parts.items():
        part.load_state_dict(state[name])
for done in range(start + 1, EPOCHS + 1):
    epoch()
    state = {name: part.state_dict() for name, part in parts.items()}
    torch.save({**state, "random": torch.get_rng_state(), "done": done}, "state.pt")


# %% Write the losses of every epoch to a file
with open("losses.csv", "w") as file, torch.no_grad():
    for _ in range(EPOCHS):
        with torch.enable_grad():
            epoch()
        print(*(float(-bound(torch.from_numpy(x))) for x in (train, validation)), sep=",", file=file)


# %% Negative log-likelihood with its standard error
@torch.no_grad()
def log_px(encoder, decoder, x, draws=1000):
    mean, log_var = encoder(x)
    q = Independent(Normal(mean, (log_var / 2).exp()), 1)
    z = q.sample((draws,))
    log_pz = Independent(Normal(torch.zeros(8), torch.ones(8)), 1).log_prob(z)
    log_w = Independent(Bernoulli(logits=decoder(z)), 3).log_prob(x) + log_pz - q.log_prob(z)
    return log_w.logsumexp(0) - math.log(draws)


nll = -log_px(encoder, decoder, torch.from_numpy(test))
print(nll.mean(), nll.std() / len(nll) ** 0.5)

# %% Embed
z, _ = encoder(torch.from_numpy(test))

# %% Sample
samples = decoder(torch.randn(16, 8)).sigmoid()

# %% Interpolate between two pictures
(a, b), _ = encoder(torch.from_numpy(test[:2]))
path = decoder(torch.lerp(a, b, torch.linspace(0, 1, 8)[:, None])).sigmoid()

# %% Compare two models, with an error
gain = log_px(encoder, decoder, torch.from_numpy(test)) - log_px(Encoder(), Pixels(), torch.from_numpy(test))
print(gain.mean(), gain.std() / len(gain) ** 0.5)

# %% Embed new data with a model trained earlier
trained = Encoder()
trained.load_state_dict(torch.load("state.pt")["encoder"])
z, _ = trained(torch.from_numpy(new))

# %% Export the decoder as a program that needs no library but torch
program = torch.export.export(decoder, (torch.zeros(2, 8),), dynamic_shapes=({0: Dim.AUTO},))
torch.export.save(program, "decoder.pt2")

# %% Share a trained model
torch.save([part.state_dict() for part in (encoder, decoder)], "shared.pt")
received = Encoder(), Pixels()
for part, weights in zip(received, torch.load("shared.pt"), strict=True):
    part.load_state_dict(weights)
