"""Puts the noise into a model: forward hooks, nothing else.

A pre-hook on the modules above an embedding learns the batch, a hook on the embedding's output adds the noise, and
the state of the outermost of these modules at its call decides whether there is any.
"""

import contextlib
import inspect
import sys
import threading
import weakref
from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from neftune_plugins import structure
from neftune_plugins.clean_loss import CleanLoss
from neftune_plugins.config import NoiseConfig
from neftune_plugins.errors import NoiseNotAppliedError
from neftune_plugins.layout import Batch, Layout, LayoutReader
from neftune_plugins.manager import layout_readers, noise_types, plugin_manager
from neftune_plugins.metrics import Measurements
from neftune_plugins.noise import add_noise, add_noise_, expected_energy, stream_key, token_keys, token_scales
from neftune_plugins.schedule import alpha_at, steps_unknown
from neftune_plugins.sharded import add_to_shared, check_whole, has_shared_weight, held, is_shared, whole

# Forwards whose noise can be recomputed in one backward; what is kept of each is 20 bytes a token.
_MAX_RECOMPUTABLE = 64
# Lookups before a forward that may be the `inputs_embeds` of that forward.
_MAX_EARLY_LOOKUPS = 8


def install(
    model: nn.Module,
    config: NoiseConfig,
    *,
    seed: int | None = None,
    steps: int | None = None,
    pad_token_id: int | None = None,
    layout_reader: LayoutReader | None = None,
) -> "Handle":
    """Noise the input embeddings of `model` while it trains (arXiv 2310.05914).

    model: any torch module with `get_input_embeddings()`, wrapped or not, whose forward takes `input_ids`, or as
        `inputs_embeds` what that embedding gave.
    seed: of the noise, where the configuration gives none; 0 where neither does.
    steps: how many optimisation steps the run has; a schedule other than constant needs it.
    pad_token_id: as the batches are padded; by default what the model's configuration says.
    layout_reader: asked for the examples of a batch before those of the plugins.

    Noise enters where the outermost forward runs in training mode with gradients enabled: not in evaluation,
    generation, or a reference model's forward. Installing again replaces what was installed before.

    Raises NoiseNotAppliedError where no embedding is found; so does the first training forward of a model, of its
    encoder or of its decoder that goes by without noise. Where a schedule is not told the steps, the first training
    forward raises NoiseConfigError.
    """
    embeddings = plugin_manager().hook.neftune_embeddings(model=model)
    if not embeddings:
        raise NoiseNotAppliedError(
            f"no embedding of tokens found in {type(model).__name__}: get_input_embeddings() of the model and of the "
            "modules in it gave none. A plugin can name them: implement neftune_embeddings(model) "
            "(neftune_plugins.hookspecs)."
        )
    for module in model.modules():
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values()):
            if isinstance(hook, _Hook):
                hook.noise.handle.remove()
    handle = Handle(model, config, embeddings, seed or 0, steps, pad_token_id, layout_reader)
    plugin_manager().hook.neftune_installed(handle=handle)
    return handle


class Handle:
    """Installed noise. A context manager that removes it at the end.

    model: what it was installed in.
    config: its configuration.
    measurements: of the noise, where `neftune_metrics` is on.
    clean_loss: where `neftune_clean_loss_steps` is set.
    embeddings: names of the noised modules in the model.
    steps: how many optimisation steps the run has. May be set until `step` is, where it is not known earlier.
    """

    def __init__(
        self,
        model: nn.Module,
        config: NoiseConfig,
        embeddings: Sequence[nn.Module],
        seed: int,
        steps: int | None,
        pad_token_id: int | None,
        layout_reader: LayoutReader | None,
    ) -> None:
        self.model = model
        self.config = config
        self.measurements = Measurements() if config.metrics else None
        self.clean_loss = None if config.clean_loss_steps is None else CleanLoss(config.clean_loss_steps)
        self.steps = steps
        names = {module: name for name, module in model.named_modules()}
        strangers = [type(embedding).__name__ for embedding in embeddings if embedding not in names]
        if strangers:
            raise NoiseNotAppliedError(
                f"neftune_embeddings gave {', '.join(strangers)}, which is no module of {type(model).__name__}"
            )
        self.embeddings = [names[embedding] for embedding in embeddings]
        self._pad_token_id = structure.pad_token_id(model) if pad_token_id is None else pad_token_id
        self._readers = layout_readers() if layout_reader is None else (layout_reader, *layout_readers())
        self._noise = _Noise(self, seed if config.seed is None else config.seed)
        self._hooks: list[RemovableHandle] = []
        decoder = structure.decoder(model)
        inside_decoder = set() if decoder is None else set(decoder.modules())
        for embedding in embeddings:
            scale = plugin_manager().hook.neftune_embedding_scale(model=model, embedding=embedding)
            hook = _EmbeddingHook(self._noise, 1.0 if scale is None else scale)
            # Before the hook of a tensor-parallel style, behind which a slice does not say what it is of.
            first = has_shared_weight(embedding)
            self._hooks.append(embedding.register_forward_hook(hook, with_kwargs=True, prepend=first))
        owners = _owners(model, decoder, embeddings)
        for module in owners:
            arguments = tuple(inspect.signature(module.forward).parameters)
            innermost = not any(child in owners for child in module.modules() if child is not module)
            pre_hook = _OwnerPreHook(self._noise, module is model, arguments, int(module in inside_decoder), innermost)
            self._hooks.append(module.register_forward_pre_hook(pre_hook, with_kwargs=True))
            self._hooks.append(module.register_forward_hook(_OwnerHook(self._noise, pre_hook), always_call=True))
        _forget_compiled_graphs()

    @property
    def step(self) -> int:
        """The optimisation step whose noise is drawn. Each value gives new noise, the same value the same noise.

        Until it is set, every training forward counts as a step of its own, where the schedule is constant.
        """
        return int(self._noise.step)

    @step.setter
    def step(self, step: int) -> None:
        self._noise.begin_step(step)
        if self.clean_loss is not None:
            self.clean_loss.begin_step(step)
        plugin_manager().hook.neftune_step(handle=self)

    @property
    def alpha(self) -> float:
        """Alpha at `step`, as the float32 that enters the noise."""
        return float(self._noise.alpha)

    @property
    def installed(self) -> bool:
        """False once removed."""
        return bool(self._hooks)

    def __str__(self) -> str:
        return (
            f"neftune_noise_alpha: {self.config.alpha:g} is taken over by neftune-plugins, the native hook is off; "
            f"noise in {', '.join(self.embeddings)}, {self.config}"
        )

    def layout(self, batch: Batch) -> Layout:
        """The examples of a batch, given as the arguments of the model's forward by name."""
        batch = {"pad_token_id": self._pad_token_id, **batch}
        for reader in self._readers:
            layout = reader(batch)
            if layout is not None:
                return layout
        raise AssertionError("the built-in reader knows every batch")

    def metrics(self) -> dict[str, float]:
        """What to log of the time since the last call, by name: of the noise, of the clean loss, and of plugins. For
        logging steps, because it waits for the model's device."""
        found = plugin_manager().hook.neftune_metrics(handle=self)
        return {name: value for metrics in reversed(found) for name, value in metrics.items()}

    def remove(self) -> None:
        """Take the noise out of the model, which is then as it was before. Does nothing the second time."""
        if not self._hooks:
            return
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        _forget_compiled_graphs()
        plugin_manager().hook.neftune_removed(handle=self)

    def __enter__(self) -> "Handle":
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()


class _Frame:
    """One call of a module above an embedding.

    owner: the pre-hook of that module. (Not the module: dynamo cannot trace one that it has compiled itself.)
    batch: its arguments by name.
    noisy: whether the outermost call wants noise.
    noised: for each stream whether it has been noised since the outermost call began; one list for all its calls.
    """

    def __init__(self, owner: "_OwnerPreHook", batch: dict[str, Any], noisy: bool, noised: list[bool]) -> None:
        self.owner = owner
        self.batch = batch
        self.noisy = noisy
        self.noised = noised


class _Calls(threading.local):
    """The calls that a thread is in, the innermost last."""

    def __init__(self) -> None:
        self.stack: list[_Frame] = []


class _Noise:
    """The state behind the hooks of one installation."""

    def __init__(self, handle: Handle, seed: int) -> None:
        self.handle = handle
        config = handle.config
        self.noise_type = noise_types()[config.type]
        self.padded_length = config.length == "padded"
        self.keys = (stream_key(seed, 0), stream_key(seed, 1))
        # Tensors, so that a compiled graph takes them as inputs and is not compiled again when they change.
        self.step = torch.full((), -1, dtype=torch.int64)
        self.alpha = torch.full((), config.alpha, dtype=torch.float32)
        self.counts_forwards = True
        self.calls = _Calls()
        self.recomputable: deque[tuple[Tensor, Tensor, Tensor]] = deque(maxlen=_MAX_RECOMPUTABLE)
        self.early_lookups: deque[tuple[weakref.ref[Tensor], Tensor, _EmbeddingHook, nn.Module]] = deque(
            maxlen=_MAX_EARLY_LOOKUPS
        )

    def begin_step(self, step: int) -> None:
        self.alpha.fill_(alpha_at(self.handle.config, step, self.handle.steps))
        self.counts_forwards = False
        self.step.fill_(step)
        self.calls.stack.clear()  # an interrupted forward may have left its calls
        self.recomputable.clear()

    def enter(self, owner: "_OwnerPreHook", module: nn.Module, batch: dict[str, Any]) -> Tensor | None:
        """Begin a call. Gives `inputs_embeds` with noise where they are an early lookup."""
        stack = self.calls.stack
        if owner.is_root:
            stack.clear()
        if stack:
            noisy, noised = stack[0].noisy, stack[0].noised
        else:
            noisy, noised = module.training and torch.is_grad_enabled(), [False, False]
            if noisy and self.counts_forwards and not _in_backward():
                if self.handle.config.schedule != "constant":
                    raise steps_unknown(self.handle.config)
                if self.handle.clean_loss is not None:
                    raise self.handle.clean_loss.step_unknown()
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

    def leave(self, owner: "_OwnerPreHook", module: nn.Module, failed: bool) -> None:
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
                f"({', '.join(self.handle.embeddings)}) was called in it with the batch's input_ids. It was given "
                f"{', '.join(name for name, value in frame.batch.items() if value is not None) or 'nothing'}. Pass "
                "input_ids, or as inputs_embeds the very tensor that the embedding gave; or name the embedding that "
                "is called in a plugin: neftune_embeddings(model) (neftune_plugins.hookspecs)."
            )

    def noised(self, hook: "_EmbeddingHook", embedding: nn.Module, input_ids: Tensor, output: Tensor) -> Tensor:
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
        layout = self.handle.layout(batch)
        keys = token_keys(batch["input_ids"], layout, self.keys[stream], self.step)
        scales = token_scales(layout, output.shape[-1], self.alpha / hook.scale, padded_length=self.padded_length)
        if not torch.compiler.is_compiling():
            self.recomputable.append((held(input_ids), keys, scales))
        measurements = self.handle.measurements
        if measurements is None:
            return self._add(embedding, output, keys, scales)
        energy_3 = torch.zeros(3, device=output.device)
        noisy = self._add(embedding, output, keys, scales, energy_3)
        expected = expected_energy(scales, output.shape[-1], self.noise_type)
        # What enters the first block: the embedding is multiplied on its way there.
        measurements.add(layout, expected * hook.scale**2, energy_3 * hook.scale**2)
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
        and isinstance(next(iter(embedding._forward_hooks.values())), _EmbeddingHook)
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


class _Hook(InertHook):
    def __init__(self, noise: _Noise) -> None:
        self.noise = noise


class _OwnerPreHook(_Hook):
    """Of a module above an embedding.

    is_root: whether that is the whole model.
    arguments: names of its forward's parameters.
    stream: of its noise: 0, or 1 in a decoder that has an encoder.
    innermost: whether no other such module is inside it.
    """

    def __init__(self, noise: _Noise, is_root: bool, arguments: tuple[str, ...], stream: int, innermost: bool) -> None:
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


class _OwnerHook(_Hook):
    def __init__(self, noise: _Noise, owner: _OwnerPreHook) -> None:
        super().__init__(noise)
        self.owner = owner

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self.noise.leave(self.owner, module, failed=output is None)


class _EmbeddingHook(_Hook):
    def __init__(self, noise: _Noise, scale: float) -> None:
        super().__init__(noise)
        self.scale = scale

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
        input_ids = args[0] if args else next(iter(kwargs.values()))
        if input_ids.is_floating_point():  # a head that shares the weight
            return output
        return self.noise.noised(self, module, input_ids, output)


def _owners(model: nn.Module, decoder: nn.Module | None, embeddings: Sequence[nn.Module]) -> list[nn.Module]:
    """The model, its decoder, and each module above an embedding whose forward takes `attention_mask`. (BERT's
    embedding layer takes `input_ids` and knows nothing of padding.)"""
    above = dict.fromkeys(module for embedding in embeddings for module in structure.above(model, embedding))
    return [model] + [
        module
        for module in above
        if module is not model
        and module not in embeddings
        and (module is decoder or "attention_mask" in inspect.signature(module.forward).parameters)
    ]


def _forget_compiled_graphs() -> None:
    """torch.compile does not notice hooks that come or go after a module's first compiled forward."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
