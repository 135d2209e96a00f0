"""Records the loss that V1's trainers log, for `neftune sweep`. (The classic path uses transformers' Trainer.)"""

from typing import Any

from neftune_transformers.curve import record_logs

from neftune_plugins import curve


def patch(module: Any) -> None:
    """Patch `llamafactory.v1.utils.callbacks.trainer_callback` if a sweep asks for the loss curve."""
    if curve.wanted():
        record_logs(module.CallbackHandler)
