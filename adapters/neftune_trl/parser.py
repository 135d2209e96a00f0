"""Adds our keys to the training arguments that TRL's commands parse from flags and YAML.

Each command parses twice: first the `trl` process, then the script in each process that it launches.
"""

import functools
import sys
from typing import Any

from neftune_transformers.arguments import KEYS, normalise, options_read, refuse_unpatched, with_keys

from neftune_plugins import (
    enabled,
    refuse_context_parallel,
    refuse_misplaced,
    refuse_options,
    resolve,
)

_ALPHA, _TYPE = KEYS[:2]
_HOME = "at the top level of the file of --config"


def patch(module: Any) -> None:
    """Patch `trl.scripts.utils`: its `TrlParser` gives training arguments our fields."""
    parser = module.TrlParser
    init, parse, set_defaults = parser.__init__, parser.parse_args_and_config, parser.set_defaults_with_config

    @functools.wraps(init)
    def init_with_keys(self: Any, dataclass_types: Any = None, **kwargs: Any) -> None:
        kinds = [dataclass_types] if isinstance(dataclass_types, type) else list(dataclass_types or ())
        init(self, [_with_keys(kind) for kind in kinds], **kwargs)

    @functools.wraps(parse)
    def check_and_parse(self: Any, args: Any = None, *others: Any, **kwargs: Any) -> Any:
        words = sys.argv[1:] if args is None else list(args)
        if enabled() and _reads_keys(self):
            refuse_options(words, read=options_read(words))
        return parse(self, words, *others, **kwargs)

    @functools.wraps(set_defaults)
    def check_and_set_defaults(self: Any, **config: Any) -> Any:
        if enabled() and _reads_keys(self):
            refuse_misplaced(config, home=_HOME)
        return set_defaults(self, **config)

    parser.__init__ = init_with_keys
    parser.parse_args_and_config = check_and_parse
    parser.set_defaults_with_config = check_and_set_defaults


@functools.cache
def _with_keys(kind: Any) -> Any:
    """Return the class with our fields added, if it is a class of training arguments that has none."""
    fields = kind.__dataclass_fields__
    if _ALPHA not in fields or _TYPE in fields:
        return kind

    def check_and_post_init(self: Any) -> None:
        line = normalise(self) if enabled() else ""
        noisy = enabled() and resolve(vars(self)) is not None
        kind.__post_init__(self)
        if line or noisy:
            _give_callback(self, line)

    return with_keys(kind, check_and_post_init)


def _give_callback(args: Any, line: str) -> None:
    from neftune_transformers import NEFTuneCallback, defaults
    from transformers import trainer

    refuse_unpatched("neftune_trl")
    if line:
        NEFTuneCallback.logger.info(line)
        return
    parallel = getattr(args, "parallelism_config", None)
    sizes = {name: getattr(parallel, name, None) for name in ("cp_size", "sp_size")}
    refuse_context_parallel({f"parallelism_config.{name}": size for name, size in sizes.items()})
    defaults.add(trainer)


def _reads_keys(parser: Any) -> bool:
    """Whether a parser, or a subparser of it, makes training arguments."""
    actions = parser._actions
    parsers = [one for action in actions if isinstance(action.choices, dict) for one in action.choices.values()]
    return any(action.dest == _TYPE for action in actions) or any(map(_reads_keys, parsers))
