"""Typed configuration, read from YAML and flags, and the model that it describes. Imports no torch by itself."""

from mixvae.config.building import build, construct, parameters, parse, plain_errors, resolve, settings
from mixvae.config.naming import describe, rebuild
from mixvae.config.reading import (
    add_arguments,
    check_keys,
    flags,
    from_dict,
    from_namespace,
    locate,
    nearest,
    presets,
    read,
    read_yaml,
    shipped,
    to_yaml,
)
from mixvae.config.schema import Config, DataConfig, ModelConfig, Spec, StartConfig, TrainingConfig

__all__ = [
    "Config",
    "DataConfig",
    "ModelConfig",
    "Spec",
    "StartConfig",
    "TrainingConfig",
    "add_arguments",
    "build",
    "check_keys",
    "construct",
    "describe",
    "flags",
    "from_dict",
    "from_namespace",
    "locate",
    "nearest",
    "parameters",
    "parse",
    "plain_errors",
    "presets",
    "read",
    "read_yaml",
    "rebuild",
    "resolve",
    "settings",
    "shipped",
    "to_yaml",
]
