"""All hooks that a plugin can implement. Mark your implementation with `@hookimpl`, and name its module or object in an
entry point of the group `neftune_plugins`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import pluggy

if TYPE_CHECKING:
    from torch import nn

    from neftune_plugins.config import NoiseConfig
    from neftune_plugins.noise import Batch, Layout, LayoutReader, NoiseType
    from neftune_plugins.plugins.framework import Framework

hookspec = pluggy.HookspecMarker("neftune_plugins")
hookimpl = pluggy.HookimplMarker("neftune_plugins")


class InstalledNoise(Protocol):
    """Noise installed in a model, as plugins see it.

    model: the module with the noise.
    config: the configuration of the noise.
    embeddings: names of the noised modules in the model.
    steps: number of optimiser steps of the run, or None if unknown.
    step: the current optimiser step.
    alpha: alpha at this step.
    installed: False after the noise was removed.
    """

    model: nn.Module
    config: NoiseConfig
    embeddings: list[str]
    steps: int | None

    @property
    def step(self) -> int: ...

    @property
    def alpha(self) -> float: ...

    @property
    def installed(self) -> bool: ...

    def layout(self, batch: Batch) -> Layout:
        """Find the examples in a batch: the arguments of the model's forward pass by name."""
        ...

    def metrics(self) -> dict[str, float]:
        """Return the metrics of the time since the last call."""
        ...


@hookspec
def neftune_noise_types() -> Iterable[NoiseType]:
    """Add noise types, which users select by name with `neftune_noise_type`.

    >>> @hookimpl
    ... def neftune_noise_types():
    ...     return [NoiseType("coin", lambda bits: ((bits >> 31) | 1).to(torch.float32), rms=1.0)]

    If two plugins use the same name, that is an error when the plugins are loaded.
    """


@hookspec(firstresult=True)
def neftune_embeddings(model: nn.Module) -> Sequence[nn.Module] | None:
    """Name the modules of `model` whose output (B, L, D) is the embedding of token ids (B, L).

    >>> @hookimpl
    ... def neftune_embeddings(model):
    ...     return [model.words] if hasattr(model, "words") else None

    Return None to pass the model on to the next plugin; the built-in one is called last. If a module is not in `model`,
    `install` raises NoiseNotAppliedError.
    """


@hookspec(firstresult=True)
def neftune_embedding_scale(model: nn.Module, embedding: nn.Module) -> float | None:
    """Return the factor by which `model` multiplies the output of `embedding` before its first block.

    >>> @hookimpl
    ... def neftune_embedding_scale(model, embedding):
    ...     return getattr(model, "embedding_multiplier", None)

    The noise is divided by this factor, so that the first block gets the paper's noise. Return None to let the next
    plugin decide.
    """


@hookspec
def neftune_layout_reader() -> LayoutReader:
    """Provide a function that finds the examples in a batch, for batch layouts that only your framework knows.

    >>> @hookimpl
    ... def neftune_layout_reader():
    ...     return lambda batch: None if "lengths" not in batch else Layout(...)

    The function gets the arguments of the model's forward pass by name. It returns None for batches that it does not
    know. The readers of plugins are called before the built-in one. They must be plain tensor code, so that they can be
    compiled.
    """


@hookspec
def neftune_frameworks() -> Iterable[Framework]:
    """Provide training frameworks for the `neftune` command.

    >>> @hookimpl
    ... def neftune_frameworks():
    ...     return [Framework("mine", distribution="my-trainer")]

    If two plugins use the same name, that is an error when the plugins are loaded.
    """


@hookspec
def neftune_installed(handle: InstalledNoise) -> None:
    """Called after noise was installed in `handle.model`.

    >>> @hookimpl
    ... def neftune_installed(handle):
    ...     print("noise in", handle.embeddings)

    If it raises an exception, the installation fails and the model does not change.
    """


@hookspec
def neftune_step(handle: InstalledNoise) -> None:
    """Called when the optimiser step `handle.step` begins.

    >>> @hookimpl
    ... def neftune_step(handle):
    ...     print("step", handle.step, "alpha", handle.alpha)
    """


@hookspec
def neftune_metrics(handle: InstalledNoise) -> Mapping[str, float]:
    """Return metrics by name, which are logged together with the training loss.

    >>> @hookimpl
    ... def neftune_metrics(handle):
    ...     return {"my/alpha": handle.alpha}

    Called at logging steps. The metrics describe the time since the last call.
    """


@hookspec
def neftune_removed(handle: InstalledNoise) -> None:
    """Called after the noise was removed from `handle.model`.

    >>> @hookimpl
    ... def neftune_removed(handle):
    ...     print("no more noise in", handle.embeddings)
    """
