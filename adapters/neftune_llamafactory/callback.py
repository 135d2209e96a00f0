"""The callback of `neftune_transformers` among the Trainer's defaults."""

from typing import Any

from neftune_transformers import NEFTuneCallback


class FromArguments(NEFTuneCallback):
    """Does nothing unless TrainingArguments ask for noise. A class of its own, because the Trainer warns of two
    callbacks of one class: a user may give another."""


def add(module: Any) -> None:
    """Patch `transformers.trainer`."""
    if FromArguments not in module.DEFAULT_CALLBACKS:
        module.DEFAULT_CALLBACKS.append(FromArguments)
