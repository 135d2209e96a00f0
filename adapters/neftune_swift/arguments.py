"""Adds the keys to ms-swift's arguments, and checks them before a model is loaded."""

import functools
import sys
from typing import Any

from neftune_transformers.arguments import KEYS, extended, normalise, refuse_arguments, refuse_unpatched

from neftune_plugins import NoiseConfigError, enabled, refuse_context_parallel, resolve

_ALPHA, _TYPE = KEYS[:2]


def add_keys(module: Any) -> None:
    """Patch `swift.trainers.arguments`: the training arguments of each trainer, and the arguments of the commands that
    train, inherit from one of these classes. They are defined later, and so get our fields."""
    for name in ("TrainArgumentsMixin", "TrainingArguments", "Seq2SeqTrainingArguments"):
        setattr(module, name, extended(getattr(module, name)))


def check_values(module: Any) -> None:
    """Patch `swift.arguments.sft_args` or `rlhf_args`: the arguments of a command are checked first."""
    kind = module.SftArguments if module.__name__.endswith(".sft_args") else module.RLHFArguments
    kind.__post_init__ = _checking(kind.__post_init__)


def _checking(post_init: Any) -> Any:
    @functools.wraps(post_init)
    def check_and_post_init(self: Any) -> None:
        if enabled():
            check_arguments(self)
        post_init(self)

    return check_and_post_init


def check_arguments(args: Any) -> None:
    """Convert our keys in the arguments of a command, and raise NoiseConfigError for values and combinations that
    cannot be used, NoiseNotAppliedError if ms-swift could not be patched."""
    from swift.utils import get_logger

    line = normalise(args)
    if line:
        get_logger().info(line)
    if resolve(vars(args)) is None:
        return
    refuse_unpatched("neftune_swift")
    refuse_context_parallel({"sequence_parallel_size": args.sequence_parallel_size})
    if args.tuner_type == "neftune":
        raise NoiseConfigError(
            f"{_ALPHA}: {getattr(args, _ALPHA)} beside tuner_type: neftune would add noise twice; set tuner_type to "
            f"full or lora, or leave {_ALPHA} out"
        )


def check_options(module: Any) -> None:
    """Patch `swift.pipelines.base`: options like our keys that nothing reads stop a command that trains, also with
    `--ignore_args_error`."""
    pipeline = module.SwiftPipeline
    parse = pipeline._parse_args

    @functools.wraps(parse)
    def check_and_parse(self: Any, args: Any = None) -> Any:
        if enabled() and not isinstance(args, self.args_class) and _TYPE in self.args_class.__dataclass_fields__:
            refuse_arguments(sys.argv[1:] if args is None else args)
        return parse(self, args)

    pipeline._parse_args = check_and_parse
