"""Axolotl's part of `neftune demo`."""

import importlib.metadata
from pathlib import Path

from neftune_transformers.demo import Training, run
from packaging.version import Version

from neftune_axolotl.training import arguments
from neftune_plugins import DemoOptions

CONFIG = """\
base_model: {model}
datasets:
  - path: {data}
    ds_type: json
    type: chat_template
    field_messages: messages
chat_template: tokenizer_default
dataset_prepared_path: {folder}/prepared
dataset_num_proc: 1
output_dir: {folder}/trained
sequence_len: 512
micro_batch_size: 4
gradient_accumulation_steps: 1
num_epochs: 1
optimizer: adamw_torch
lr_scheduler: cosine
warmup_steps: 4
learning_rate: {rate}
bf16: false
fp16: false
logging_steps: 4
save_strategy: "no"
seed: 42
{line}
"""


def demo(options: DemoOptions) -> None:
    """Train with `axolotl train`."""
    run(options, _prepare)


def _prepare(options: DemoOptions, model: Path, data: Path) -> Training:
    line = f"neftune_noise_alpha: {options.alpha:g}"
    # A tiny model is random and learns from scratch.
    rate = 1e-3 if options.tiny else 1e-5
    text = CONFIG.format(model=model, data=data, folder=options.folder, rate=rate, line=line)
    if options.steps is not None:
        text += f"max_steps: {options.steps}\n"
    if Version(importlib.metadata.version("axolotl")) < Version("0.21"):
        text += "plugins:  # Axolotl 0.21 and newer find it by themselves\n  - neftune_axolotl.NEFTunePlugin\n"
    config = options.folder / "axolotl.yml"
    config.write_text(text)
    command = [*arguments(config), "--launcher", "python"]
    return Training(config, line, command, options.folder / "trained")
