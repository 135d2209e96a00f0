"""Makes the callback one of the Trainer's defaults, for frameworks that create their trainers themselves."""

from typing import Any

from neftune_transformers.arguments import KEYS
from neftune_transformers.callback import NEFTuneCallback


class FromArguments(NEFTuneCallback):
    """Does nothing unless TrainingArguments have our fields and ask for noise. A separate class, because the Trainer
    warns of two callbacks of one class: if the user passes one, that one is used."""

    by_default = True

    def applies_to(self, args: Any) -> bool:
        return super().applies_to(args) and hasattr(args, KEYS[1])


def add(module: Any, callback: type[FromArguments] = FromArguments) -> None:
    """Patch `transformers.trainer`."""
    if callback not in module.DEFAULT_CALLBACKS:
        module.DEFAULT_CALLBACKS.append(callback)
