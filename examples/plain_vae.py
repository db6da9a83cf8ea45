"""An ordinary variational autoencoder in PyTorch, trained on scikit-learn's digits. It knows nothing of mixvae."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU())
        self.mean = nn.Linear(128, 8)
        self.log_var = nn.Linear(128, 8)

    def forward(self, x):
        h = self.hidden(x)
        return self.mean(h), self.log_var(h)


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 64))

    def forward(self, z):
        return self.net(z)


class VAE(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = Encoder()
        self.decoder = Decoder()

    def loss(self, x):
        mean, log_var = self.encoder(x)
        z = mean + (0.5 * log_var).exp() * torch.randn_like(mean)
        reconstruction = binary_cross_entropy_with_logits(self.decoder(z), x, reduction="none").sum(-1)
        kl = 0.5 * (mean.square() + log_var.exp() - 1 - log_var).sum(-1)
        return (reconstruction + kl).mean()


def images():
    """Binary digits, (1797, 64)."""
    x = torch.tensor(load_digits(return_X_y=True)[0], dtype=torch.float32) / 16
    return (x > 0.5).float()


def train(model, x, epochs=60):
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(epochs):
        for batch in x[torch.randperm(len(x))].split(100):
            optimizer.zero_grad()
            model.loss(batch).backward()
            optimizer.step()


if __name__ == "__main__":
    vae = VAE()
    train(vae, images()[:1500])
    print(f"-ELBO {float(vae.loss(images()[1500:])):.2f} nats")
