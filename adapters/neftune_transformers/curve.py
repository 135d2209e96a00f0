"""Records what the Trainer logs, for `neftune sweep`."""

import functools
from typing import Any

from neftune_plugins import curve


def patch(module: Any) -> None:
    """Patch transformers if a sweep asks for the loss curve."""
    if curve.wanted():
        from transformers.trainer_callback import CallbackHandler

        record_logs(CallbackHandler)


def record_logs(handler: Any) -> None:
    """Patch a class that calls a training's callbacks: that of transformers, or the similar one of LLaMA-Factory's
    V1."""
    on_log = handler.on_log
    if hasattr(on_log, "__wrapped__"):
        return

    @functools.wraps(on_log)
    def on_log_and_record(self: Any, args: Any, state: Any, *rest: Any, **kwargs: Any) -> Any:
        curve.record(state.global_step, kwargs.get("logs") or rest[-1])
        return on_log(self, args, state, *rest, **kwargs)

    handler.on_log = on_log_and_record
