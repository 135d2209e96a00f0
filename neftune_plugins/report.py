"""A record of the noise that entered a model, measured at the embedding's output.

With the environment variable NEFTUNE_REPORT=FILE a line of JSON is added to FILE for each example of each noised
forward. It costs a second lookup of the embeddings: for looking at, not for long runs.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from neftune_plugins.hookspecs import hookimpl

if TYPE_CHECKING:
    from neftune_plugins.injection import Handle

VARIABLE = "NEFTUNE_REPORT"


class Report:
    """Plugin that writes the record."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._hooks: list[RemovableHandle] = []
        self._mask: Tensor | None = None

    @hookimpl
    def neftune_installed(self, handle: Handle) -> None:
        def remember(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            mask = kwargs.get("attention_mask")
            self._mask = mask if isinstance(mask, Tensor) and mask.dim() == 2 else None

        def measure(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            if module.training and torch.is_grad_enabled():
                self._write(handle, args[0], type(module).forward(module, *args), output)

        self._hooks = [handle.model.register_forward_pre_hook(remember, with_kwargs=True)]
        for name in handle.embeddings:
            self._hooks.append(handle.model.get_submodule(name).register_forward_hook(measure))

    @hookimpl
    def neftune_removed(self, handle: Handle) -> None:
        for hook in self._hooks:
            hook.remove()

    @torch.no_grad()
    def _write(self, handle: Handle, input_ids: Tensor, clean: Tensor, noisy: Tensor) -> None:
        noise = noisy.double() - clean.double()
        mask = self._mask if self._mask is not None and self._mask.shape == input_ids.shape else None
        real = torch.ones_like(input_ids, dtype=torch.bool) if mask is None else mask > 0
        with self.path.open("a") as file:
            for row in range(len(input_ids)):
                line = {
                    "step": handle.step,
                    "length": int(real[row].sum()),
                    "width": input_ids.shape[1],
                    "dim": noise.shape[-1],
                    "rms": noise[row][real[row]].square().mean().sqrt().item(),
                    "padding": noise[row][~real[row]].abs().max().item() if not real[row].all() else 0.0,
                }
                file.write(json.dumps(line) + "\n")


def from_environment() -> Report | None:
    """The report that the environment asks for."""
    path = os.environ.get(VARIABLE)
    return Report(Path(path)) if path else None
