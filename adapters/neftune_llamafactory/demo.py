"""LLaMA-Factory's part of `neftune demo`."""

import json
from pathlib import Path
from typing import Any

from neftune_transformers.demo import Training, as_yaml, number, run

from neftune_llamafactory.training import arguments
from neftune_plugins import DemoOptions

DATASET = {
    "formatting": "sharegpt",
    "columns": {"messages": "messages"},
    "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"},
}


def demo(options: DemoOptions) -> None:
    """Train with `llamafactory-cli train`."""
    run(options, _prepare)


def _prepare(options: DemoOptions, model: Path, data: Path) -> Training:
    (options.folder / "dataset_info.json").write_text(json.dumps({"instructions": {**DATASET, "file_name": data.name}}))
    noise = {"neftune_noise_alpha": number(options.alpha)}
    config = options.folder / "llamafactory.yaml"
    config.write_text(as_yaml(_config(options, model) | noise), encoding="utf-8")
    return Training(config, as_yaml(noise).strip(), arguments(config), options.folder / "trained")


def _config(options: DemoOptions, model: Path) -> dict[str, Any]:
    length = {"num_train_epochs": 1} if options.steps is None else {"max_steps": options.steps}
    return {
        "model_name_or_path": str(model),
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "full",
        "dataset": "instructions",
        "dataset_dir": str(options.folder),
        "cutoff_len": 512,
        "preprocessing_num_workers": 1,
        "output_dir": str(options.folder / "trained"),
        "overwrite_output_dir": True,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1,
        **length,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 4,
        "learning_rate": 1e-3 if options.tiny else 1e-5,  # a tiny model is random and learns from scratch
        "logging_steps": 4,
        "save_strategy": "no",
        "report_to": "none",
        "seed": 42,
    }
