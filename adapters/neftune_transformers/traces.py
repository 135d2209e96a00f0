"""Computes an additional loss during training and then restores every number that this changed.

    with leaving_none(trainer, model, inputs):
        trainer.compute_loss(model, inputs)

Restored in place, so that other references see it: lists, dicts, sets, deques, arrays, tensors that need no
gradient, and generators of random numbers; attributes of objects of the trainer's packages and of the user's own code,
variables of the trainer's classes, of their Python modules and of closures; buffers and plain attributes of modules.

Not restored: parameters, optimisers, data, tokenizers, loggers, objects of other packages, objects with a lock or a
thread, because other threads use them at the same time, iterators other than `itertools.count`, and files.
"""

import array
import ast
import collections
import contextlib
import functools
import itertools
import random
import sys
import sysconfig
import threading
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import PreTrainedTokenizerBase, TrainerCallback
from transformers.trainer_callback import CallbackHandler
from transformers.utils.logging import get_logger

from neftune_plugins import NoiseConfigError

logger = get_logger("transformers.neftune")

LARGEST = 1 << 20  # bytes of a tensor that is copied; if a larger one changes, that is an error
MOST = 200_000  # objects that are visited

_SHARED = (type(threading.Lock()), type(threading.RLock()), threading.Thread, threading.Event, threading.Condition)
_ALONE = (
    *(CallbackHandler, DataLoader, Dataset, PreTrainedTokenizerBase, Sampler, TrainerCallback, torch.optim.Optimizer),
    torch.optim.lr_scheduler.LRScheduler,
)
_NO_OWN = {"accelerate", "builtins", "deepspeed", "neftune_plugins", "neftune_transformers", "peft", "torch"}
_PLAIN = (bool, int, float, complex, str, type(None), list, dict, set, tuple, collections.deque, Tensor)
_OF_MODULES = vars(nn.Module()).keys()
_INSTALLED = tuple(sysconfig.get_path(name) for name in ("purelib", "platlib", "stdlib"))

_Looked = tuple[Iterable[Any], Callable[[], None]]
"""The values inside a value, to be visited too, and the function that restores it."""


@contextlib.contextmanager
def leaving_none(trainer: Any, model: nn.Module, inputs: Any) -> Iterator[None]:
    """At its end, restore everything that is reached from the trainer, the model and the batch.

    Raises NoiseConfigError if a tensor of more than `LARGEST` bytes was changed in place.
    """
    record = _Record(trainer)
    record.look([vars(trainer), model, inputs])
    states = random.getstate(), numpy.random.get_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        numpy.random.set_state(states[1])
        record.restore()


class _Record:
    """The state of everything that was visited."""

    def __init__(self, trainer: Any) -> None:
        self._restores: list[Callable[[], None]] = []
        data = (getattr(trainer, name, None) for name in ("train_dataset", "eval_dataset"))
        self._seen = {id(value): value for value in (trainer, *data)}
        own = [kind for kind in type(trainer).__mro__ if _package(kind) not in _NO_OWN]
        self._packages = set(map(_package, own))
        modules = {kind.__module__: sys.modules.get(kind.__module__) for kind in own}
        for holder in (*own, *filter(None, modules.values())):
            self.look(self._look_at(_attributes(holder, setattr)))

    def look(self, values: Iterable[Any]) -> None:
        """Visit these values and all that is inside them."""
        waiting = collections.deque(values)
        while waiting and len(self._seen) < MOST:
            value = waiting.popleft()
            if id(value) in self._seen:
                continue
            self._seen[id(value)] = value  # keeps the object alive, so that no other gets its id
            waiting += self._look_at(self._looked(value))
        if waiting:
            logger.warning_once(
                f"neftune_clean_loss_steps: the trainer holds more than {MOST:,} objects; what the loss without noise "
                "changes in the others is not restored"
            )

    def restore(self) -> None:
        """Restore everything, containers after their contents."""
        for restore in reversed(self._restores):
            restore()

    def _look_at(self, looked: _Looked | None) -> Iterable[Any]:
        if looked is None:
            return ()
        self._restores.append(looked[1])
        return looked[0]

    def _looked(self, value: Any) -> _Looked | None:
        if isinstance(value, _ALONE):
            return None
        for kinds, look in _KINDS:
            if isinstance(value, kinds):
                return look(value)
        if isinstance(value, types.FunctionType):
            return _closure(value) if self._is_own(value) else None
        if self._is_own(type(value)) and not isinstance(value, type):
            inside = getattr(value, "__dict__", {})
            shared = any(isinstance(one, _SHARED) for one in inside.values())
            return None if shared else _object(value)
        return None

    def _is_own(self, defined: Any) -> bool:
        """Whether a class or a function belongs to the trainer's packages or to the user's own code."""
        package = _package(defined)
        if package in self._packages or defined in (types.SimpleNamespace, collections.UserDict, collections.UserList):
            return True
        file = getattr(sys.modules.get(defined.__module__ or ""), "__file__", None)
        return package == "__main__" or (
            file is not None and not file.startswith(_INSTALLED) and package not in _NO_OWN
        )


def _package(defined: Any) -> str:
    return str(defined.__module__).partition(".")[0]


def _kept(value: Any) -> Any:
    """Return what to restore for a value: the value itself, or a copy of a counter, which cannot be set back."""
    if isinstance(value, itertools.count):
        return itertools.count(*ast.literal_eval(f"[{repr(value)[6:-1]}]"))
    return value


def _list(value: Any) -> _Looked:
    kept = list(map(_kept, value))

    def restore() -> None:
        if len(value) != len(kept) or any(one is not other for one, other in zip(value, kept, strict=True)):
            value[:] = type(value)(value.typecode, kept) if isinstance(value, array.array) else kept

    return kept, restore


def _dict(value: Any) -> _Looked:
    kept = {name: _kept(one) for name, one in value.items()}

    def restore() -> None:
        if list(value) != list(kept) or any(value[name] is not one for name, one in kept.items()):
            value.clear()
            value.update(kept)

    return list(kept.values()), restore


def _set(value: Any) -> _Looked:
    kept = list(value)

    def restore() -> None:
        value.clear()
        value.update(kept)

    return kept, restore


def _deque(value: Any) -> _Looked:
    kept = list(map(_kept, value))

    def restore() -> None:
        value.clear()
        value.extend(kept)

    return kept, restore


def _tensor(value: Tensor) -> _Looked | None:
    if value.requires_grad or value.is_inference() or value.is_meta:
        return None
    if value.numel() * value.element_size() <= LARGEST:
        kept = value.detach().clone()
        return (), lambda: _write(value, kept)
    version, shape = value._version, tuple(value.shape)

    def refuse() -> None:
        if value._version != version:
            raise NoiseConfigError(
                f"neftune_clean_loss_steps: computing the loss changes a tensor of shape {shape} in place, which is "
                f"not kept for the loss without noise (more than {LARGEST} bytes); leave the key out"
            )

    return (), refuse


def _write(value: Tensor, kept: Tensor) -> None:
    with torch.no_grad():
        value.data.copy_(kept)  # no new version: autograd may have saved it


def _array(value: Any) -> _Looked | None:
    if value.nbytes > LARGEST or not value.flags.writeable:
        return None
    kept = value.copy()

    def restore() -> None:
        value[...] = kept

    return (list(kept.flat) if value.dtype.hasobject else ()), restore


def _object(value: Any) -> _Looked:
    slots = [name for kind in type(value).__mro__ for name in _names(kind.__dict__.get("__slots__", ()))]
    kept = {name: _kept(getattr(value, name)) for name in slots if hasattr(value, name)}

    def restore() -> None:
        for name, one in kept.items():
            object.__setattr__(value, name, one)

    inside = getattr(value, "__dict__", None)
    return [*kept.values(), *([] if inside is None else [inside])], restore


def _names(slots: Any) -> list[str]:
    names = [slots] if isinstance(slots, str) else list(slots)
    return [name for name in names if name not in ("__dict__", "__weakref__")]


def _attributes(value: Any, write: Callable[[Any, str, Any], None]) -> _Looked:
    """Return the plain attributes of a class or a module."""
    kept = {name: _kept(one) for name, one in _plain(value)}

    def restore() -> None:
        for name, one in _plain(value):
            if name not in kept:
                delattr(value, name)
            elif one is not kept[name]:
                write(value, name, kept[name])

    return list(kept.values()), restore


def _plain(value: Any) -> list[tuple[str, Any]]:
    return [
        (name, one)
        for name, one in vars(value).items()
        if isinstance(one, (*_PLAIN, itertools.count)) and name not in _OF_MODULES and not name.startswith("__")
    ]


def _modules(value: nn.Module) -> _Looked:
    """Yield a module and its submodules."""
    looked = []
    for module in value.modules():
        looked.append(_dict(module._buffers))
        if _package(type(module)) not in _NO_OWN:
            looked.append(_attributes(module, object.__setattr__))

    def restore() -> None:
        for _, one in looked:
            one()

    return [one for inside, _ in looked for one in inside], restore


def _closure(value: types.FunctionType) -> _Looked:
    cells = [cell for cell in value.__closure__ or () if _is_full(cell)]
    kept = [_kept(cell.cell_contents) for cell in cells]

    def restore() -> None:
        for cell, one in zip(cells, kept, strict=True):
            cell.cell_contents = one

    return [*kept, vars(value)], restore


def _is_full(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False


def _state(read: Callable[[Any], Any], write: Callable[[Any, Any], Any]) -> Callable[[Any], _Looked]:
    def look(value: Any) -> _Looked:
        state = read(value)
        return (), lambda: write(value, state)

    return look


def _nothing() -> None:
    pass


_KINDS: tuple[tuple[Any, Callable[[Any], _Looked | None]], ...] = (
    (nn.Module, _modules),
    (Tensor, _tensor),
    (tuple, lambda value: (value, _nothing)),
    (dict, _dict),
    ((list, bytearray, array.array), _list),
    (set, _set),
    (collections.deque, _deque),
    (numpy.ndarray, _array),
    (random.Random, _state(lambda value: value.getstate(), lambda value, state: value.setstate(state))),
    (torch.Generator, _state(lambda value: value.get_state(), lambda value, state: value.set_state(state))),
    (numpy.random.RandomState, _state(lambda value: value.get_state(), lambda value, state: value.set_state(state))),
    (
        numpy.random.Generator,
        _state(
            lambda value: value.bit_generator.state, lambda value, state: setattr(value.bit_generator, "state", state)
        ),
    ),
    (functools.partial, lambda value: ([value.func, value.args, value.keywords], _nothing)),
    (types.MethodType, lambda value: ([value.__self__, value.__func__], _nothing)),
)
