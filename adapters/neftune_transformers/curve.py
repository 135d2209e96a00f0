"""What the Trainer logs, for `neftune sweep`."""

import functools
from typing import Any

from neftune_plugins import curve


def patch(module: Any) -> None:
    """Patch transformers, where a sweep asks for the curve."""
    if curve.wanted():
        from transformers.trainer_callback import CallbackHandler

        record_logs(CallbackHandler)


def record_logs(handler: Any) -> None:
    """Patch a class that hands the events of a training to callbacks; that of LLaMA-Factory's V1 is built alike."""
    on_log = handler.on_log
    if hasattr(on_log, "__wrapped__"):
        return

    @functools.wraps(on_log)
    def on_log_and_record(self: Any, args: Any, state: Any, *rest: Any, **kwargs: Any) -> Any:
        curve.record(state.global_step, kwargs.get("logs") or rest[-1])
        return on_log(self, args, state, *rest, **kwargs)

    handler.on_log = on_log_and_record
