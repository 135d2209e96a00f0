"""Computes the noise, with pure functions of tensors. This ring knows batches and random bits; it must not know models,
plugins or configuration files."""

from neftune_plugins.noise.checks import CheckedReader, check_layout
from neftune_plugins.noise.draw import (
    NoiseType,
    add_noise,
    add_noise_,
    channel_codes,
    expected_energy,
    keyed,
    stream_key,
    token_keys,
    token_scales,
)
from neftune_plugins.noise.kernels.form import Draw
from neftune_plugins.noise.layout import Layout, LayoutReader, read_layout
from neftune_plugins.noise.schedule import alpha_at
from neftune_plugins.noise.witnesses import Batch

__all__ = [
    "Batch",
    "CheckedReader",
    "Draw",
    "Layout",
    "LayoutReader",
    "NoiseType",
    "add_noise",
    "add_noise_",
    "alpha_at",
    "channel_codes",
    "check_layout",
    "expected_energy",
    "keyed",
    "read_layout",
    "stream_key",
    "token_keys",
    "token_scales",
]
