"""The examples in the docstrings of the public face run as they stand."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

import neftune_plugins
from neftune_plugins import NoiseConfig, install
from neftune_plugins.plugins import hookspecs
from tests.support.docstrings import run_example
from tests.support.models import ToyModel, examples, padded

FACE = {name: getattr(neftune_plugins, name) for name in ("Handle", "NoiseConfig", "NoiseType", "install", "resolve")}
FACE |= {f"Handle.{name}": getattr(FACE["Handle"], name) for name in ("training_forwards",)}
HOOKS = {name: hook for name, hook in vars(hookspecs).items() if name.startswith("neftune_")}


class Model(ToyModel):
    """Gives its loss, as models of transformers do."""

    def forward(self, **batch: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(loss=super().forward(**batch).logsumexp(-1).sum())


def world() -> dict[str, Any]:
    """What the examples take for granted."""
    ids, mask = padded(examples([5, 12]))
    model = Model().train()
    noise = install(model, NoiseConfig(alpha=5))
    batch = {"input_ids": ids, "attention_mask": mask}
    public = {name: getattr(neftune_plugins, name) for name in neftune_plugins.__all__}
    return {**public, "torch": torch, "model": model, "noise": noise, "batch": batch, "batches": [batch, batch]}


@pytest.mark.parametrize("name", [*FACE, *HOOKS])
def test_the_example_of_the_docstring_runs(name):
    run_example(name, {**FACE, **HOOKS}[name], world())
