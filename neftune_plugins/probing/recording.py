"""Records the forward passes of a training process, with the noise that entered the model in each."""

import atexit
import json
import os
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

from neftune_plugins.probing.callers import TRAINER, alpha_in_sight, caller
from neftune_plugins.proof import NOT_REPEATABLE, Blind, Captured, Watch, repeatable, unmeasurable

MOST = 64
"""Number of forward passes of one kind that are measured; the others are counted."""

# Containers around a model; their names do not describe the model.
_WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module")


@dataclass
class Kind:
    """Forward passes of one kind, and what was measured in them, for alpha 1.

    examples: of each its L, its width, its ratio, its tokens that have noise, and those without.
    padding: the largest noise on padding, over the bound of the paper's for the longest row.
    doubts, blind: how often two arguments disagreed, or nothing could be measured, and why.
    """

    model: str
    mode: str
    grad: bool
    adapters: str
    caller: str
    forwards: int = 0
    measured: int = 0
    padding: float = 0.0
    examples: list[tuple[int, int, float, int, int]] = field(default_factory=list)
    doubts: Counter[str] = field(default_factory=Counter)
    blind: Counter[str] = field(default_factory=Counter)

    def add(self, captured: Captured | Blind, given_embeddings: bool) -> None:
        """Count a forward pass, and add what was measured in it."""
        found = captured if isinstance(captured, Blind) else captured.judged(1.0)
        if isinstance(found, Blind):
            self.blind[str(found)] += 1
            return
        if given_embeddings and not any(found.ratios):
            self.blind["the embeddings were looked up before the model was called; noise in them cannot be seen"] += 1
            return
        self.measured += 1
        self.padding = max(self.padding, found.padding)
        for stream in found.streams:
            self.doubts.update({doubt.split(": ", 1)[-1]: 1 for doubt in stream.doubts})
            for one in stream.examples:
                tokens = len(one.columns) - one.silent
                self.examples.append((one.length, stream.width, one.ratio, tokens, one.silent))


class Recorder:
    """Records until `steps` optimisation steps have ended; then the process ends, or continues without the probe.

    folder: where a report is written after each step and at the end of the process, named after its id.
    """

    def __init__(self, folder: str, steps: int, *, go_on: bool) -> None:
        self._file = Path(folder, f"{os.getpid()}.json")
        self._steps, self._go_on = steps, go_on
        self._kinds: dict[tuple[Any, ...], Kind] = {}
        self._optimizers: list[Optimizer] = []
        self._alpha: float | None = None
        self._done = 0
        self._trained = False  # since the last step: an optimiser of each parameter, in backward, is one
        self._local = threading.local()
        self._call = nn.Module.__call__
        nn.Module.__call__ = self._called()  # type: ignore[method-assign]
        self._hook = register_optimizer_step_post_hook(self._stepped)
        atexit.register(self._write)
        self._write()

    def know(self, optimizer: Optimizer) -> None:
        """An optimiser was made."""
        self._optimizers.append(optimizer)
        self._alpha = self._alpha or alpha_in_sight()

    def end(self) -> None:
        """Record nothing more."""
        nn.Module.__call__ = self._call  # type: ignore[method-assign]
        self._hook.remove()
        atexit.unregister(self._write)

    def _called(self) -> Any:
        original = self._call

        def called(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if torch.compiler.is_compiling() or getattr(self._local, "inside", False):
                return original(module, *args, **kwargs)
            with self._inside():
                if not has_tokens((args, kwargs)) or not is_model(module):
                    return original(module, *args, **kwargs)
                return self._record(module, args, kwargs)

        return called

    @contextmanager
    def _inside(self) -> Iterator[None]:
        self._local.inside = True
        try:
            yield
        finally:
            self._local.inside = False

    def _record(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        kind = self._kind(module)
        kind.forwards += 1
        self._trained |= module.training and torch.is_grad_enabled()
        why = unmeasurable(module)
        if why or kind.forwards > MOST:
            if why:
                kind.blind[str(why)] += 1
            return self._call(module, *args, **kwargs)
        again = repeatable(args, kwargs)
        if again is None:
            kind.blind[NOT_REPEATABLE] += 1
            return self._call(module, *args, **kwargs)
        watch = Watch(module)
        watch.start(args, kwargs)
        try:
            output = self._call(module, *args, **kwargs)
        finally:
            watch.stop()
        try:
            kind.add(watch.compare(*again), kwargs.get("inputs_embeds") is not None)
        except Exception as error:  # the run continues as without the probe
            kind.blind[f"measuring failed: {type(error).__name__}: {error}"] += 1
        return output

    def _kind(self, module: nn.Module) -> Kind:
        adapters = _adapters(module)
        who = caller(module, trained=self._is_trained(module), adapters=adapters)
        mode = "training" if module.training else "evaluation"
        key = (_name(module), mode, torch.is_grad_enabled(), adapters, who)
        return self._kinds.setdefault(key, Kind(*key))

    def _is_trained(self, module: nn.Module) -> bool:
        own = {
            id(parameter)
            for optimizer in self._optimizers
            for group in optimizer.param_groups
            for parameter in group["params"]
        }
        parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        if any(id(parameter) in own for parameter in parameters):
            return True
        # Sharded optimisers have other parameters than the model.
        anew = any(kind.caller == TRAINER for kind in self._kinds.values())
        return bool(parameters) and not anew and module.training and torch.is_grad_enabled()

    def _stepped(self, *_: object) -> None:
        if not self._trained:
            return
        self._trained = False
        self._done += 1
        self._write()
        if self._done == self._steps:
            self.end()
            if not self._go_on:
                raise SystemExit(0)

    def _write(self) -> None:
        report = {
            "rank": int(os.environ.get("RANK", 0)),
            "steps": self._done,
            "alpha": self._alpha,
            "kinds": [vars(kind) for kind in self._kinds.values()],
        }
        part = self._file.with_suffix(".part")
        part.write_text(json.dumps(report))
        part.replace(self._file)


def has_tokens(value: object, depth: int = 5) -> bool:
    """Whether there are token ids (B, L), or their embeddings by name, in these arguments."""
    if isinstance(value, Tensor):
        return value.dim() == 2 and not value.is_floating_point() and value.dtype != torch.bool
    if depth and isinstance(value, Mapping):
        return value.get("inputs_embeds") is not None or any(has_tokens(one, depth - 1) for one in value.values())
    return bool(depth) and isinstance(value, tuple | list) and any(has_tokens(one, depth - 1) for one in value)


def is_model(module: nn.Module) -> bool:
    """Whether tokens are looked up inside. Neither a lookup alone, nor a block that checkpointing runs again."""
    return any(inner is not module and _is_lookup(inner) for inner in module.modules())


def _is_lookup(module: nn.Module) -> bool:
    if isinstance(module, nn.Embedding):
        return True
    weight = getattr(module, "weight", None)
    return "embedding" in type(module).__name__.lower() and isinstance(weight, Tensor) and weight.dim() == 2


def _name(module: nn.Module) -> str:
    """The class of the model inside of what trainers and adapters wrap around it."""
    while True:
        inner = next((found for name in _WRAPPERS if isinstance(found := getattr(module, name, None), nn.Module)), None)
        if inner is None and hasattr(module, "peft_config"):
            base: Any = getattr(module, "get_base_model", lambda: None)
            inner = base()
        if inner is None or inner is module:
            return type(module).__name__.removeprefix("FSDP")
        module = inner


def _adapters(module: nn.Module) -> str:
    """Whether PEFT's adapters are switched on."""
    found = [inner for inner in module.modules() if hasattr(inner, "_disable_adapters")]
    if not found:
        return "-"
    return "off" if any(inner._disable_adapters for inner in found) else "on"
