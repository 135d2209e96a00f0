"""Axolotl's own training command."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from neftune_plugins import TrainingCommand

# Axolotl's older name of neftune_noise_alpha; Axolotl moves the value to the current name.
OLDER_NAME = "noisy_embedding_alpha"


def arguments(config: Path) -> list[str]:
    """Return the command line that trains a configuration."""
    return [str(Path(sys.executable).with_name("axolotl")), "train", str(config)]


def no_training(config: Mapping[str, Any]) -> str:
    """Return why a run with this configuration trains nothing; empty if it trains."""
    if config.get("num_epochs") == 0 and not config.get("max_steps"):
        return "num_epochs is 0; set num_epochs: 1"
    return ""


TRAINING = TrainingCommand(
    arguments=lambda config, seed, folder: arguments(config),
    model=lambda folder: folder,
    settings=lambda seed, folder: {"seed": seed, "output_dir": str(folder)},
)
