"""Logs one line if a Trainer uses its own hook for `neftune_noise_alpha`, which is not the noise of the paper."""

import functools
from typing import Any

from neftune_plugins import after_import

EFFECT = "which counts padding in the length of an example and puts noise on it"
_said: list[str] = []  # once in a process


def patch(module: Any) -> None:
    """Patch `transformers.optimization`: every trainer imports it, after torch."""
    after_import({"transformers.trainer_callback": "neftune_transformers.notice:watch"})


def watch(module: Any) -> None:
    """Patch `transformers.trainer_callback`: when training begins, all callbacks of a trainer are known."""
    handler = module.CallbackHandler
    begin = handler.on_train_begin
    if hasattr(begin, "_neftune_wrapped"):
        return

    @functools.wraps(begin)
    def begin_and_say(self: Any, args: Any, state: Any, *others: Any, **kwargs: Any) -> Any:
        result = begin(self, args, state, *others, **kwargs)
        if getattr(args, "neftune_noise_alpha", None) and not _said and state.is_world_process_zero:
            _say(self.callbacks, args)
        return result

    begin_and_say._neftune_wrapped = True  # type: ignore[attr-defined]
    handler.on_train_begin = begin_and_say


def is_active() -> bool:
    """Whether a Trainer in this process logs the line. Imports transformers."""
    from transformers.trainer_callback import CallbackHandler

    return hasattr(CallbackHandler.on_train_begin, "_neftune_wrapped")


def _say(callbacks: list[Any], args: Any) -> None:
    from neftune_transformers.callback import NEFTuneCallback

    if any(isinstance(callback, NEFTuneCallback) and callback.applies_to(args) for callback in callbacks):
        return
    _said.append(
        f"neftune_noise_alpha: {args.neftune_noise_alpha} is left to the Trainer's own hook, {EFFECT}. For the "
        "noise of the paper, give the Trainer the callback neftune_transformers.NEFTuneCallback(); NEFTUNE_PLUGINS=0 "
        "keeps its own hook and silences this line."
    )
    NEFTuneCallback.logger.warning(_said[0])
