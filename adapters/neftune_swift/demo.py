"""ms-swift's part of `neftune demo`."""

from pathlib import Path
from typing import Any

from neftune_transformers.demo import TRAINED, Training, as_yaml, number, run

from neftune_plugins import DemoOptions
from neftune_swift.training import arguments

BATCH = 4


def demo(options: DemoOptions) -> None:
    """Train with `swift sft`."""
    run(options, _prepare)


def _prepare(options: DemoOptions, model: Path, data: Path) -> Training:
    steps = TRAINED // BATCH if options.steps is None else options.steps
    noise = {"neftune_noise_alpha": number(options.alpha)}
    config = options.folder / "swift.yaml"
    config.write_text(as_yaml(_config(options, model, data, steps) | noise), encoding="utf-8")
    return Training(
        config, as_yaml(noise).strip(), arguments(config), options.folder / "trained" / f"checkpoint-{steps}"
    )


def _config(options: DemoOptions, model: Path, data: Path, steps: int) -> dict[str, Any]:
    return {
        "model": str(model),
        "model_type": "llama",
        "template": "chatml",
        "tuner_type": "full",
        "dataset": str(data),
        "split_dataset_ratio": 0,
        "max_length": 512,
        "torch_dtype": "float32",
        "use_hf": True,
        "check_model": False,
        "dataloader_num_workers": 0,
        "output_dir": str(options.folder / "trained"),
        "add_version": False,
        "save_only_model": True,
        "per_device_train_batch_size": BATCH,
        "gradient_accumulation_steps": 1,
        "max_steps": steps,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 4,
        "learning_rate": 1e-3 if options.tiny else 1e-5,  # a tiny model is random and learns from scratch
        "logging_steps": 4,
        "report_to": "none",
        "seed": 42,
    }
