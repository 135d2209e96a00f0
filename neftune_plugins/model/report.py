"""Records the noise that entered a model, measured at the embedding's output.

With the environment variable NEFTUNE_REPORT=FILE, each noised forward pass adds a line of JSON per example to FILE.
This costs a second lookup of the embeddings, so it is meant for inspection, not for long runs.
"""

from __future__ import annotations

import inspect
import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from neftune_plugins.model.hooks import InertHook
from neftune_plugins.noise import Layout
from neftune_plugins.plugins import InstalledNoise, hookimpl

VARIABLE = "NEFTUNE_REPORT"

_hooks: dict[InstalledNoise, list[RemovableHandle]] = {}


@hookimpl
def neftune_installed(handle: InstalledNoise) -> None:
    """Record the noise of this model, if the environment asks for it."""
    if not os.environ.get(VARIABLE):
        return
    path = Path(os.environ[VARIABLE])
    arguments = tuple(inspect.signature(handle.model.forward).parameters)
    batch: dict[str, Any] = {}

    class Remember(InertHook):
        def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            batch.clear()
            batch.update(zip(arguments, args, strict=False), **kwargs)

    class Measure(InertHook):
        def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            if module.training and torch.is_grad_enabled():
                layout = handle.layout(batch | {"input_ids": args[0]})
                _write(path, handle.step, layout, type(module).forward(module, *args), output)

    _hooks[handle] = [handle.model.register_forward_pre_hook(Remember(), with_kwargs=True)]
    for name in handle.embeddings:
        _hooks[handle].append(handle.model.get_submodule(name).register_forward_hook(Measure()))


@hookimpl
def neftune_removed(handle: InstalledNoise) -> None:
    for hook in _hooks.pop(handle, []):
        hook.remove()


@torch.no_grad()
def _write(path: Path, step: int, layout: Layout, clean: Tensor, noisy: Tensor) -> None:
    noise_BLD = noisy.double() - clean.double()
    with path.open("a") as file:
        for row, noise_LD in enumerate(noise_BLD):
            real_L, example_L = layout.real_BL[row], layout.example_BL[row]
            padding_ND = noise_LD[~real_L]
            for example in torch.unique(example_L[real_L]).tolist():
                own_ND = noise_LD[real_L & (example_L == example)]
                line = {
                    "step": step,
                    "length": len(own_ND),
                    "width": len(noise_LD),
                    "dim": own_ND.shape[1],
                    "rms": own_ND.square().mean().sqrt().item(),
                    "padding": padding_ND.abs().max().item() if len(padding_ND) else 0.0,
                }
                file.write(json.dumps(line) + "\n")
