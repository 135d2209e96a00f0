"""What the `neftune` command knows of a training framework."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class DemoRun:
    """A framework's configuration for the demo.

    path: of the file that `config` was written to.
    key_line: the one line of it that switches the noise on.
    command: the framework's own command line that trains with it.
    model: folder that the trained model is saved in.
    alpha: of the noise.
    """

    path: Path
    key_line: str
    command: list[str]
    model: Path
    alpha: float


@dataclass(frozen=True)
class Framework:
    """A training framework.

    name: as in `neftune demo --framework NAME` and in the extra `neftune-plugins[NAME]`.
    distribution: the Python distribution that provides it.
    supported: version specifier (PEP 440) of the releases that the adapter is tested with.
    demo: (model folder, training rows in Alpaca's JSON lines, work folder, settings) -> DemoRun; writes the
        configuration.
    """

    name: str
    distribution: str
    supported: str
    demo: Callable[[Path, Path, Path, dict[str, Any]], DemoRun] | None = None
