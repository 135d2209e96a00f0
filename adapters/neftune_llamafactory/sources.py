"""LLaMA-Factory's command line and files as the user wrote them: with ALLOW_EXTRA_ARGS=1 it drops unknown keys."""

import functools
from collections.abc import Iterable
from typing import Any

_ALPHA = "neftune_noise_alpha"


def patch(module: Any) -> None:
    """Patch `transformers.hf_argparser`, whose parser both paths use. Other programs' parsers work as before."""
    parser = module.HfArgumentParser
    parse_dict, parse_arguments = parser.parse_dict, parser.parse_args_into_dataclasses
    if hasattr(parse_dict, "_neftune_wrapped"):
        return

    @functools.wraps(parse_dict)
    def check_and_parse_dict(self: Any, args: Any, *others: Any, **options: Any) -> Any:
        if not _is_of_training(self):
            return parse_dict(self, args, *others, **options)
        from neftune_plugins import refuse_misplaced

        refuse_misplaced(args)
        return _checked(parse_dict(self, args, *others, **options))

    @functools.wraps(parse_arguments)
    def check_and_parse_arguments(self: Any, args: Any = None, *others: Any, **options: Any) -> Any:
        if not _is_of_training(self):
            return parse_arguments(self, args, *others, **options)
        from neftune_transformers.arguments import refuse_arguments

        refuse_arguments(args or ())
        return _checked(parse_arguments(self, args, *others, **options))

    check_and_parse_dict._neftune_wrapped = True  # type: ignore[attr-defined]
    parser.parse_dict = check_and_parse_dict
    parser.parse_args_into_dataclasses = check_and_parse_arguments


def _is_of_training(parser: Any) -> bool:
    """Whether a parser makes LLaMA-Factory's training arguments."""
    kinds = parser.dataclass_types
    if not any(kind.__module__.startswith("llamafactory.") for kind in kinds):
        return False
    from neftune_plugins import enabled

    return enabled() and any(_ALPHA in kind.__dataclass_fields__ for kind in kinds)


def _checked(parsed: Iterable[Any]) -> Iterable[Any]:
    """Return what a parser made. Raises NoiseNotAppliedError if alpha is in arguments of trainers without support."""
    from neftune_transformers.arguments import KEYS

    from neftune_plugins import NoiseNotAppliedError

    for arguments in parsed:
        alpha = getattr(arguments, _ALPHA, None)
        if alpha and not hasattr(arguments, KEYS[1]):
            kind = f"{type(arguments).__module__}.{type(arguments).__qualname__}"
            raise NoiseNotAppliedError(
                f"{_ALPHA}: {alpha!r} would have no effect: LLaMA-Factory puts it into {kind}, as it does with "
                f"USE_MCA=1, and this package does not support its trainers. Unset USE_MCA, or leave {_ALPHA} out"
            )
    return parsed
