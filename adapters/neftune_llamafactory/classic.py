"""The classic path: trainers of transformers and TRL."""

from typing import Any

import transformers.trainer
from neftune_transformers import NEFTuneCallback

from neftune_llamafactory.arguments import add_keys


class FromArguments(NEFTuneCallback):
    """A class of its own, because the Trainer warns of two callbacks of one class: a user may give another."""


def patch(module: Any) -> None:
    """Patch `llamafactory.hparams.training_args`, and give every trainer of the process the callback. It does nothing
    unless the arguments ask for noise."""
    add_keys(module)
    transformers.trainer.DEFAULT_CALLBACKS.append(FromArguments)  # type: ignore[arg-type]
