"""Every hook of a plugin. Implement some with `@hookimpl` in a module or object, and name it in the entry-point group
`neftune_plugins` of your package."""

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
    """What a plugin sees of noise that was installed in a model.

    model: the module that it was installed in.
    config: its configuration.
    embeddings: names of the noised modules in the model.
    steps: how many optimisation steps the run has, if that is known.
    step: the optimisation step whose noise is drawn.
    alpha: alpha at that step.
    installed: False once the noise was removed.
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
        """The examples of a batch, given as the arguments of the model's forward by name."""
        ...

    def metrics(self) -> dict[str, float]:
        """What to log of the time since the last call."""
        ...


@hookspec
def neftune_noise_types() -> Iterable[NoiseType]:
    """Add noise types that `neftune_noise_type` may name.

    >>> @hookimpl
    ... def neftune_noise_types():
    ...     return [NoiseType("coin", lambda bits: ((bits >> 31) | 1).to(torch.float32), rms=1.0)]

    Two plugins that give one name are an error when the plugins are loaded.
    """


@hookspec(firstresult=True)
def neftune_embeddings(model: nn.Module) -> Sequence[nn.Module] | None:
    """Name the modules of `model` whose output (B, L, D) is the embedding of token ids (B, L).

    >>> @hookimpl
    ... def neftune_embeddings(model):
    ...     return [model.words] if hasattr(model, "words") else None

    None leaves the model to the next plugin; the built-in one comes last. A module that is not in `model` is an error
    of `install`.
    """


@hookspec(firstresult=True)
def neftune_embedding_scale(model: nn.Module, embedding: nn.Module) -> float | None:
    """Say by what `model` multiplies the output of that embedding before its first block.

    >>> @hookimpl
    ... def neftune_embedding_scale(model, embedding):
    ...     return getattr(model, "embedding_multiplier", None)

    The noise is divided by it, so that the noise of the paper enters the block. None leaves it to the next plugin.
    """


@hookspec
def neftune_layout_reader() -> LayoutReader:
    """Give a function that reads the examples of a batch, for batches that only your framework knows.

    >>> @hookimpl
    ... def neftune_layout_reader():
    ...     return lambda batch: None if "lengths" not in batch else Layout(...)

    The function is given the arguments of the model's forward by name and returns None for batches that it does not
    know; the readers of plugins are asked before the built-in one. It must be plain tensor code, so that it compiles.
    """


@hookspec
def neftune_frameworks() -> Iterable[Framework]:
    """Describe training frameworks that the `neftune` command can drive.

    >>> @hookimpl
    ... def neftune_frameworks():
    ...     return [Framework("mine", distribution="my-trainer")]

    Two plugins that give one name are an error when the plugins are loaded.
    """


@hookspec
def neftune_installed(handle: InstalledNoise) -> None:
    """Be called when noise was installed in `handle.model`.

    >>> @hookimpl
    ... def neftune_installed(handle):
    ...     print("noise in", handle.embeddings)

    An exception makes the installation fail, and leaves the model as it was.
    """


@hookspec
def neftune_step(handle: InstalledNoise) -> None:
    """Be called when the optimisation step `handle.step` begins.

    >>> @hookimpl
    ... def neftune_step(handle):
    ...     print("step", handle.step, "alpha", handle.alpha)
    """


@hookspec
def neftune_metrics(handle: InstalledNoise) -> Mapping[str, float]:
    """Add numbers to those that are logged beside the training's loss, by name.

    >>> @hookimpl
    ... def neftune_metrics(handle):
    ...     return {"my/alpha": handle.alpha}

    It is called at logging steps; the numbers are of the time since it was last called.
    """


@hookspec
def neftune_removed(handle: InstalledNoise) -> None:
    """Be called when the noise was removed from `handle.model`.

    >>> @hookimpl
    ... def neftune_removed(handle):
    ...     print("no more noise in", handle.embeddings)
    """
