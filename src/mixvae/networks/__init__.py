"""Neural networks: gated dense and convolutional layers, masked convolutions, and encoders built from them."""

from mixvae.networks._conv import CausalNorm, GatedConvEncoder, GatedConvTrunk, GatedDeconv, MaskedConv2d, PixelCNN
from mixvae.networks._dense import LOG_VAR_RANGE, GatedEncoder, GatedLinear, GatedTrunk, gated_mlp, mean_and_log_var
from mixvae.networks._one_hot import OneHotHead
from mixvae.networks._two_level import GaussianNetwork, TwoLevelConv, TwoLevelDense, TwoLevelEncoder, stack_components

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
