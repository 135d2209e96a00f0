"""Everything a plugin can provide or be told of. Implement with `@hookimpl` in a module or object that the entry-point
group `neftune_plugins` names."""

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
    """Noise types that `neftune_noise_type` may name."""


@hookspec(firstresult=True)
def neftune_embeddings(model: nn.Module) -> Sequence[nn.Module] | None:
    """The modules whose output is the embedding of token ids, or None to leave the model to the next plugin."""


@hookspec(firstresult=True)
def neftune_embedding_scale(model: nn.Module, embedding: nn.Module) -> float | None:
    """By what `model` multiplies the output of that embedding before its first block, or None to leave it to the next
    plugin. The noise is divided by it, so that the paper's noise enters the block."""


@hookspec
def neftune_layout_reader() -> LayoutReader:
    """A function that tells the example of each token of a batch; it gives None for batches it does not know."""


@hookspec
def neftune_frameworks() -> Iterable[Framework]:
    """Training frameworks that the `neftune` command can drive."""


@hookspec
def neftune_installed(handle: InstalledNoise) -> None:
    """Noise was installed in `handle.model`."""


@hookspec
def neftune_step(handle: InstalledNoise) -> None:
    """The optimisation step `handle.step` begins."""


@hookspec
def neftune_metrics(handle: InstalledNoise) -> Mapping[str, float]:
    """What to log beside the training's loss, by name: of the time since it was last asked for."""


@hookspec
def neftune_removed(handle: InstalledNoise) -> None:
    """The noise was removed from `handle.model`."""
