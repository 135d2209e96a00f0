"""What the trainers of V1 log, for `neftune sweep`; those of the classic path are Trainers of transformers."""

from typing import Any

from neftune_transformers.curve import record_logs

from neftune_plugins import curve


def patch(module: Any) -> None:
    """Patch `llamafactory.v1.utils.callbacks.trainer_callback`, where a sweep asks for the curve."""
    if curve.wanted():
        record_logs(module.CallbackHandler)
