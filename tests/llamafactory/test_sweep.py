"""`neftune sweep` through `llamafactory-cli train`."""

from pathlib import Path
from typing import Any

import pytest
from neftune_transformers.tiny import make_tiny_model

from tests.llamafactory.configs import base_config
from tests.support.sweeps import STEPS, check_sweep

pytest.importorskip("optuna", reason="the extra `sweep` is in the environments of the newest releases")


def check(config: dict[str, Any], folder: Path, *, held_out: bool) -> None:
    config |= {"max_steps": STEPS, "neftune_noise_alpha": 3, "output_dir": "nowhere"}

    def without(config: dict[str, Any]) -> None:
        for name in ("neftune_noise_alpha", "output_dir", "seed"):
            config.pop(name, None)

    check_sweep(config, folder, without=without, held_out=held_out)


def test_a_sweep(tmp_path):
    check(base_config(make_tiny_model(tmp_path / "model"), "sft"), tmp_path, held_out=True)


def test_a_sweep_in_v1(tmp_path, monkeypatch):
    monkeypatch.setenv("USE_V1", "1")
    config = base_config(make_tiny_model(tmp_path / "model"), "v1") | {"logging_steps": 1}
    check(config, tmp_path, held_out=False)
