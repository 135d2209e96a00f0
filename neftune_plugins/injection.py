"""Puts the noise into a model: forward hooks, nothing else.

A pre-hook on the modules above an embedding learns the batch, a hook on the embedding's output adds the noise, and
the state of the outermost of these modules at its call decides whether there is any.
"""

import contextlib
import inspect
import sys
import threading
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from neftune_plugins.config import NoiseConfig
from neftune_plugins.errors import NoiseNotAppliedError
from neftune_plugins.layout import Batch, Layout, LayoutReader
from neftune_plugins.manager import layout_readers, noise_types, plugin_manager
from neftune_plugins.noise import add_noise, add_noise_, stream_key, token_keys, token_scales

# Forwards whose noise can be recomputed in one backward; what is kept of each is 20 bytes a token.
_MAX_RECOMPUTABLE = 64


def install(
    model: nn.Module,
    config: NoiseConfig,
    *,
    seed: int | None = None,
    pad_token_id: int | None = None,
    layout_reader: LayoutReader | None = None,
) -> "Handle":
    """Noise the input embeddings of `model` while it trains (arXiv 2310.05914).

    model: any torch module with `get_input_embeddings()`, wrapped or not, whose forward takes `input_ids`.
    seed: of the noise, where the configuration gives none; 0 where neither does.
    pad_token_id: as the batches are padded; by default what the model's configuration says.
    layout_reader: asked for the examples of a batch before those of the plugins.

    Noise enters where the outermost forward runs in training mode with gradients enabled: not in evaluation,
    generation, or a reference model's forward. Installing again replaces what was installed before.

    Raises NoiseNotAppliedError where no embedding is found; so does the first training forward that goes by without
    noise.
    """
    embeddings = plugin_manager().hook.neftune_embeddings(model=model)
    if not embeddings:
        raise NoiseNotAppliedError(
            f"no input embedding found in {type(model).__name__}: get_input_embeddings() of the model and of the "
            "modules in it gave none. A plugin can name them: implement neftune_embeddings(model) "
            "(neftune_plugins.hookspecs)."
        )
    for module in model.modules():
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values()):
            if isinstance(hook, _Hook):
                hook.noise.handle.remove()
    handle = Handle(model, config, embeddings, seed or 0, pad_token_id, layout_reader)
    plugin_manager().hook.neftune_installed(handle=handle)
    return handle


class Handle:
    """Installed noise. A context manager that removes it at the end.

    model: what it was installed in.
    config: its configuration.
    embeddings: names of the noised modules in the model.
    """

    def __init__(
        self,
        model: nn.Module,
        config: NoiseConfig,
        embeddings: Sequence[nn.Module],
        seed: int,
        pad_token_id: int | None,
        layout_reader: LayoutReader | None,
    ) -> None:
        self.model = model
        self.config = config
        names = {module: name for name, module in model.named_modules()}
        strangers = [type(embedding).__name__ for embedding in embeddings if embedding not in names]
        if strangers:
            raise NoiseNotAppliedError(
                f"neftune_embeddings gave {', '.join(strangers)}, which is no module of {type(model).__name__}"
            )
        self.embeddings = [names[embedding] for embedding in embeddings]
        self._pad_token_id = _pad_token_id(names) if pad_token_id is None else pad_token_id
        self._readers = layout_readers() if layout_reader is None else (layout_reader, *layout_readers())
        self._noise = _Noise(self, seed if config.seed is None else config.seed)
        self._hooks: list[RemovableHandle] = []
        decoder = _decoder(names)
        inside_decoder = set() if decoder is None else set(decoder.modules())
        for embedding in embeddings:
            hook = _EmbeddingHook(self._noise)
            self._hooks.append(embedding.register_forward_hook(hook, with_kwargs=True))
        for module in _owners(model, embeddings):
            arguments = tuple(inspect.signature(module.forward).parameters)
            stream = int(module in inside_decoder)
            pre_hook = _OwnerPreHook(self._noise, module is model, arguments, stream)
            self._hooks.append(module.register_forward_pre_hook(pre_hook, with_kwargs=True))
            self._hooks.append(module.register_forward_hook(_OwnerHook(self._noise), always_call=True))
        _forget_compiled_graphs()

    @property
    def step(self) -> int:
        """The optimisation step whose noise is drawn. Each value gives new noise, the same value the same noise.

        Until it is set, every training forward counts as a step of its own.
        """
        return int(self._noise.step)

    @step.setter
    def step(self, step: int) -> None:
        self._noise.begin_step(step)
        plugin_manager().hook.neftune_step(handle=self)

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

    module: that is called.
    batch: its arguments by name.
    noisy: whether the outermost call wants noise.
    stream: 0, or 1 in a decoder that has an encoder.
    applied: whether noise was added in it.
    """

    def __init__(self, module: nn.Module, batch: dict[str, Any], noisy: bool, stream: int) -> None:
        self.module = module
        self.batch = batch
        self.noisy = noisy
        self.stream = stream
        self.applied = False


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
        self.alpha = float(config.alpha)
        self.padded_length = config.length == "padded"
        self.keys = (stream_key(seed, 0), stream_key(seed, 1))
        # A tensor, so that a compiled graph takes it as an input and is not compiled again when it changes.
        self.step = torch.full((), -1, dtype=torch.int64)
        self.counts_forwards = True
        self.calls = _Calls()
        self.recomputable: deque[tuple[Tensor, Tensor, Tensor]] = deque(maxlen=_MAX_RECOMPUTABLE)

    def begin_step(self, step: int) -> None:
        self.counts_forwards = False
        self.step.fill_(step)
        self.calls.stack.clear()  # an interrupted forward may have left its calls
        self.recomputable.clear()

    def enter(self, module: nn.Module, is_root: bool, batch: dict[str, Any], stream: int) -> None:
        stack = self.calls.stack
        if is_root:
            stack.clear()
        if stack:
            noisy = stack[0].noisy
        else:
            noisy = module.training and torch.is_grad_enabled()
            if noisy and self.counts_forwards and not _in_backward():
                self.step.add_(1)
        stack.append(_Frame(module, batch, noisy, stream))

    def leave(self, module: nn.Module, failed: bool) -> None:
        stack = self.calls.stack
        # Somebody's pre-hook may have raised before ours had its turn.
        if not any(frame.module is module for frame in stack):
            return
        frame = stack.pop()
        while frame.module is not module:
            frame = stack.pop()
        if stack:
            stack[-1].applied = stack[-1].applied or frame.applied
        elif frame.noisy and not frame.applied and not failed:
            raise NoiseNotAppliedError(
                f"a training forward of {type(module).__name__} went by without noise: none of its input embeddings "
                f"({', '.join(self.handle.embeddings)}) was called with the batch's input_ids. The forward was given "
                f"{', '.join(name for name, value in frame.batch.items() if value is not None) or 'nothing'}. Pass "
                "input_ids rather than inputs_embeds, or name the embedding that is called in a plugin: "
                "neftune_embeddings(model) (neftune_plugins.hookspecs)."
            )

    def noised(self, embedding: nn.Module, input_ids: Tensor, output: Tensor) -> Tensor:
        """The embedding's `output` (..., D) of `input_ids`, with noise where it is due."""
        stack = self.calls.stack
        if not stack:
            # Activation checkpointing calls parts of a model again in backward, outside of every forward.
            recomputed = self._recomputable(input_ids) if _in_backward() else None
            return output if recomputed is None else self._add(embedding, output, *recomputed)
        if not stack[0].noisy:
            return output
        frame = _frame_with(stack, input_ids)
        if frame is None:
            return output
        frame.applied = stack[-1].applied = True
        layout = self.handle.layout({**frame.batch, "is_decoder": bool(frame.stream)})
        keys = token_keys(frame.batch["input_ids"], layout, self.keys[frame.stream], self.step)
        scales = token_scales(layout, output.shape[-1], self.alpha, padded_length=self.padded_length)
        if not torch.compiler.is_compiling():
            self.recomputable.append((input_ids, keys, scales))
        return self._add(embedding, output, keys, scales)

    def _recomputable(self, input_ids: Tensor) -> tuple[Tensor, Tensor] | None:
        for ids, keys, scales in reversed(self.recomputable):
            # Reentrant checkpointing passes another tensor object of the same storage.
            if ids.shape == input_ids.shape and ids.data_ptr() == input_ids.data_ptr():
                return keys, scales
        return None

    def _add(self, embedding: nn.Module, output: Tensor, keys: Tensor, scales: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            flat = output.reshape(-1, output.shape[-1])
            return add_noise(flat, keys.reshape(-1), scales.reshape(-1), self.noise_type).view_as(output)
        if not _is_ours_alone(embedding, output):
            output = output.clone(memory_format=torch.contiguous_format)
        flat = output.detach().view(-1, output.shape[-1])
        add_noise_(flat, keys.reshape(-1), scales.reshape(-1), self.noise_type)
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
    def __init__(self, noise: _Noise, is_root: bool, arguments: tuple[str, ...], stream: int) -> None:
        super().__init__(noise)
        self.is_root = is_root
        self.arguments = arguments
        self.stream = stream

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        batch = dict(zip(self.arguments, args, strict=False))
        batch.update(kwargs)
        self.noise.enter(module, self.is_root, batch, self.stream)


class _OwnerHook(_Hook):
    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self.noise.leave(module, failed=output is None)


class _EmbeddingHook(_Hook):
    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
        input_ids = args[0] if args else next(iter(kwargs.values()))
        if input_ids.is_floating_point():  # a head that shares the weight
            return output
        return self.noise.noised(module, input_ids, output)


def _owners(model: nn.Module, embeddings: Sequence[nn.Module]) -> list[nn.Module]:
    """The model, and each module above an embedding whose forward takes `attention_mask`; outermost first. (BERT's
    embedding layer takes `input_ids` and knows nothing of padding.)"""
    wanted = set(embeddings)
    return [
        module
        for module in model.modules()
        if module is model
        or (
            module not in wanted
            and not wanted.isdisjoint(module.modules())
            and "attention_mask" in inspect.signature(module.forward).parameters
        )
    ]


def _decoder(modules: Iterable[nn.Module]) -> nn.Module | None:
    """The decoder of an encoder-decoder model."""
    for module in modules:
        if getattr(getattr(module, "config", None), "is_encoder_decoder", False) and hasattr(module, "get_decoder"):
            get_decoder: Any = module.get_decoder
            decoder = get_decoder()
            return decoder if isinstance(decoder, nn.Module) and decoder is not module else None
    return None


def _pad_token_id(modules: Iterable[nn.Module]) -> int | None:
    for module in modules:
        for name in ("config", "generation_config"):
            pad_token_id = getattr(getattr(module, name, None), "pad_token_id", None)
            if isinstance(pad_token_id, int) and pad_token_id >= 0:
                return pad_token_id
    return None


def _forget_compiled_graphs() -> None:
    """torch.compile does not notice hooks that come or go after a module's first compiled forward."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
