"""An Axolotl plugin for tests: puts the probe into a run through Axolotl's own public door."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from axolotl.integrations.base import BasePlugin
from torch import nn
from transformers import TrainerCallback

from tests.axolotl.runs import RECORD_DIR
from tests.support.recorder import AtStepEnd, Recorder, embedding_hooks

at_step_end: AtStepEnd | None = None
"""What the recorder of the next run calls after each step."""


class ProbePlugin(BasePlugin):
    """Adds the recording callback, and looks at the embedding once more when training is over."""

    def add_callbacks_pre_trainer(self, cfg: Any, model: nn.Module) -> list[TrainerCallback]:
        self.recorder = Recorder(Path(os.environ[RECORD_DIR]), at_step_end)
        return [self.recorder]

    def post_train(self, cfg: Any, model: nn.Module) -> None:
        self.recorder.record["hooks_after"] = embedding_hooks(model)
        self.recorder.write()
