"""What the tests of Ludwig look at a training with."""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests.ludwig.runs import clean_process
from tests.support.logs import LineHandler
from tests.support.probe import Call
from tests.support.recorder import Run

ALPHA = 5
KEYS = {"neftune_noise_alpha": ALPHA}
NOT_SAVED = {"skip_save_model": True, "skip_save_progress": True, "skip_save_log": True}
NOT_SAVED |= {"skip_save_processed_input": True}


def neftune_hooks_in(model: torch.nn.Module) -> list[Any]:
    hooks: list[Any] = []
    for module in model.modules():
        hooks += [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    return [hook for hook in hooks if "neftune" in f"{hook!r} {type(hook).__module__}".lower()]


def trained(calls: list[Call]) -> list[Call]:
    return [call for call in calls if call.training and call.grad_enabled]


def is_clean(calls: list[Call]) -> bool:
    return not any(call.noise.any() for call in calls if call.noise is not None)


def same_noise(run: Run, other: Run) -> bool:
    return all(torch.equal(a.noise, b.noise) for a, b in zip(run.calls, other.calls, strict=True))


@contextlib.contextmanager
def refused(driver, message: str) -> Iterator[None]:
    """Ludwig's own error, before the model loads."""
    from ludwig.error import ConfigValidationError

    with driver.loads_model() as loaded, pytest.raises(ConfigValidationError, match=re.escape(message)):
        yield
    assert loaded == []


class Watch:
    """A Ludwig callback with a probe on the model from its making, so also where no callback is told of a forward."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.marks: list[int] = []

    def attach(self, model: Any) -> None:
        from tests.ludwig.recorder import LudwigProbe, language_model, padding

        self.model = model
        probe = LudwigProbe(*padding(model))
        probe.calls = self.calls
        probe.attach(language_model(model))

    def since(self, mark: int) -> list[Call]:
        return self.calls[mark:]

    def callback(self) -> Any:
        from ludwig.callbacks import Callback

        class Marks(Callback):
            """Where training begins and ends among the calls."""

            def on_trainer_train_setup(_, *args: Any, **kwargs: Any) -> None:  # noqa: N805
                self.marks.append(len(self.calls))

            def on_trainer_train_teardown(_, *args: Any, **kwargs: Any) -> None:  # noqa: N805
                self.marks.append(len(self.calls))

        return Marks()


@contextlib.contextmanager
def ludwig_model(config: dict[str, Any], *callbacks: Any) -> Iterator[tuple[Any, Watch]]:
    """A LudwigModel, watched."""
    from ludwig.api import LudwigModel

    watch = Watch()
    create = LudwigModel.create_model

    def create_watched(*args: Any, **kwargs: Any) -> Any:
        model = create(*args, **kwargs)
        watch.attach(model)
        return model

    with clean_process(LineHandler()), pytest.MonkeyPatch.context() as patch:
        patch.setattr(LudwigModel, "create_model", staticmethod(create_watched))
        yield LudwigModel(copy.deepcopy(config), callbacks=[*callbacks, watch.callback()]), watch
