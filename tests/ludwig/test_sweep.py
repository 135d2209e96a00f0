"""`neftune sweep` through `ludwig train`."""

from typing import Any

import pytest
from neftune_transformers.tiny import make_tiny_model

from tests.ludwig.configs import base_config, with_keys, write_dataset
from tests.support.sweeps import STEPS, check_sweep

pytest.importorskip("optuna", reason="the extra `sweep` is in the environments of the newest releases")


def test_a_sweep(tmp_path):
    model, dataset = make_tiny_model(tmp_path / "model"), write_dataset(tmp_path)
    config = with_keys(base_config(model, "full"), {"neftune_noise_alpha": 3})
    config["trainer"]["train_steps"] = STEPS

    def without(config: dict[str, Any]) -> None:
        config["model_parameters"].pop("neftune_noise_alpha", None)

    check_sweep(config, tmp_path, "--dataset", dataset.name, without=without)
