"""The classic path: trainers of transformers and TRL."""

from typing import Any

from neftune_llamafactory.arguments import add_keys
from neftune_plugins import after_import


def patch(module: Any) -> None:
    """Patch `llamafactory.hparams.training_args`, and have every trainer of the process given the callback. For that no
    trainer is imported: chat has none."""
    add_keys(module)
    after_import({"transformers.trainer": "neftune_llamafactory.callback:add"})
