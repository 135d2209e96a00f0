"""The classic path: trainers of transformers and TRL."""

from typing import Any

from neftune_llamafactory.arguments import add_keys
from neftune_plugins import after_import


def patch(module: Any) -> None:
    """Patch `llamafactory.hparams.training_args`, and give the callback to every trainer of the process.

    Does not import a trainer, because `llamafactory-cli chat` has none.
    """
    add_keys(module)
    after_import({"transformers.trainer": "neftune_llamafactory.callback:add"})
