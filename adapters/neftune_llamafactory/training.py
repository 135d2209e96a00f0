"""LLaMA-Factory's own training command."""

import sys
from pathlib import Path

from neftune_plugins import TrainingCommand


def arguments(config: Path) -> list[str]:
    """The command line that trains what a configuration says."""
    return [str(Path(sys.executable).with_name("llamafactory-cli")), "train", str(config)]


TRAINING = TrainingCommand(
    arguments=lambda config, seed, folder: arguments(config),
    model=lambda folder: folder,
    settings=lambda seed, folder: {"seed": seed, "output_dir": str(folder)},
)
