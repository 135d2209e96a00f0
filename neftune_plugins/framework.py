"""What the `neftune` command knows of a training framework."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class DemoOptions:
    """What `neftune demo` was asked for.

    folder: to work in.
    model: folder of a model to train, or None for SmolLM2-135M-Instruct.
    tiny: train a model made on the spot instead.
    alpha: of the noise.
    steps: of training; None for one pass over the data.
    """

    folder: Path
    model: Path | None = None
    tiny: bool = False
    alpha: float = 5.0
    steps: int | None = None


@dataclass(frozen=True)
class Framework:
    """A training framework.

    name: as in `neftune demo --framework NAME` and in the extra `neftune-plugins[NAME]`.
    distribution: the Python distribution that provides it.
    demo: trains a model with one key and reports what the noise did; imports the framework when called.
    """

    name: str
    distribution: str
    demo: Callable[[DemoOptions], None]
