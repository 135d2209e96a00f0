"""Noisy embedding fine-tuning (NEFTune, arXiv 2310.05914): the core, which knows no framework."""

from neftune_autoload import enabled
from neftune_plugins.config import NoiseConfig
from neftune_plugins.errors import NEFTuneError, NoiseConfigError, NoiseNotAppliedError
from neftune_plugins.framework import CheckedModel, DemoOptions, Framework, TrainingCommand
from neftune_plugins.hookspecs import hookimpl
from neftune_plugins.injection import Handle, install
from neftune_plugins.layout import Batch, Layout, LayoutReader
from neftune_plugins.noise import NoiseType
from neftune_plugins.sharded import refuse_context_parallel

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
