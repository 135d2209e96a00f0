"""The keys on a framework's own dataclass of training arguments."""

import copy
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from neftune_plugins import NoiseConfig, key, keys_in, no_noise_line

KEYS = tuple(key(field) for field in dataclasses.fields(NoiseConfig))


def fields() -> list[tuple[str, Any, Any]]:
    """Our keys as the fields of a dataclass, for `dataclasses.make_dataclass`: name, type, and a field that is null by
    default and has the help text."""
    return [
        (
            key(field),
            field.metadata["annotation"],
            dataclasses.field(default=None, metadata={"help": field.metadata["help"]}),
        )
        for field in dataclasses.fields(NoiseConfig)
    ]


def with_keys(kind: type, post_init: Callable[[Any], None]) -> type:
    """A subclass of a dataclass whose further fields are our keys.

    It has the name of the original, and pickles are of the original: they load without this package, and the Trainer
    saves its arguments. Copies are of the subclass.

    post_init: what the subclass does in `__post_init__`; it calls that of `kind` itself.
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
        "__doc__": kind.__doc__,
        "__copy__": shallow_copy,
        "__deepcopy__": deepcopy,
        "__reduce_ex__": lambda self, protocol: (object.__new__, (kind,), vars(self)),
    }
    patched = dataclasses.make_dataclass(kind.__name__, fields(), bases=(kind,), namespace=namespace)
    patched.__module__, patched.__qualname__ = kind.__module__, kind.__qualname__
    return patched


def options_read(arguments: Sequence[str]) -> list[str]:
    """The options that argparse reads for our keys: both spellings of each, and the abbreviations among `arguments`."""
    known = [f"--{spelt}" for name in KEYS for spelt in (name, name.replace("_", "-"))]
    words = [argument.partition("=")[0] for argument in arguments]
    shortened = [word for word in words if word.startswith("--neft") and any(one.startswith(word) for one in known)]
    return [*known, *shortened]


def normalise(args: Any) -> str:
    """Write our keys into arguments as they are meant: numbers that are given as text become numbers. With an alpha of
    0 the keys are left out, so that no hook is put in for them; the line to log then, and else nothing.

    Raises NoiseConfigError for values that cannot be used.
    """
    line = no_noise_line(vars(args))
    ours = keys_in(vars(args))
    vars(args).update(dict.fromkeys(ours) if line else ours)
    return line
