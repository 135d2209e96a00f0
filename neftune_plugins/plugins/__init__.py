"""Defines the plugin hooks, finds the installed plugins, and describes training frameworks. This ring knows noise and
configurations; it must not know how noise gets into a model. It must not import torch: `neftune check --quick` imports
it."""

from neftune_plugins.plugins.framework import CheckedModel, DemoOptions, Framework, TrainingCommand
from neftune_plugins.plugins.hookspecs import InstalledNoise, hookimpl
from neftune_plugins.plugins.manager import frameworks, layout_readers, noise_types, plugin_manager, providers
from neftune_plugins.plugins.places import KeyPlace
from neftune_plugins.plugins.resolve import check_type, no_noise_line, resolve

__all__ = [
    "CheckedModel",
    "DemoOptions",
    "Framework",
    "InstalledNoise",
    "KeyPlace",
    "TrainingCommand",
    "check_type",
    "frameworks",
    "hookimpl",
    "layout_readers",
    "no_noise_line",
    "noise_types",
    "plugin_manager",
    "providers",
    "resolve",
]
