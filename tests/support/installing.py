"""Noise for tests that look at an installation and do not train."""

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn

from neftune_plugins import Handle, NoiseConfig, install


@contextlib.contextmanager
def untrained(model: nn.Module, config: NoiseConfig, **options: Any) -> Iterator[Handle]:
    """Installed noise that may end without a training forward pass."""
    handle = install(model, config, **options)
    try:
        yield handle
    finally:
        handle.remove()
