"""The forward hooks: what they know of the calls in progress, and where they add the noise.

A pre-hook on the modules above an embedding learns the batch, a hook on the embedding's output adds the noise, and
the state of the outermost of these modules at its call decides whether there is any.
"""

import contextlib
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from neftune_plugins.errors import NEFTuneError, NoiseNotAppliedError
from neftune_plugins.model.metrics import Measurements
from neftune_plugins.model.sharded import add_to_shared, check_whole, held, is_shared, whole
from neftune_plugins.noise import (
    Batch,
    Layout,
    NoiseType,
    add_noise,
    add_noise_,
    expected_energy,
    stream_key,
    token_keys,
    token_scales,
)

# Forwards whose noise can be recomputed in one backward; what is kept of each is 20 bytes a token.
_MAX_RECOMPUTABLE = 64
# Lookups before a forward that may be the `inputs_embeds` of that forward.
_MAX_EARLY_LOOKUPS = 8


class _Frame:
    """One call of a module above an embedding.

    owner: the pre-hook of that module. (Not the module: dynamo cannot trace one that it has compiled itself.)
    batch: its arguments by name.
    noisy: whether the outermost call wants noise.
    noised: for each stream whether it has been noised since the outermost call began; one list for all its calls.
    """

    def __init__(self, owner: "OwnerPreHook", batch: dict[str, Any], noisy: bool, noised: list[bool]) -> None:
        self.owner = owner
        self.batch = batch
        self.noisy = noisy
        self.noised = noised


class _Calls(threading.local):
    """The calls that a thread is in, the innermost last."""

    def __init__(self) -> None:
        self.stack: list[_Frame] = []


class Noise:
    """The state behind the hooks of one installation.

    noise_type: of the noise.
    alpha: of the first step.
    seed: of the noise.
    padded_length: whether L is the width of a row.
    embeddings: names of the noised modules, for errors.
    layout: reads the layout of a batch.
    measurements: of the noise, or None.
    step_missing: raises the error for a training forward whose step nobody set, if the configuration needs steps.
    """

    def __init__(
        self,
        noise_type: NoiseType,
        *,
        alpha: float,
        seed: int,
        padded_length: bool,
        embeddings: Sequence[str],
        layout: Callable[[Batch], Layout],
        measurements: Measurements | None,
        step_missing: Callable[[], NEFTuneError | None],
    ) -> None:
        self.noise_type = noise_type
        self.padded_length = padded_length
        self.embeddings = embeddings
        self.layout = layout
        self.measurements = measurements
        self.step_missing = step_missing
        self.keys = (stream_key(seed, 0), stream_key(seed, 1))
        # Tensors, so that a compiled graph takes them as inputs and is not compiled again when they change.
        self.step = torch.full((), -1, dtype=torch.int64)
        self.alpha = torch.full((), alpha, dtype=torch.float32)
        self.counts_forwards = True
        self.calls = _Calls()
        self.recomputable: deque[tuple[Tensor, Tensor, Tensor]] = deque(maxlen=_MAX_RECOMPUTABLE)
        self.early_lookups: deque[tuple[weakref.ref[Tensor], Tensor, EmbeddingHook, nn.Module]] = deque(
            maxlen=_MAX_EARLY_LOOKUPS
        )

    def begin_step(self, step: int, alpha: float) -> None:
        self.alpha.fill_(alpha)
        self.counts_forwards = False
        self.step.fill_(step)
        self.calls.stack.clear()  # an interrupted forward may have left its calls
        self.recomputable.clear()

    def enter(self, owner: "OwnerPreHook", module: nn.Module, batch: dict[str, Any]) -> Tensor | None:
        """Begin a call. Gives `inputs_embeds` with noise where they are an early lookup."""
        stack = self.calls.stack
        if owner.is_root:
            stack.clear()
        if stack:
            noisy, noised = stack[0].noisy, stack[0].noised
        else:
            noisy, noised = module.training and torch.is_grad_enabled(), [False, False]
            if noisy and self.counts_forwards and not _in_backward():
                missing = self.step_missing()
                if missing is not None:
                    raise missing
                self.step.add_(1)
        stack.append(_Frame(owner, batch, noisy, noised))
        embeds = batch.get("inputs_embeds")
        if len(stack) > 1 or not noisy or not isinstance(embeds, Tensor) or torch.compiler.is_compiling():
            return None
        for reference, input_ids, hook, embedding in self.early_lookups:
            if reference() is embeds:
                batch["input_ids"] = input_ids
                return self.noised(hook, embedding, input_ids, embeds.clone())
        return None

    def leave(self, owner: "OwnerPreHook", module: nn.Module, failed: bool) -> None:
        stack = self.calls.stack
        # Somebody's pre-hook may have raised before ours had its turn.
        if not any(frame.owner is owner for frame in stack):
            return
        frame = stack.pop()
        while frame.owner is not owner:
            frame = stack.pop()
        if failed or not frame.noisy or _in_backward():
            return
        stream_is_clean = owner.innermost and not frame.noised[owner.stream]
        if stream_is_clean or not (stack or any(frame.noised)):
            raise NoiseNotAppliedError(
                f"a training forward of {type(module).__name__} went by without noise: none of the input embeddings "
                f"({', '.join(self.embeddings)}) was called in it with the batch's input_ids. It was given "
                f"{', '.join(name for name, value in frame.batch.items() if value is not None) or 'nothing'}. Pass "
                "input_ids, or as inputs_embeds the very tensor that the embedding gave; or name the embedding that "
                "is called in a plugin: neftune_embeddings(model) (neftune_plugins.plugins.hookspecs)."
            )

    def noised(self, hook: "EmbeddingHook", embedding: nn.Module, input_ids: Tensor, output: Tensor) -> Tensor:
        """The embedding's `output` (..., D) of `input_ids`, with noise where it is due."""
        stack = self.calls.stack
        if not stack:
            # Activation checkpointing calls parts of a model again in backward, outside of every forward.
            if _in_backward():
                recomputed = self._recomputable(input_ids)
                return output if recomputed is None else self._add(embedding, output, *recomputed)
            if not torch.compiler.is_compiling():
                self.early_lookups.append((weakref.ref(output), input_ids, hook, embedding))
            return output
        if not stack[0].noisy:
            return output
        frame = _frame_with(stack, input_ids)
        if frame is None:
            return output
        stream = frame.owner.stream
        frame.noised[stream] = True
        batch = whole({**_batch_of(frame, stack), "is_decoder": bool(stream)})
        layout = self.layout(batch)
        keys = token_keys(batch["input_ids"], layout, self.keys[stream], self.step)
        scales = token_scales(layout, output.shape[-1], self.alpha / hook.scale, padded_length=self.padded_length)
        if not torch.compiler.is_compiling():
            self.recomputable.append((held(input_ids), keys, scales))
        if self.measurements is None:
            return self._add(embedding, output, keys, scales)
        energy_3 = torch.zeros(3, device=output.device)
        noisy = self._add(embedding, output, keys, scales, energy_3)
        expected = expected_energy(scales, output.shape[-1], self.noise_type)
        # What enters the first block: the embedding is multiplied on its way there.
        self.measurements.add(layout, expected * hook.scale**2, energy_3 * hook.scale**2)
        return noisy

    def _recomputable(self, input_ids: Tensor) -> tuple[Tensor, Tensor] | None:
        input_ids = held(input_ids)
        for ids, keys, scales in reversed(self.recomputable):
            # Reentrant checkpointing passes another tensor object of the same storage.
            if ids.shape == input_ids.shape and ids.data_ptr() == input_ids.data_ptr():
                return keys, scales
        return None

    def _add(
        self, embedding: nn.Module, output: Tensor, keys: Tensor, scales: Tensor, energy_3: Tensor | None = None
    ) -> Tensor:
        if is_shared(output):
            return add_to_shared(output, keys, scales, self.noise_type, energy_3)
        check_whole(embedding, output, keys)
        if torch.compiler.is_compiling():
            flat = output.reshape(-1, output.shape[-1])
            arguments = (keys.reshape(-1), scales.reshape(-1), self.noise_type)
            return add_noise(flat, *arguments, energy_3=energy_3).view_as(output)
        if not _is_ours_alone(embedding, output):
            output = output.clone(memory_format=torch.contiguous_format)
        flat = output.detach().view(-1, output.shape[-1])
        add_noise_(flat, keys.reshape(-1), scales.reshape(-1), self.noise_type, energy_3=energy_3)
        return output


def _in_backward() -> bool:
    """Whether activation checkpointing runs this forward again."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def _is_ours_alone(embedding: nn.Module, output: Tensor) -> bool:
    """Whether nobody else can hold, or autograd need, the embedding's output: then it may be overwritten."""
    return (
        type(embedding) is nn.Embedding
        and type(output) is Tensor
        and output._base is None
        and output.is_contiguous()
        and isinstance(next(iter(embedding._forward_hooks.values())), EmbeddingHook)
    )


def _frame_with(stack: list[_Frame], input_ids: Tensor) -> _Frame | None:
    """The innermost call that was given these ids, or else ids of that shape (models replace image tokens)."""
    alike = None
    for frame in reversed(stack):
        ids = frame.batch.get("input_ids")
        if ids is input_ids:
            return frame
        if alike is None and isinstance(ids, Tensor) and ids.shape == input_ids.shape:
            alike = frame
    return alike


def _batch_of(frame: _Frame, stack: list[_Frame]) -> dict[str, Any]:
    """The arguments of that call, completed by those of the calls around it that were given the same ids (RWKV keeps
    the mask from its inner model)."""
    batch: dict[str, Any] = {}
    for other in stack:
        if other.batch.get("input_ids") is frame.batch["input_ids"] and other.owner.stream == frame.owner.stream:
            batch.update({name: value for name, value in other.batch.items() if value is not None})
    return batch


class InertHook:
    """A hook that stays with its model: copied or pickled with it, it becomes a do-nothing of the standard library,
    so that copies have no noise and saved models load without this package."""

    def __deepcopy__(self, memo: object) -> Any:
        return _NOTHING

    def __reduce__(self) -> Any:
        return getattr, (contextlib.nullcontext(), "__exit__")


_NOTHING = contextlib.nullcontext().__exit__


def noises_in(model: nn.Module) -> set["Noise"]:
    """The installations that have a hook on a module of the model."""
    hooks: list[object] = []
    for module in model.modules():
        hooks += (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    return {hook.noise for hook in hooks if isinstance(hook, _Hook)}


class _Hook(InertHook):
    def __init__(self, noise: Noise) -> None:
        self.noise = noise


class OwnerPreHook(_Hook):
    """Of a module above an embedding.

    is_root: whether that is the whole model.
    arguments: names of its forward's parameters.
    stream: of its noise: 0, or 1 in a decoder that has an encoder.
    innermost: whether no other such module is inside it.
    """

    def __init__(self, noise: Noise, is_root: bool, arguments: tuple[str, ...], stream: int, innermost: bool) -> None:
        super().__init__(noise)
        self.is_root = is_root
        self.arguments = arguments
        self.stream = stream
        self.innermost = innermost

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        batch = dict(zip(self.arguments, args, strict=False))
        batch.update(kwargs)
        noised = self.noise.enter(self, module, batch)
        if noised is None:
            return None
        if "inputs_embeds" in kwargs:
            return args, {**kwargs, "inputs_embeds": noised}
        index = self.arguments.index("inputs_embeds")
        return (*args[:index], noised, *args[index + 1 :]), kwargs


class OwnerHook(_Hook):
    def __init__(self, noise: Noise, owner: OwnerPreHook) -> None:
        super().__init__(noise)
        self.owner = owner

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self.noise.leave(self.owner, module, failed=output is None)


class EmbeddingHook(_Hook):
    def __init__(self, noise: Noise, scale: float) -> None:
        super().__init__(noise)
        self.scale = scale

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
        input_ids = args[0] if args else next(iter(kwargs.values()))
        if input_ids.is_floating_point():  # a head that shares the weight
            return output
        return self.noise.noised(self, module, input_ids, output)
