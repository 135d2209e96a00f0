"""LLaMA-Factory's own training command."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from neftune_plugins import TrainingCommand


def arguments(config: Path) -> list[str]:
    """Return the command line that trains a configuration."""
    return [str(Path(sys.executable).with_name("llamafactory-cli")), "train", str(config)]


def no_training(config: Mapping[str, Any]) -> str:
    """Return why a run with this configuration trains nothing; empty if it trains. V1 always trains."""
    if "model_name_or_path" in config and not config.get("do_train"):
        return f"do_train is {'false' if 'do_train' in config else 'left out, which is false'}; set do_train: true"
    if config.get("num_train_epochs") == 0 and not config.get("max_steps"):
        return "num_train_epochs is 0; set num_train_epochs: 1"
    return ""


TRAINING = TrainingCommand(
    arguments=lambda config, seed, folder: arguments(config),
    model=lambda folder: folder,
    settings=lambda seed, folder: {"seed": seed, "output_dir": str(folder)},
)
