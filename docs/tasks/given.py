"""What the twelve tasks start from: arrays of pictures, and an encoder and a decoder in plain PyTorch."""

import numpy as np
from sklearn.datasets import load_digits
from torch import nn

EPOCHS = 5
pixels, _ = load_digits(return_X_y=True)
pictures = (np.reshape(pixels, (-1, 1, 8, 8)) > 8).astype(np.float32)  # 1797 binary digits, (1, 8, 8)
train, validation, test, new = np.split(pictures, [1297, 1497, 1537])[:4]


class Encoder(nn.Module):
    """Mean and log-variance of z, 8 numbers each."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU())
        self.mean, self.log_var = nn.Linear(64, 8), nn.Linear(64, 8)

    def forward(self, x):
        """Encode pictures (B, 1, 8, 8)."""
        h = self.body(x)
        return self.mean(h), self.log_var(h)


class Pixels(nn.Module):
    """Logits of the pixels, (…, 1, 8, 8)."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.Unflatten(-1, (1, 8, 8)))

    def forward(self, z):
        """Decode latents (…, 8)."""
        return self.body(z)
