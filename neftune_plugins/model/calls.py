"""Which module calls are in progress, and whether each is part of a training forward pass."""

import contextlib
import sys
import threading
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction

# Frames between `Calls.enter` and the call of the module: `enter`, `Noise.enter`, the pre-hook.
_FRAMES_OF_OURS = 3


class Pass:
    """An outermost call with all calls in it: what `model(...)` starts.

    noised: for each stream (0: encoder or only stack, 1: decoder) whether it was noised.
    has_ungraded_call: whether a call in it ran without gradients, and so without noise.
    """

    def __init__(self) -> None:
        self.noised = [False, False]
        self.has_ungraded_call = False


class Call:
    """One call of a module above an embedding.

    owner: the pre-hook of that module. (Not the module: dynamo cannot trace one that it has compiled itself.)
    installation: whose hook it is; two may share a module.
    batch: the arguments by name.
    noisy: whether embeddings that are looked up in it get noise.
    whole: the pass that it belongs to.
    frame: the Python frame that lives as long as the call; None in a compiled graph.
    """

    def __init__(
        self,
        owner: Any,
        installation: object,
        batch: dict[str, Any],
        noisy: bool,
        whole: Pass,
        frame: FrameType | None,
    ) -> None:
        self.owner = owner
        self.installation = installation
        self.batch = batch
        self.noisy = noisy
        self.whole = whole
        self.frame = frame


class Calls(threading.local):
    """The calls that this thread is in, of every installation, the innermost last.

    One stack for all, so that an embedding which two models share knows in whose forward pass it is
    (tests/core/test_installations.py).
    """

    def __init__(self) -> None:
        self.stack: list[Call] = []
        self.by_hand: list[object] = []

    def enter(self, owner: Any, installation: object, batch: dict[str, Any], noisy: bool, whole: Pass) -> Call:
        """Begin a call, inside of the module's pre-hook."""
        frame = None if torch.compiler.is_compiling() else sys._getframe(_FRAMES_OF_OURS)
        call = Call(owner, installation, batch, noisy, whole, frame)
        self.stack.append(call)
        return call

    def leave(self, owner: Any) -> Call | None:
        """End the call of this owner; None if it has not begun (somebody's pre-hook raised before ours)."""
        if not any(call.owner is owner for call in self.stack):
            return None
        call = self.stack.pop()
        while call.owner is not owner:
            call = self.stack.pop()
        return call

    def innermost(self) -> Call | None:
        """The innermost call, or None outside of every call.

        A KeyboardInterrupt skips the hooks that would have ended its calls: a call whose Python frame no longer runs
        is dropped (tests/core/test_injection.py: test_an_interrupted_forward_leaves_no_open_call).
        """
        while self.stack:
            call = self.stack[-1]
            if call.frame is None or _is_running(call.frame):
                return call
            self.stack.pop()
        return None

    @contextlib.contextmanager
    def counted_as_training(self, installation: object) -> Iterator[None]:
        """Calls inside are training forward passes of this installation also without gradients."""
        self.by_hand.append(installation)
        try:
            yield
        finally:
            self.by_hand.remove(installation)

    def trains(self, installation: object) -> bool:
        """Whether a call that begins now, of a module in training mode, is part of a training forward pass.

        That is so with gradients enabled; where the user says so; and in the forward of an autograd function, which
        runs without gradients and repeats it in backward (reentrant checkpointing of a whole model).
        """
        if torch.is_grad_enabled() or installation in self.by_hand:
            return True
        return not torch.compiler.is_compiling() and _in_autograd_function()


CALLS = Calls()


def in_backward() -> bool:
    """Whether this forward runs inside a backward pass: activation checkpointing repeats it, or a backward hook
    computes it (gradient caching)."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def call_with(calls: list[Call], input_ids: Tensor) -> Call | None:
    """The innermost of these calls with these ids, or else with ids of that shape (models replace image tokens)."""
    alike = None
    for call in reversed(calls):
        ids = call.batch.get("input_ids")
        if ids is input_ids:
            return call
        if alike is None and isinstance(ids, Tensor) and ids.shape == input_ids.shape:
            alike = call
    return alike


def is_of_labels(calls: list[Call], input_ids: Tensor) -> bool:
    """Whether these ids, which no call was given, can be the labels of one, shifted: PEFT's prompt tuning of an
    encoder-decoder looks targets up before it calls the model that it wraps."""
    labels = [call.batch.get("labels") for call in calls]
    return any(isinstance(found, Tensor) and found.shape == input_ids.shape for found in labels)


def batch_of(call: Call, calls: list[Call]) -> dict[str, Any]:
    """The arguments of that call, completed by those of the calls around it that were given the same ids (RWKV keeps
    the mask from its inner model). `outer`: the arguments of all calls around it, outermost first."""
    batch: dict[str, Any] = {}
    for other in calls:
        if other.batch.get("input_ids") is call.batch["input_ids"] and other.owner.stream == call.owner.stream:
            batch.update({name: value for name, value in other.batch.items() if value is not None})
    outer: list[Mapping[str, Any]] = []
    for other in calls:
        if other is call:
            break
        outer.append(other.batch)
    batch["outer"] = tuple(outer)
    return batch


def _is_running(frame: FrameType) -> bool:
    """Whether this frame is on the stack of the current thread."""
    current: FrameType | None = sys._getframe(1)
    while current is not None:
        if current is frame:
            return True
        current = current.f_back
    return False


def _in_autograd_function() -> bool:
    """Whether the forward of a torch.autograd.Function is on the stack, with an input that requires a gradient."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        if frame.f_code.co_name == "forward" and frame.f_code.co_argcount > 0:
            context = frame.f_locals.get(frame.f_code.co_varnames[0])
            if isinstance(context, BackwardCFunction):
                return any(context.needs_input_grad)
        frame = frame.f_back
    return False
