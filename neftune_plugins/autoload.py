"""Patches frameworks that load no plugins, right after their import.

PyTorch calls the entry points of the group `torch.backends` at the end of `import torch`. An adapter's entry point
registers here the modules of its framework that it has to patch; each is patched right after its import, if the process
imports it. This module uses the standard library only, because it runs in every process that imports torch."""

import copy
import importlib
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

VARIABLE = "NEFTUNE_PLUGINS"


def enabled() -> bool:
    """Whether the package is on: False with NEFTUNE_PLUGINS=0 in the environment, which leaves the frameworks as they
    are."""
    return os.environ.get(VARIABLE, "1") != "0"


def after_import(patches: Mapping[str, str]) -> None:
    """Patch modules as soon as they have been imported.

    patches: name of a module -> `package.module:function`, which is then imported and called with the module.

    Does nothing with NEFTUNE_PLUGINS=0. Never raises: an error in a patch is logged, and `unpatched` returns it.
    """
    if not enabled():
        return
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)
    for name, patch in patches.items():
        waiting = _finder.patches.setdefault(name, [])
        if patch in waiting:
            continue
        waiting.append(patch)
        if sys.modules.get(name) is not None:
            _apply(patch, name, sys.modules[name], executed=False)


def unpatched(package: str) -> str:
    """Return the errors in the patches of an adapter, such as `neftune_ludwig`; empty if there were none."""
    return "; ".join(problem for patch, problem in _failures.items() if patch.split(".")[0] == package)


_failures: dict[str, str] = {}


class _Finder:
    """Finds the modules to patch by the other finders, and runs their patches after their code."""

    def __init__(self) -> None:
        self.patches: dict[str, list[str]] = {}

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in self.patches:
            return None
        others = (finder for finder in sys.meta_path if finder is not self and hasattr(finder, "find_spec"))
        spec = next(filter(None, (finder.find_spec(name, path, target) for finder in others)), None)
        if spec is not None and spec.loader is not None:
            try:
                _patch_loader(spec, self.patches[name])
            except Exception as error:
                for patch in self.patches[name]:
                    _failed(patch, name, error)
        return spec


_finder = _Finder()


def _patch_loader(spec: ModuleSpec, patches: Sequence[str]) -> None:
    original = spec.loader
    assert original is not None
    execute = original.exec_module

    def exec_module(module: ModuleType) -> None:
        module.__loader__ = spec.loader = original
        execute(module)
        for patch in patches:
            _apply(patch, spec.name, module, executed=True)

    loader = copy.copy(original)  # several modules may share one loader
    loader.exec_module = exec_module  # type: ignore[method-assign]
    spec.loader = loader


def _apply(patch: str, name: str, module: ModuleType, *, executed: bool) -> None:
    try:
        if not executed and getattr(getattr(module, "__spec__", None), "_initializing", False):
            raise ImportError("its import had begun before that of torch; import torch first")
        home, function = patch.split(":")
        getattr(importlib.import_module(home), function)(module)
    except Exception as error:
        _failed(patch, name, error)


def _failed(patch: str, name: str, error: Exception) -> None:
    _failures[patch] = f"{name} could not be patched ({type(error).__name__}: {error})"
    logging.getLogger(__name__).error(
        "neftune-plugins: %s. Training works as usual without neftune_noise_* keys and stops with one. %s=0 "
        "switches this package off.",
        _failures[patch],
        VARIABLE,
    )
