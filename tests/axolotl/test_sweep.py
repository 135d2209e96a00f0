"""`neftune sweep` through `axolotl train`."""

from typing import Any

import pytest
from neftune_transformers.tiny import make_tiny_model

from tests.axolotl.configs import base_config
from tests.axolotl.driver import with_plugin
from tests.support.sweeps import STEPS, check_sweep

pytest.importorskip("optuna", reason="the extra `sweep` is in the environments of the newest releases")


def test_a_sweep(tmp_path):
    config = with_plugin(base_config(make_tiny_model(tmp_path / "model"), "sft"))
    config |= {"max_steps": STEPS, "neftune_noise_alpha": 3, "output_dir": "nowhere"}

    def without(config: dict[str, Any]) -> None:
        for name in ("neftune_noise_alpha", "output_dir", "seed"):
            config.pop(name, None)

    check_sweep(config, tmp_path, "--launcher", "python", without=without)
