"""Waits in a process of the probed command until it makes an optimiser. Cheap, and silent where it never does."""

import importlib.abc
import os
import sys
from collections.abc import Mapping, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_OPTIMIZERS = "torch.optim.optimizer"

_given: dict[str, Any] = {}


def wait(given: Mapping[str, Any]) -> None:
    """Begin with the first optimiser of this process; only the first call has an effect.

    given: `folder` for the reports, `steps` to record, and whether to `go_on` after them.
    """
    if _given:
        return
    _given.update(given)
    # A process that was forked has what its parent had; its reports are its own.
    os.register_at_fork(after_in_child=_forget)
    if _OPTIMIZERS in sys.modules:
        _prepare(sys.modules[_OPTIMIZERS])
    else:
        sys.meta_path.insert(0, _Finder())


class _Finder(importlib.abc.MetaPathFinder):
    """Finds PyTorch's optimisers as the other finders would, and prepares them once they are imported."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != _OPTIMIZERS:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                _prepare(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _prepare(module: ModuleType) -> None:
    make = module.Optimizer.__init__

    def made(self: Any, *args: Any, **kwargs: Any) -> None:
        make(self, *args, **kwargs)
        _begin(self)

    module.Optimizer.__init__ = made


_recorder: Any = None


def _begin(optimizer: Any) -> None:
    global _recorder
    if _recorder is None:
        from neftune_plugins.probing.recording import Recorder

        _recorder = Recorder(_given["folder"], _given["steps"], go_on=_given["go_on"])
    _recorder.know(optimizer)


def _forget() -> None:
    """A child of a process that trains, such as one that loads data, trains nothing of what that one does."""
    global _recorder
    if _recorder is not None:
        _recorder.end()
        _recorder = None
