"""Whether a framework loads a model."""

import contextlib
from collections.abc import Iterator

import pytest


@contextlib.contextmanager
def transformers_loads_model() -> Iterator[list[str]]:
    """Gives a list to which a name is added whenever an Auto class of transformers is to load a model, which it does
    not."""
    from transformers.models.auto.auto_factory import _BaseAutoModelClass

    loaded: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_BaseAutoModelClass, "from_pretrained", lambda name, *args, **kwargs: loaded.append(str(name)))
        yield loaded
