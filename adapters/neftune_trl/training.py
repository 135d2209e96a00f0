"""TRL's own training commands."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from neftune_plugins import NEFTuneError, TrainingCommand

COMMANDS = ("sft", "dpo", "kto", "reward", "grpo", "rloo")
VARIABLE = "TRL_COMMAND"
"""A file does not say of which command it is; its `env`, which TRL puts into the environment, may."""


def named(config: Mapping[str, Any]) -> str | None:
    """The command that a configuration names in its `env`. Raises NEFTuneError if TRL has none such."""
    variables = config.get("env")
    name = variables.get(VARIABLE) if isinstance(variables, Mapping) else None
    if name is not None and name not in COMMANDS:
        raise NEFTuneError(f"env.{VARIABLE}: {name!r} is no command of TRL; there are {', '.join(COMMANDS)}")
    return name


def arguments(config: Path) -> list[str]:
    """The command line that trains what a configuration says: `trl sft`, unless it names another command."""
    import yaml

    name = named(yaml.safe_load(config.read_text(encoding="utf-8"))) or "sft"
    return [str(Path(sys.executable).with_name("trl")), name, "--config", os.fspath(config)]


TRAINING = TrainingCommand(
    arguments=lambda config, seed, folder: arguments(config),
    model=lambda folder: folder,
    settings=lambda seed, folder: {"seed": seed, "output_dir": str(folder)},
)
