"""TRL's part of `neftune demo`."""

import shutil
from pathlib import Path
from typing import Any

from neftune_transformers.demo import Training, as_yaml, number, run

from neftune_plugins import DemoOptions
from neftune_trl.training import VARIABLE, arguments


def demo(options: DemoOptions) -> None:
    """Train with `trl sft`."""
    run(options, _prepare)


def _prepare(options: DemoOptions, model: Path, data: Path) -> Training:
    # `dataset_name` is a folder, and every data file in it is read.
    folder = options.folder / "data"
    folder.mkdir(exist_ok=True)
    shutil.copy(data, folder)
    noise = {"neftune_noise_alpha": number(options.alpha)}
    config = options.folder / "trl.yaml"
    config.write_text(as_yaml(_config(options, model, folder) | noise), encoding="utf-8")
    return Training(config, as_yaml(noise).strip(), arguments(config), options.folder / "trained")


def _config(options: DemoOptions, model: Path, data: Path) -> dict[str, Any]:
    length = {"num_train_epochs": 1} if options.steps is None else {"max_steps": options.steps}
    return {
        "env": {VARIABLE: "sft"},
        "model_name_or_path": str(model),
        "dataset_name": str(data),
        "max_length": 512,
        "output_dir": str(options.folder / "trained"),
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "gradient_checkpointing": False,
        **length,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 4,
        "learning_rate": 1e-3 if options.tiny else 1e-5,  # a tiny model is random and learns from scratch
        "bf16": False,
        "logging_steps": 4,
        "save_strategy": "no",
        "report_to": "none",
        "seed": 42,
    }
