"""An Axolotl plugin for tests: puts the probe into a run through Axolotl's own public door."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import datasets
import torch
from axolotl.integrations.base import BasePlugin
from torch import nn
from transformers import TrainerCallback

from tests.axolotl.runs import RECORD_DIR
from tests.support.recorder import AtStepEnd, Recorder, embedding_hooks

at_step_end: AtStepEnd | None = None
"""What the recorder of the next run calls after each step."""


def _as_built_for_the_cpu(*_: object) -> None:
    raise AssertionError("Torch not compiled with CUDA enabled")


if "RANK" in os.environ and not torch.cuda.is_available():
    # Axolotl asks this where there are several processes. It takes the answer of a torch without CUDA, but not that of
    # a torch with CUDA on a machine without, which is a RuntimeError.
    torch.cuda.can_device_access_peer = _as_built_for_the_cpu


save_to_disk = datasets.Dataset.save_to_disk


@functools.wraps(save_to_disk)
def _save_here(*args: Any, num_proc: int | None = None, **kwargs: Any) -> None:
    """Else a spawned worker imports everything again, for half a minute."""
    save_to_disk(*args, **kwargs)


datasets.Dataset.save_to_disk = _save_here


class ProbePlugin(BasePlugin):
    """Adds the recording callback, and looks at the embedding once more when training is over."""

    def load_datasets(self, cfg: Any, preprocess: bool = False) -> None:
        if "RANK" in os.environ:
            cfg.device_map = {"": "cpu"}  # with several processes Axolotl gives each the GPU of its number

    def add_callbacks_pre_trainer(self, cfg: Any, model: nn.Module) -> list[TrainerCallback]:
        folder = Path(os.environ[RECORD_DIR])
        if "RANK" in os.environ:
            folder /= f"rank{os.environ['RANK']}"
        folder.mkdir(exist_ok=True)
        self.recorder = Recorder(folder, at_step_end)
        return [self.recorder]

    def post_train(self, cfg: Any, model: nn.Module) -> None:
        self.recorder.record["hooks_after"] = embedding_hooks(model)
        self.recorder.write()
