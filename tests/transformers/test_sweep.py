"""`neftune sweep` and `neftune demo` through `trl sft`."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from neftune_transformers.tiny import make_tiny_model

from tests.support.commands import neftune
from tests.support.demo import AWKWARD, check_demo
from tests.support.sweeps import BATCH, STEPS, check_sweep

FOLDER = Path(__file__).parents[2] / "example_configs" / "trl"


def test_a_sweep(tmp_path):
    pytest.importorskip("optuna", reason="the extra `sweep` is in the environments of the newest releases")
    config = yaml.safe_load((FOLDER / "sft.yaml").read_text())
    config |= {
        "model_name_or_path": str(make_tiny_model(tmp_path / "model")),
        "dataset_name": str(FOLDER / "data" / "conversations"),
        "per_device_train_batch_size": BATCH,
        "max_steps": STEPS,
        "neftune_noise_alpha": 3,
        "bf16": False,
        "use_cpu": True,
    }

    def without(config: dict[str, Any]) -> None:
        for name in ("neftune_noise_alpha", "output_dir", "seed"):
            config.pop(name, None)

    check_sweep(config, tmp_path, without=without)


def test_the_demo_trains_and_reports(tmp_path):
    place = tmp_path / AWKWARD
    place.mkdir()
    result = neftune("demo", "--framework", "trl", "--tiny", "--steps", "4", cwd=place)
    folder = place / "neftune-demo"
    check_demo(result, folder / "trl.yaml", folder / "trained")
