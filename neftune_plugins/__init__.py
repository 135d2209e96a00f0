"""NEFTune, noisy embedding fine-tuning (arXiv 2310.05914), for any PyTorch model and training framework.

Nothing here imports torch or pluggy: each name is loaded when it is first used. `import torch` runs this file in every
process of an environment (docs/autoload.md), so it has to be cheap.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neftune_plugins.autoload import after_import, enabled, unpatched
    from neftune_plugins.config import NoiseConfig, Place, is_like_ours, key, keys_in, refuse_misplaced, refuse_options
    from neftune_plugins.errors import NEFTuneError, NoiseConfigError, NoiseNotAppliedError, WrongNoiseError
    from neftune_plugins.model import REPORT_VARIABLE, Handle, install, refuse_context_parallel
    from neftune_plugins.noise import Batch, Layout, LayoutReader, NoiseType
    from neftune_plugins.plugins import (
        CheckedModel,
        DemoOptions,
        Framework,
        InstalledNoise,
        KeyPlace,
        TrainingCommand,
        hookimpl,
        no_noise_line,
        resolve,
    )

_HOMES = {
    "autoload": ("after_import", "enabled", "unpatched"),
    "config": ("NoiseConfig", "Place", "is_like_ours", "key", "keys_in", "refuse_misplaced", "refuse_options"),
    "errors": ("NEFTuneError", "NoiseConfigError", "NoiseNotAppliedError", "WrongNoiseError"),
    "model": ("REPORT_VARIABLE", "Handle", "install", "refuse_context_parallel"),
    "noise": ("Batch", "Layout", "LayoutReader", "NoiseType"),
    "plugins": (
        "CheckedModel",
        "DemoOptions",
        "Framework",
        "InstalledNoise",
        "KeyPlace",
        "TrainingCommand",
        "hookimpl",
        "no_noise_line",
        "resolve",
    ),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "REPORT_VARIABLE",
    "Batch",
    "CheckedModel",
    "DemoOptions",
    "Framework",
    "Handle",
    "InstalledNoise",
    "KeyPlace",
    "Layout",
    "LayoutReader",
    "NEFTuneError",
    "NoiseConfig",
    "NoiseConfigError",
    "NoiseNotAppliedError",
    "NoiseType",
    "Place",
    "TrainingCommand",
    "WrongNoiseError",
    "after_import",
    "enabled",
    "hookimpl",
    "install",
    "is_like_ours",
    "key",
    "keys_in",
    "no_noise_line",
    "refuse_context_parallel",
    "refuse_misplaced",
    "refuse_options",
    "resolve",
    "unpatched",
]
