"""Describes the configuration keys, reads their values, and knows where they belong."""

from neftune_plugins.config.keys import (
    BUILT_IN_TYPES,
    KEYS,
    NO_NOISE,
    NoiseConfig,
    is_like_ours,
    key,
    keys_in,
    looks_like_ours,
    read,
    unknown_choice,
)
from neftune_plugins.config.options import from_command_line, refuse_options
from neftune_plugins.config.places import Place, refuse_misplaced

__all__ = [
    "BUILT_IN_TYPES",
    "KEYS",
    "NO_NOISE",
    "NoiseConfig",
    "Place",
    "from_command_line",
    "is_like_ours",
    "key",
    "keys_in",
    "looks_like_ours",
    "read",
    "refuse_misplaced",
    "refuse_options",
    "unknown_choice",
]
