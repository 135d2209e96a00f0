"""Finds the installed plugins and collects the noise types, layout readers and frameworks that they provide."""

from __future__ import annotations

import importlib.metadata
import itertools
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, Protocol, TypeVar

import pluggy

from neftune_plugins.errors import NEFTuneError
from neftune_plugins.plugins import hookspecs
from neftune_plugins.plugins.framework import Framework

if TYPE_CHECKING:
    from neftune_plugins.noise import LayoutReader, NoiseType

ENTRY_POINT_GROUP = "neftune_plugins"


@cache
def plugin_manager() -> pluggy.PluginManager:
    """Return the plugin manager of this process. It loads every entry point of the group `neftune_plugins`, including
    those of this package.

    Raises any error of a plugin's import, because a broken plugin must not be ignored. Raises NEFTuneError if this
    package was copied instead of installed, so that its own entry points are missing.
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
    """Return the registered noise types by name, the built-in ones first.

    Raises ValueError if two plugins use the same name.
    """
    return _by_name("noise type", plugin_manager().hook.neftune_noise_types())


def layout_readers() -> tuple[LayoutReader, ...]:
    """Return the registered layout readers, in the order in which they are tried."""
    return tuple(plugin_manager().hook.neftune_layout_reader())


def frameworks() -> dict[str, Framework]:
    """Return the registered frameworks by name. Raises ValueError if two plugins use the same name."""
    return _by_name("framework", plugin_manager().hook.neftune_frameworks())


def frameworks_without_torch() -> dict[str, Framework]:
    """Like `frameworks`, without importing torch, which takes seconds. Skips plugins whose modules need torch, such as
    providers of noise."""
    manager = pluggy.PluginManager(ENTRY_POINT_GROUP)
    manager.add_hookspecs(hookspecs)
    with _torch_left_out():
        for point in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
            try:
                plugin = point.load()
            except ModuleNotFoundError as error:
                if error.name != "torch":
                    raise
                continue
            if not manager.has_plugin(point.name):
                manager.register(plugin, point.name)
    return _by_name("framework", manager.hook.neftune_frameworks())


@contextmanager
def _torch_left_out() -> Iterator[None]:
    """Make imports of torch fail, unless it was imported before."""
    if "torch" in sys.modules:
        yield
        return
    modules: dict[str, ModuleType | None] = vars(sys)["modules"]
    modules["torch"] = None  # Python's convention: the import raises ImportError
    try:
        yield
    finally:
        del modules["torch"]


def providers(hook: str) -> dict[str, str]:
    """Return, for each noise type or framework, the name of the distribution that provides it.

    hook: `neftune_noise_types` or `neftune_frameworks`.
    """
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
    for member in itertools.chain.from_iterable(reversed(list(provided))):  # pluggy calls the last registered first
        if member.name in found:
            raise ValueError(f"two plugins provide a {kind} named {member.name!r}")
        found[member.name] = member
    return found
