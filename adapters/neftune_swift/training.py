"""ms-swift's own training commands."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from neftune_plugins import TrainingCommand


def command(config: Mapping[str, Any]) -> str:
    """Return the command that a configuration is for, which no key says: `rlhf` if it has `rlhf_type`, else `sft`.
    (`swift pt` is `swift sft` with `use_chat_template: false` and `loss_scale: all`.)"""
    return "rlhf" if "rlhf_type" in config else "sft"


def arguments(config: Path) -> list[str]:
    """Return the command line that trains a configuration."""
    import yaml

    name = command(yaml.safe_load(config.read_text(encoding="utf-8")))  # JSON is YAML
    return [str(Path(sys.executable).with_name("swift")), name, str(config)]


def no_training(config: Mapping[str, Any]) -> str:
    """Return why a run with this configuration trains nothing; empty if it trains."""
    if config.get("num_train_epochs") == 0 and not config.get("max_steps"):
        return "num_train_epochs is 0; set num_train_epochs: 1"
    return ""


TRAINING = TrainingCommand(
    arguments=lambda config, seed, folder: arguments(config),
    model=lambda folder: folder,
    settings=lambda seed, folder: {"seed": seed, "output_dir": str(folder), "add_version": False},
)
