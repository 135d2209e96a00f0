"""LLaMA-Factory's part of `neftune demo`."""

import json
from pathlib import Path

from neftune_transformers.demo import Training, run

from neftune_llamafactory.training import arguments
from neftune_plugins import DemoOptions

CONFIG = """\
model_name_or_path: {model}
stage: sft
do_train: true
finetuning_type: full
dataset: instructions
dataset_dir: {folder}
cutoff_len: 512
preprocessing_num_workers: 1
output_dir: {folder}/trained
overwrite_output_dir: true
per_device_train_batch_size: 4
gradient_accumulation_steps: 1
{length}
lr_scheduler_type: cosine
warmup_steps: 4
learning_rate: {rate}
logging_steps: 4
save_strategy: "no"
report_to: none
seed: 42
{line}
"""

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
    line = f"neftune_noise_alpha: {options.alpha:g}"
    length = "num_train_epochs: 1" if options.steps is None else f"max_steps: {options.steps}"
    # A tiny model is random and learns from scratch.
    rate = "1.0e-3" if options.tiny else "1.0e-5"
    config = options.folder / "llamafactory.yaml"
    config.write_text(CONFIG.format(model=model, folder=options.folder, length=length, rate=rate, line=line))
    return Training(config, line, arguments(config), options.folder / "trained")
