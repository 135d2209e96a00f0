"""`neftune sweep` through `swift sft`."""

from typing import Any

import pytest
from neftune_transformers.tiny import make_tiny_model

from tests.support.sweeps import STEPS, check_sweep
from tests.swift.configs import base_config

pytest.importorskip("optuna", reason="the extra `sweep` is in the environments of the newest releases")


def test_a_sweep(tmp_path):
    config = base_config(make_tiny_model(tmp_path / "model"), "sft")
    config |= {"max_steps": STEPS, "neftune_noise_alpha": 3, "output_dir": "nowhere", "save_strategy": "steps"}

    def without(config: dict[str, Any]) -> None:
        for name in ("neftune_noise_alpha", "output_dir", "seed", "add_version"):
            config.pop(name, None)

    check_sweep(config, tmp_path, without=without, held_out=True)
