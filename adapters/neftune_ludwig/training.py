"""Ludwig's own training command."""

import sys
from pathlib import Path

from neftune_ludwig.places import owners
from neftune_plugins import KeyPlace, TrainingCommand


def arguments(config: Path, folder: Path) -> list[str]:
    """Return the command line that trains a configuration, without the dataset."""
    command = [str(Path(sys.executable).with_name("ludwig")), "train", "--config", str(config)]
    return [*command, "--output_directory", str(folder)]


def trained_model(folder: Path) -> Path:
    """Return the folder of the trained model under the output directory."""
    return folder / "experiment_run" / "model" / "model_weights"


# The parameters of the language model, or of each llm text encoder.
PLACES = (
    KeyPlace(("model_parameters",), beside=("model_type", "llm")),
    KeyPlace(("input_features", "*", "encoder", "model_parameters"), beside=("type", "llm")),
    KeyPlace(("defaults", "*", "encoder", "model_parameters"), beside=("type", "llm")),
)

TRAINING = TrainingCommand(
    arguments=lambda config, seed, folder: [*arguments(config, folder), "--random_seed", str(seed)],
    model=trained_model,
    owners=owners,
)
