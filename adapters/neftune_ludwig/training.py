"""Ludwig's own training command."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from neftune_plugins import TrainingCommand


def arguments(config: Path, folder: Path) -> list[str]:
    """The command line that trains what a configuration says; the dataset is to be added."""
    command = [str(Path(sys.executable).with_name("ludwig")), "train", "--config", str(config)]
    return [*command, "--output_directory", str(folder)]


def trained_model(folder: Path) -> Path:
    """Where the trained model is, under the output directory."""
    return folder / "experiment_run" / "model" / "model_weights"


def owners(config: Mapping[str, Any]) -> Sequence[tuple[str | int, ...]]:
    """The parameters of the language model, or of each text encoder that is one."""
    if config.get("model_type") == "llm":
        return [("model_parameters",)]
    return [
        ("input_features", number, "encoder", "model_parameters")
        for number, feature in enumerate(config["input_features"])
        if feature.get("encoder", {}).get("type") == "llm"
    ]


TRAINING = TrainingCommand(
    arguments=lambda config, seed, folder: [*arguments(config, folder), "--random_seed", str(seed)],
    model=trained_model,
    owners=owners,
)
