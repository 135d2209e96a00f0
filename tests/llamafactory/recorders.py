"""The recorder of `tests.support` in the trainers of LLaMA-Factory's V1; the classic ones take it as it is."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

from torch import nn

from tests.support.recorder import Recorder


def record_v1(trainer_class: type, recorder: Callable[[], Recorder]) -> Callable[[], None]:
    """Give each trainer of V1 one more callback from now on; call what this returns to undo it.

    V1 takes callbacks in the trainer's constructor, but its entry functions hand none on.
    """
    construct = trainer_class.__init__

    @functools.wraps(construct)
    def construct_and_record(self: Any, *args: Any, **kwargs: Any) -> None:
        construct(self, *args, **kwargs)
        self.callback_handler.add_callback(_v1_callback(recorder()))

    trainer_class.__init__ = construct_and_record
    return lambda: setattr(trainer_class, "__init__", construct)


def _v1_callback(recorder: Recorder) -> Any:
    from llamafactory.v1.utils.callbacks import TrainerCallback

    class V1Recorder(TrainerCallback):
        """V1 counts a step when it begins, the other trainers when it is done."""

        def on_step_begin(self, args: Any, state: Any, *, model: nn.Module, **_: Any) -> None:
            before = dataclasses.replace(state, global_step=state.global_step - 1)
            recorder.on_step_begin(args, before, None, model=model)

        def on_step_end(self, args: Any, state: Any, *, model: nn.Module, **_: Any) -> None:
            recorder.on_step_end(args, state, None, model=model)

        def on_log(self, args: Any, state: Any, logs: dict[str, Any], **_: Any) -> None:
            recorder.on_log(args, state, None, logs)

        def on_train_end(self, args: Any, state: Any, *, model: nn.Module, **_: Any) -> None:
            recorder.on_train_end(args, state, None, model=model)

    return V1Recorder()
