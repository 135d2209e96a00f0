"""TRL's own training commands."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from neftune_plugins import NEFTuneError, TrainingCommand

COMMANDS = ("sft", "dpo", "kto", "reward", "grpo", "rloo")
VARIABLE = "TRL_COMMAND"
"""Name in a file's `env` of the command that the file belongs to; TRL copies `env` into the environment."""


def named(config: Mapping[str, Any]) -> str | None:
    """Return the command that a configuration names in its `env`. Raises NEFTuneError if TRL has no such command."""
    variables = config.get("env")
    name = variables.get(VARIABLE) if isinstance(variables, Mapping) else None
    if name is not None and name not in COMMANDS:
        raise NEFTuneError(f"env.{VARIABLE}: {name!r} is no command of TRL; there are {', '.join(COMMANDS)}")
    return name


def arguments(config: Path) -> list[str]:
    """Return the command line that trains a configuration: `trl sft`, unless it names another command."""
    import yaml

    name = named(yaml.safe_load(config.read_text(encoding="utf-8"))) or "sft"
    return [str(Path(sys.executable).with_name("trl")), name, "--config", os.fspath(config)]


TRAINING = TrainingCommand(
    arguments=lambda config, seed, folder: arguments(config),
    model=lambda folder: folder,
    settings=lambda seed, folder: {"seed": seed, "output_dir": str(folder)},
)
