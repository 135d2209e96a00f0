"""The plugin manager, and what the plugins registered with it provide."""

from functools import cache

import pluggy

from neftune_plugins import builtin, hookspecs
from neftune_plugins.framework import Framework
from neftune_plugins.layout import LayoutReader
from neftune_plugins.noise import NoiseType
from neftune_plugins.report import from_environment

ENTRY_POINT_GROUP = "neftune_plugins"


@cache
def plugin_manager() -> pluggy.PluginManager:
    """The process's plugin manager, with the built-in plugin and every entry point of the group `neftune_plugins`.

    Raises what a plugin's import raises: a plugin that is installed and cannot be loaded must not go unnoticed.
    """
    manager = pluggy.PluginManager(ENTRY_POINT_GROUP)
    manager.add_hookspecs(hookspecs)
    manager.register(builtin)
    report = from_environment()
    if report is not None:
        manager.register(report)
    manager.load_setuptools_entrypoints(ENTRY_POINT_GROUP)
    manager.check_pending()
    return manager


def noise_types() -> dict[str, NoiseType]:
    """The registered noise types by name, the built-in ones first.

    Raises ValueError where two plugins give the same name.
    """
    types: dict[str, NoiseType] = {}
    for provided in reversed(plugin_manager().hook.neftune_noise_types()):
        for noise_type in provided:
            if noise_type.name in types:
                raise ValueError(f"two plugins provide a noise type named {noise_type.name!r}")
            types[noise_type.name] = noise_type
    return types


def layout_readers() -> tuple[LayoutReader, ...]:
    """The readers in the order in which they are asked."""
    return tuple(plugin_manager().hook.neftune_layout_reader())


def frameworks() -> dict[str, Framework]:
    """The registered frameworks by name."""
    provided = plugin_manager().hook.neftune_frameworks()
    return {framework.name: framework for some in provided for framework in some}
