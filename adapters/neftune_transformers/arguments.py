"""Adds the keys to a framework's own dataclass of training arguments."""

import copy
import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from neftune_plugins import (
    NoiseConfig,
    NoiseNotAppliedError,
    key,
    keys_in,
    no_noise_line,
    refuse_misplaced,
    refuse_options,
    unpatched,
)

KEYS = tuple(key(field) for field in dataclasses.fields(NoiseConfig))


def fields() -> list[tuple[str, Any, Any]]:
    """Return our keys for `dataclasses.make_dataclass`: name, type, and a field with the help text and the default
    None."""
    return [
        (
            key(field),
            field.metadata["annotation"],
            dataclasses.field(default=None, metadata={"help": field.metadata["help"]}),
        )
        for field in dataclasses.fields(NoiseConfig)
    ]


def extended(kind: type, namespace: Mapping[str, Any] | None = None) -> type:
    """Return a subclass of a dataclass with our keys as further fields, and with the name of the original."""
    whole = {"__doc__": kind.__doc__, **(namespace or {})}
    made = dataclasses.make_dataclass(kind.__name__, fields(), bases=(kind,), namespace=whole)
    made.__module__, made.__qualname__ = kind.__module__, kind.__qualname__
    return made


def with_keys(kind: type, post_init: Callable[[Any], None]) -> type:
    """Return a subclass of a dataclass with our keys as further fields, for code that keeps the original.

    Its instances pickle as instances of the original, so that the arguments which the
    Trainer saves load without this package. Copies are instances of the subclass.

    post_init: `__post_init__` of the subclass; it has to call that of `kind`.
    """

    def deepcopy(self: Any, memo: dict[int, Any]) -> Any:
        memo[id(self)] = made = object.__new__(type(self))
        vars(made).update(copy.deepcopy(vars(self), memo))
        return made

    def shallow_copy(self: Any) -> Any:
        made = object.__new__(type(self))
        vars(made).update(vars(self))
        return made

    namespace = {
        "__post_init__": post_init,
        "__copy__": shallow_copy,
        "__deepcopy__": deepcopy,
        "__reduce_ex__": lambda self, protocol: (object.__new__, (kind,), vars(self)),
    }
    return extended(kind, namespace)


def options_read(arguments: Sequence[str]) -> list[str]:
    """Return the options that argparse reads for our keys: both spellings, and the abbreviations among `arguments`."""
    known = [f"--{spelt}" for name in KEYS for spelt in (name, name.replace("_", "-"))]
    words = [argument.partition("=")[0] for argument in arguments]
    shortened = [word for word in words if word.startswith("--neft") and any(one.startswith(word) for one in known)]
    return [*known, *shortened]


def refuse_arguments(arguments: Sequence[str]) -> None:
    """Raise NoiseConfigError for options that nothing reads, and for our keys inside JSON values of options."""
    refuse_options(arguments, read=options_read(arguments))
    joined = (argument.partition("=")[::2] for argument in arguments)
    pairs = itertools.chain(joined, itertools.pairwise(arguments))
    refuse_misplaced({name.lstrip("-"): value for name, value in pairs if value.startswith("{")})


def refuse_unpatched(adapter: str) -> None:
    """Raise NoiseNotAppliedError if a patch of an adapter, such as `neftune_trl`, failed."""
    problem = unpatched(adapter)
    if problem:
        raise NoiseNotAppliedError(f"{KEYS[0]} would have no effect: {problem}")


def normalise(args: Any) -> str:
    """Convert our keys in arguments: numbers given as text become numbers, and an alpha of 0 clears all keys, so that
    no hook is installed for them. Returns the line to log in that case, else an empty string.

    Raises NoiseConfigError for values that cannot be used.
    """
    line = no_noise_line(vars(args))
    ours = keys_in(vars(args))
    vars(args).update(dict.fromkeys(ours) if line else ours)
    return line
