"""Axolotl's own training command."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from neftune_plugins import TrainingCommand

# Axolotl's name of the key before it was neftune_noise_alpha; it moves the value to the new one.
OLDER_NAME = "noisy_embedding_alpha"


def arguments(config: Path) -> list[str]:
    """The command line that trains what a configuration says."""
    return [str(Path(sys.executable).with_name("axolotl")), "train", str(config)]


def no_training(config: Mapping[str, Any]) -> str:
    """Why a run with this configuration trains nothing; empty where it trains."""
    if config.get("num_epochs") == 0 and not config.get("max_steps"):
        return "num_epochs is 0; set num_epochs: 1"
    return ""


TRAINING = TrainingCommand(
    arguments=lambda config, seed, folder: arguments(config),
    model=lambda folder: folder,
    settings=lambda seed, folder: {"seed": seed, "output_dir": str(folder)},
)
