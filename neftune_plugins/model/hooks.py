"""The forward hooks of one installation.

A pre-hook on the modules above an embedding learns the batch, and a hook on the embedding's output adds the noise. Both
share `Noise`. Each idea behind it has its own module: `calls` (which calls are in progress), `early`
(lookups before the model is called), `recompute` (forward passes that run again in backward), `adding`, `watch` (steps
without noise).
"""

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from neftune_plugins.errors import NEFTuneError, NoiseNotAppliedError
from neftune_plugins.model.adding import add
from neftune_plugins.model.audit import Audit
from neftune_plugins.model.calls import CALLS, Call, Pass, batch_of, call_with, in_backward, is_of_labels
from neftune_plugins.model.early import EarlyLookups
from neftune_plugins.model.metrics import Measurements
from neftune_plugins.model.recompute import Recomputable
from neftune_plugins.model.sharded import whole
from neftune_plugins.model.watch import StepWatch
from neftune_plugins.noise import Batch, Draw, Layout, NoiseType, expected_energy, keyed, stream_key
from neftune_plugins.proof import in_clean_pass


class Noise:
    """The state behind the hooks of one installation.

    noise_type: of the noise.
    alpha: of the first step.
    seed: of the noise.
    padded_length: whether L is the width of a row.
    embeddings: names of the noised modules, for errors.
    layout: reads the layout of a batch.
    measurements: of the noise, or None.
    step_missing: gives the error for a training forward pass whose step nobody set, if the configuration needs steps.
    refresh: called before each outermost call: the model may have been changed since (PEFT replaces embeddings).
    has_decoder: whether the model is an encoder-decoder.
    audit: measures from outside what enters the model.
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
        refresh: Callable[[], None],
        has_decoder: bool,
        audit: Audit,
    ) -> None:
        self.has_decoder = has_decoder
        self.audit = audit
        self.noise_type = noise_type
        self.padded_length = padded_length
        self.embeddings = embeddings
        self.layout = layout
        self.measurements = measurements
        self.step_missing = step_missing
        self.refresh = refresh
        self.keys = (stream_key(seed, 0), stream_key(seed, 1))
        # Tensors, so that a compiled graph takes them as inputs and is not compiled again when they change.
        self.step = torch.full((), -1, dtype=torch.int64)
        self.alpha = torch.full((), alpha, dtype=torch.float32)
        # The step that `begin_step` was given, kept here because reading the tensor waits for its device.
        self.begun: int | None = None
        self.calls = CALLS
        self.watch = StepWatch()
        self.early = EarlyLookups()
        self.recomputable = Recomputable()

    @property
    def counts_forwards(self) -> bool:
        """Whether each training forward pass is a step, because nobody says when one begins."""
        return self.begun is None

    def follow(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Step and alpha on this device, where they stay: to copy them for each forward pass would wait for it."""
        if self.step.device == device:
            return self.step, self.alpha
        moved = self.step.to(device), self.alpha.to(device)
        if device.type != "meta" and not torch.compiler.is_compiling():
            self.step, self.alpha = moved
            if self.measurements is not None:
                self.measurements.follow(device)
        return moved

    def _stay(self) -> None:
        """Tell torch.compile that what changes with the steps stays where it is. It makes no CUDA graph of code that
        writes to other tensors, and would copy them for each forward pass."""
        if "torch._dynamo" in sys.modules:
            sums = () if self.measurements is None else self.measurements.sums
            for tensor in (self.step, self.alpha, *sums):
                torch._dynamo.mark_static_address(tensor)

    def begin_step(self, step: int, alpha: float) -> None:
        """The optimisation step `step` begins, with this alpha."""
        self.alpha.fill_(alpha)
        self.begun = step
        self.step.fill_(step)
        self._stay()
        self.watch.begin()
        self.recomputable.clear()

    @contextlib.contextmanager
    def by_hand(self) -> Iterator[None]:
        """Forward passes inside are training forward passes of one step, with or without gradients."""
        self._count_forward()
        with self.calls.counted_as_training(self):
            yield

    def _count_forward(self) -> None:
        if not self.counts_forwards:
            return
        missing = self.step_missing()
        if missing is not None:
            raise missing
        self.step.add_(1)
        if not torch.compiler.is_compiling():
            self.audit.count()

    def enter(
        self,
        owner: "OwnerPreHook",
        module: nn.Module,
        batch: dict[str, Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> Tensor | None:
        """Begin a call. Returns `inputs_embeds` with noise if they are an early lookup.

        args, kwargs: of the call. batch: both, by name.
        """
        outer = self.calls.innermost()
        if outer is not None and outer.installation is not self and not owner.is_root:
            _refuse_ambiguous(self.calls.stack, owner, module)
            return None
        begins = outer is None or outer.installation is not self or owner.is_root
        in_training = module.training if begins or outer is None else outer.noisy
        noisy = in_training and self.calls.trains(self)
        if begins or outer is None:
            this = Pass()
            self._begin(module, noisy)
            if outer is None and not torch.compiler.is_compiling():
                self.audit.begin(module, args, kwargs, noisy=noisy)
        else:
            this = outer.whole
            if outer.noisy and not noisy:
                this.has_ungraded_call = True
        self.calls.enter(owner, self, batch, noisy, this)
        embeds = batch.get("inputs_embeds")
        if not noisy or not isinstance(embeds, Tensor) or torch.compiler.is_compiling() or this.noised[owner.stream]:
            return None
        found = self.early.find(embeds, may_be_merged=begins)
        if found is None:
            return None
        lookup, kept_BL = found
        batch["input_ids"] = lookup.input_ids
        return self._noised(lookup.hook, lookup.embedding, lookup.input_ids, embeds.clone(), kept_BL)

    def _begin(self, module: nn.Module, noisy: bool) -> None:
        """An outermost call begins."""
        if not torch.compiler.is_compiling():
            self.refresh()
        if noisy:
            # In backward it is a forward pass of before, run again.
            if not in_backward() and self not in self.calls.by_hand:
                self._count_forward()
        elif module.training:
            self.watch.ran_without_gradients = True
        elif torch.is_grad_enabled():
            self.watch.ran_in_evaluation = True

    def leave(self, owner: "OwnerPreHook", module: nn.Module, failed: bool) -> None:
        """End a call. Raises NoiseNotAppliedError if it was a training forward pass without noise, and WrongNoiseError
        if the audit finds that its noise was wrong."""
        if torch.compiler.is_compiling():
            self._leave(owner, module, failed)
            return
        if in_clean_pass():
            return
        try:
            self._leave(owner, module, failed)
        except BaseException:
            failed = True
            raise
        finally:
            if not self.calls.stack:
                self.audit.end(module, failed=failed)

    def _leave(self, owner: "OwnerPreHook", module: nn.Module, failed: bool) -> None:
        call = self.calls.leave(owner)
        if call is None or failed or not call.noisy or in_backward():
            return
        is_outermost = not any(other.whole is call.whole for other in self.calls.stack)
        stream_is_clean = owner.innermost and not call.whole.noised[owner.stream]
        if stream_is_clean or (is_outermost and not any(call.whole.noised)):
            raise self._went_without_noise(call, module)

    def _went_without_noise(self, call: Call, module: nn.Module) -> NoiseNotAppliedError:
        if call.whole.has_ungraded_call and not any(call.whole.noised):
            found = (
                "the model in it was called only without gradients, in which there is no noise; wrap the call in "
                "`with handle.training_forwards():` if its embeddings should have noise."
            )
        else:
            given = ", ".join(name for name, value in call.batch.items() if value is not None) or "nothing"
            found = (
                f"none of the input embeddings ({', '.join(self.embeddings)}) was called in it with the batch's "
                f"input_ids. It was given {given}. Pass input_ids, or as inputs_embeds the same tensor that the "
                "embedding gave; or name the embedding that is called in a plugin: neftune_embeddings(model) "
                "(neftune_plugins.plugins.hookspecs)."
            )
        return NoiseNotAppliedError(f"a training forward pass of {type(module).__name__} had no noise: {found}")

    def lookup(self, hook: "EmbeddingHook", embedding: nn.Module, input_ids: Tensor, output: Tensor) -> Tensor:
        """The embedding's `output` (B, L, D) of `input_ids`, with noise where there should be any."""
        call = self.calls.innermost()
        if call is None:
            # Activation checkpointing calls parts of a model again in backward, outside of every call.
            if in_backward():
                return self._again(embedding, input_ids, output)
            self.watch.looked_up_outside = True
            self.early.keep(hook, embedding, input_ids, output)
            return output
        if call.installation is not self or not call.noisy:
            return output
        if in_backward():
            found = self.recomputable.find_equal(input_ids)
            if found is not None:
                call.whole.noised[call.owner.stream] = True
                return self._add(embedding, output, *found)
            if self.counts_forwards or not self.recomputable.has_forgotten:
                raise _unknown_in_backward()
        return self._noised(hook, embedding, input_ids, output, None)

    def _again(self, embedding: nn.Module, input_ids: Tensor, output: Tensor) -> Tensor:
        found = self.recomputable.find(input_ids)
        if found is not None:
            return self._add(embedding, output, *found)
        if self.recomputable.has_forgotten:
            raise _unknown_in_backward()
        return output

    def _noised(
        self, hook: "EmbeddingHook", embedding: nn.Module, input_ids: Tensor, output: Tensor, kept_BL: Tensor | None
    ) -> Tensor:
        """kept_BL: which tokens get noise, if not all; the others still count in their example's length."""
        innermost = self.calls.stack[-1]
        calls = [call for call in self.calls.stack if call.whole is innermost.whole]
        call = call_with(calls, input_ids)
        if call is not None:
            stream = call.owner.stream
            given = batch_of(call, calls)
        elif self.has_decoder and is_of_labels(calls, input_ids):
            stream = 1
            given = {"input_ids": input_ids}
        else:
            self.early.keep(hook, embedding, input_ids, output)
            return output
        innermost.whole.noised[stream] = True
        self.watch.note_noise()
        batch = whole({**given, "is_decoder": bool(stream)})
        layout = self.layout(batch)
        dim, scale, kind = output.shape[-1], hook.scale, self.noise_type
        step, alpha = self.follow(output.device)
        measures = self.measurements is not None and not _is_transformed()
        # What enters the first block: the embedding is multiplied on its way there.
        energy = dim * kind.rms**2 * scale**2 if measures else None
        alpha = alpha if scale == 1 else alpha / scale
        draw = Draw(self.keys[stream], step, alpha, dim, self.padded_length, energy)
        keys, scales, tokens_3 = keyed(batch["input_ids"], layout, draw)
        if kept_BL is not None:
            scales = torch.where(kept_BL, scales, 0.0)
            if tokens_3 is not None:
                tokens_3[2] = expected_energy(scales, dim, kind) * scale**2
        self.recomputable.keep(input_ids, keys, scales)
        if self.measurements is None or tokens_3 is None:
            return self._add(embedding, output, keys, scales)
        energy_3 = self.measurements.energy(output, scale**2)
        noisy = self._add(embedding, output, keys, scales, energy_3)
        self.measurements.add(tokens_3, energy_3, scale**2)
        return noisy

    def _add(
        self, embedding: nn.Module, output: Tensor, keys: Tensor, scales: Tensor, energy_3: Tensor | None = None
    ) -> Tensor:
        return add(embedding, output, keys, scales, self.noise_type, _is_embedding_hook, energy_3)


def _refuse_ambiguous(stack: Sequence[Call], owner: "OwnerPreHook", module: nn.Module) -> None:
    """Raise NoiseNotAppliedError if a module of two installed models is called by itself: nothing says for which."""
    other = stack[0]
    is_same_call = len(stack) == 1 and other.owner.module_id == owner.module_id
    if is_same_call and other.noisy and not other.owner.is_root:
        raise NoiseNotAppliedError(
            f"{type(module).__name__} is a part of two models in which noise is installed, and was called by itself: "
            "which of the two noises it should get is not known. Call it through its model, or install the noise in "
            "one of them only."
        )


def _unknown_in_backward() -> NoiseNotAppliedError:
    return NoiseNotAppliedError(
        "a forward pass inside backward would get other noise than the one that it repeats: either that one ran "
        "without gradients and without noise (gradient caching: wrap the forward passes of a step in `with "
        "handle.training_forwards():`), or too many forward passes came before one backward (set handle.step before "
        "each optimisation step)."
    )


def _is_transformed() -> bool:
    """Whether torch.func transforms this forward pass: sums over it cannot leave the transform."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._functorch.peek_interpreter_stack() is not None


class InertHook:
    """A hook that stays with its model: copied or pickled with it, it becomes a do-nothing of the standard library,
    so that copies have no noise and saved models load without this package."""

    def __deepcopy__(self, memo: object) -> Any:
        return _NOTHING

    def __reduce__(self) -> Any:
        return getattr, (contextlib.nullcontext(), "__exit__")


_NOTHING = contextlib.nullcontext().__exit__


class _Hook(InertHook):
    def __init__(self, noise: Noise) -> None:
        self.noise = noise


class OwnerPreHook(_Hook):
    """Of a module above an embedding: learns the batch.

    module_id: of that module. is_root: whether it is the whole model.
    arguments: names of its forward's parameters.
    stream: of its noise: 0, or 1 in a decoder that has an encoder.
    innermost: whether no other such module is inside it.
    """

    def __init__(
        self,
        noise: Noise,
        module_id: int,
        *,
        is_root: bool,
        arguments: tuple[str, ...],
        stream: int,
        innermost: bool,
    ) -> None:
        super().__init__(noise)
        self.module_id = module_id
        self.is_root = is_root
        self.arguments = arguments
        self.stream = stream
        self.innermost = innermost

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not torch.compiler.is_compiling() and in_clean_pass():
            return None
        batch = self._batch(args, kwargs)
        noised = self.noise.enter(self, module, batch, args, kwargs)
        if noised is None:
            return None
        if "inputs_embeds" in kwargs:
            return args, {**kwargs, "inputs_embeds": noised}
        index = self.arguments.index("inputs_embeds")
        return (*args[:index], noised, *args[index + 1 :]), kwargs

    def _batch(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments by name. A module may be called with one mapping of them, as sentence-transformers does."""
        if len(args) == 1 and isinstance(args[0], Mapping) and "input_ids" in args[0]:
            return {**args[0], **kwargs}
        return {**dict(zip(self.arguments, args, strict=False)), **kwargs}


class OwnerHook(_Hook):
    """Of a module above an embedding: ends its call."""

    def __init__(self, noise: Noise, owner: OwnerPreHook) -> None:
        super().__init__(noise)
        self.owner = owner

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self.noise.leave(self.owner, module, failed=output is None)


class EmbeddingHook(_Hook):
    """Of an embedding: adds the noise to its output.

    scale: by what the model multiplies the output before its first block.
    """

    def __init__(self, noise: Noise, scale: float) -> None:
        super().__init__(noise)
        self.scale = scale

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
        input_ids = args[0] if args else next(iter(kwargs.values()))
        if input_ids.is_floating_point():  # a head that shares the weight
            return output
        return self.noise.lookup(self, module, input_ids, output)


def _is_embedding_hook(hook: object) -> bool:
    return isinstance(hook, EmbeddingHook)
