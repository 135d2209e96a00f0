"""Axolotl's part of `neftune demo`."""

import importlib.metadata
from pathlib import Path
from typing import Any

from neftune_transformers.demo import Training, as_yaml, number, run
from packaging.version import Version

from neftune_axolotl.training import arguments
from neftune_plugins import DemoOptions


def demo(options: DemoOptions) -> None:
    """Train with `axolotl train`."""
    run(options, _prepare)


def _prepare(options: DemoOptions, model: Path, data: Path) -> Training:
    noise = {"neftune_noise_alpha": number(options.alpha)}
    config = options.folder / "axolotl.yml"
    config.write_text(as_yaml(_config(options, model, data) | noise), encoding="utf-8")
    command = [*arguments(config), "--launcher", "python"]
    return Training(config, as_yaml(noise).strip(), command, options.folder / "trained")


def _config(options: DemoOptions, model: Path, data: Path) -> dict[str, Any]:
    config: dict[str, Any] = {
        "base_model": str(model),
        "datasets": [
            {"path": str(data), "ds_type": "json", "type": "chat_template", "field_messages": "messages"},
        ],
        "chat_template": "tokenizer_default",
        "dataset_prepared_path": str(options.folder / "prepared"),
        "dataset_num_proc": 1,
        "output_dir": str(options.folder / "trained"),
        "sequence_len": 512,
        "micro_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "num_epochs": 1,
        "optimizer": "adamw_torch",
        "lr_scheduler": "cosine",
        "warmup_steps": 4,
        "learning_rate": 1e-3 if options.tiny else 1e-5,  # a tiny model is random and learns from scratch
        "bf16": False,
        "fp16": False,
        "logging_steps": 4,
        "save_strategy": "no",
        "seed": 42,
    }
    if options.steps is not None:
        config["max_steps"] = options.steps
    if Version(importlib.metadata.version("axolotl")) < Version("0.21"):  # newer ones find it by themselves
        config["plugins"] = ["neftune_axolotl.NEFTunePlugin"]
    return config
