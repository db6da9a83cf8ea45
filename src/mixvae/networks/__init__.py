"""Neural networks: gated dense and convolutional layers, masked convolutions, and the encoders made of them."""

from mixvae.networks.conv import CausalNorm, GatedConvEncoder, GatedConvTrunk, GatedDeconv, MaskedConv2d, PixelCNN
from mixvae.networks.dense import LOG_VAR_RANGE, GatedEncoder, GatedLinear, GatedTrunk, gated_mlp, mean_and_log_var
from mixvae.networks.one_hot import OneHotHead
from mixvae.networks.two_level import GaussianNetwork, TwoLevelConv, TwoLevelDense, TwoLevelEncoder, stack_components

__all__ = [
    "LOG_VAR_RANGE",
    "CausalNorm",
    "GatedConvEncoder",
    "GatedConvTrunk",
    "GatedDeconv",
    "GatedEncoder",
    "GatedLinear",
    "GatedTrunk",
    "GaussianNetwork",
    "MaskedConv2d",
    "OneHotHead",
    "PixelCNN",
    "TwoLevelConv",
    "TwoLevelDense",
    "TwoLevelEncoder",
    "gated_mlp",
    "mean_and_log_var",
    "stack_components",
]
