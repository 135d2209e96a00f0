"""Noisy embedding fine-tuning (NEFTune, arXiv 2310.05914): the core, which knows no framework."""

import importlib
from typing import TYPE_CHECKING, Any

from neftune_autoload import enabled
from neftune_plugins.config import NoiseConfig
from neftune_plugins.errors import NEFTuneError, NoiseConfigError, NoiseNotAppliedError
from neftune_plugins.framework import CheckedModel, DemoOptions, Framework, TrainingCommand
from neftune_plugins.hookspecs import hookimpl

# What stands on torch is imported when it is asked for: the `neftune` command has something to say before, and where
# torch does not load.
if TYPE_CHECKING:
    from neftune_plugins.injection import Handle, install
    from neftune_plugins.layout import Batch, Layout, LayoutReader
    from neftune_plugins.noise import NoiseType
    from neftune_plugins.sharded import refuse_context_parallel
else:
    _ON_TORCH = {
        "injection": ("Handle", "install"),
        "layout": ("Batch", "Layout", "LayoutReader"),
        "noise": ("NoiseType",),
        "sharded": ("refuse_context_parallel",),
    }

    def __getattr__(name: str) -> Any:
        for module, names in _ON_TORCH.items():
            if name in names:
                return getattr(importlib.import_module(f"{__name__}.{module}"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "Batch",
    "CheckedModel",
    "DemoOptions",
    "Framework",
    "Handle",
    "Layout",
    "LayoutReader",
    "NEFTuneError",
    "NoiseConfig",
    "NoiseConfigError",
    "NoiseNotAppliedError",
    "NoiseType",
    "TrainingCommand",
    "enabled",
    "hookimpl",
    "install",
    "refuse_context_parallel",
]
