"""The plugin manager, and what the plugins registered with it provide."""

import itertools
from collections.abc import Iterable
from functools import cache
from typing import Protocol, TypeVar

import pluggy

from neftune_plugins.errors import NEFTuneError
from neftune_plugins.noise import LayoutReader, NoiseType
from neftune_plugins.plugins import hookspecs
from neftune_plugins.plugins.framework import Framework

ENTRY_POINT_GROUP = "neftune_plugins"


@cache
def plugin_manager() -> pluggy.PluginManager:
    """The process's plugin manager, with every entry point of the group `neftune_plugins`, this package's own included.

    Raises what a plugin's import raises: a plugin that is installed and cannot be loaded must not go unnoticed. Raises
    NEFTuneError if this package was copied instead of installed, so that its own entry points are missing.
    """
    manager = pluggy.PluginManager(ENTRY_POINT_GROUP)
    manager.add_hookspecs(hookspecs)
    manager.load_setuptools_entrypoints(ENTRY_POINT_GROUP)
    manager.check_pending()
    if not manager.has_plugin("builtin"):
        raise NEFTuneError(
            "the entry points of neftune-plugins were not found, so there are no noise types: the package was copied "
            "or put on the path instead of installed. Run: pip install neftune-plugins"
        )
    return manager


def noise_types() -> dict[str, NoiseType]:
    """The registered noise types by name, the built-in ones first.

    Raises ValueError where two plugins give the same name.
    """
    return _by_name("noise type", plugin_manager().hook.neftune_noise_types())


def layout_readers() -> tuple[LayoutReader, ...]:
    """The readers in the order in which they are asked."""
    return tuple(plugin_manager().hook.neftune_layout_reader())


def frameworks() -> dict[str, Framework]:
    """The registered frameworks by name. Raises ValueError where two plugins give the same name."""
    return _by_name("framework", plugin_manager().hook.neftune_frameworks())


def providers(hook: str) -> dict[str, str]:
    """The distribution that each noise type or framework comes from, by its name."""
    return {
        member.name: distribution.project_name
        for plugin, distribution in plugin_manager().list_plugin_distinfo()
        for member in getattr(plugin, hook, tuple)()
    }


class _Named(Protocol):
    @property
    def name(self) -> str: ...


_T = TypeVar("_T", bound=_Named)


def _by_name(kind: str, provided: Iterable[Iterable[_T]]) -> dict[str, _T]:
    found: dict[str, _T] = {}
    for member in itertools.chain.from_iterable(reversed(list(provided))):  # pluggy asks the last registered first
        if member.name in found:
            raise ValueError(f"two plugins provide a {kind} named {member.name!r}")
        found[member.name] = member
    return found
