"""Reads a configuration file with TRL's own parser, and checks that this parser is patched."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from accelerate.commands.launch import launch_command_parser
from trl.scripts.utils import TrlParser

from neftune_plugins import CheckedModel, NEFTuneError, NoiseNotAppliedError, keys_in, unpatched
from neftune_trl.training import COMMANDS, named

# The run may be on another machine, so neither a GPU for bf16 nor the launcher of DeepSpeed is required here.
_ANYWHERE = {"use_cpu": True, "deepspeed": None}


def adapter() -> str:
    """Return how TRL's parser is patched. Raises NoiseNotAppliedError if it is not."""
    problem = unpatched("neftune_trl")
    if not problem and not hasattr(TrlParser.__init__, "__wrapped__"):
        problem = "PyTorch has not called the entry points of `torch.backends`; unset TORCH_DEVICE_BACKEND_AUTOLOAD"
    if problem:
        raise NoiseNotAppliedError(f"TRL's parser is not patched: {problem}")
    return (
        "by PyTorch's autoload, in TRL's commands and in scripts whose training arguments come from TrlParser; in "
        "other scripts, pass neftune_transformers.NEFTuneCallback() to the trainer"
    )


def check(file: Path) -> Sequence[CheckedModel]:
    """Read a file as `trl COMMAND --config FILE` does: the command that the file names, else the first command that
    knows all its keys."""
    config = yaml.safe_load(file.read_text(encoding="utf-8"))
    command = named(config)
    problems = []
    for name in [command] if command else COMMANDS:
        try:
            training, model = _parsed(name, dict(config))
        except _UnknownKeyError as error:
            problems.append(error)
            continue
        return [CheckedModel((), keys_in(vars(training)), model.model_name_or_path, native=True, seed=training.seed)]
    raise problems[0]


class _UnknownKeyError(NEFTuneError):
    """A key that neither a command of TRL nor `accelerate launch`, which the command runs, knows."""


def _parsed(command: str, config: dict[str, Any]) -> tuple[Any, Any]:
    """Return the training and the model arguments of a command."""
    try:
        parser = importlib.import_module(f"trl.scripts.{command}").make_parser()
    except ImportError:
        raise _UnknownKeyError(f"this release of TRL has no command {command}") from None
    config.pop("env", None)
    known = {action.dest for action in parser._actions}
    config |= {name: value for name, value in _ANYWHERE.items() if name in known}
    remaining = parser.set_defaults_with_config(**config)
    launch = {action.dest for action in launch_command_parser()._actions} | {"accelerate_config"}
    unknown = [word[2:] for word in remaining[::2] if word[2:] not in launch]
    if unknown:
        raise _UnknownKeyError(f"{unknown[0]}: neither trl {command} nor accelerate launch has such a key")
    made = parser.parse_args_into_dataclasses(args=[])
    training = next(one for one in made if hasattr(one, "neftune_noise_alpha"))
    return training, next(one for one in made if hasattr(one, "model_name_or_path"))
