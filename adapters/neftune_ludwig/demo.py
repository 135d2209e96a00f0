"""Ludwig's part of `neftune demo`."""

import json
import tempfile
from pathlib import Path
from typing import Any

from neftune_transformers.demo import Training, as_yaml, number, run

from neftune_ludwig.training import arguments, trained_model
from neftune_plugins import DemoOptions, NEFTuneError


def demo(options: DemoOptions) -> None:
    """Train with `ludwig train`. Raises the errors of `run`, and NEFTuneError for a folder that Ludwig cannot use."""
    _stop_if_no_url(options.folder)
    run(options, _prepare)


def _stop_if_no_url(folder: Path) -> None:
    """Raise NEFTuneError for a path that Ludwig would cut: it reads paths as URLs, which end before a # or a ?."""
    found = next((char for char in "#?%;" if char in str(folder)), None)
    if found is not None:
        raise NEFTuneError(
            f"--output {folder}: Ludwig reads paths as URLs, and would write elsewhere because of the {found} in "
            "this one; choose a folder without #, ?, % and ;"
        )


def _prepare(options: DemoOptions, model: Path, data: Path) -> Training:
    # Ludwig caches tokenised data next to the dataset and reuses it even for another model.
    output = Path(tempfile.mkdtemp(prefix="ludwig-", dir=options.folder))
    dataset = output / "train.jsonl"
    _write_columns(data, dataset)
    noise = {"neftune_noise_alpha": number(options.alpha)}
    config = options.folder / "ludwig.yaml"
    config.write_text(as_yaml(_config(options, model) | {"model_parameters": noise}), encoding="utf-8")
    command = [*arguments(config, output), "--dataset", str(dataset), "--skip_save_progress"]
    return Training(config, as_yaml(noise).strip(), command, trained_model(output))


def _config(options: DemoOptions, model: Path) -> dict[str, Any]:
    length = {"epochs": 1} if options.steps is None else {"train_steps": options.steps}
    return {
        "model_type": "llm",
        "base_model": str(model),
        "input_features": [{"name": "prompt", "type": "text"}],
        "output_features": [{"name": "answer", "type": "text"}],
        "preprocessing": {"global_max_sequence_length": 512, "split": {"probabilities": [1.0, 0.0, 0.0]}},
        "trainer": {
            "type": "finetune",
            "batch_size": 4,
            "gradient_accumulation_steps": 1,
            "learning_rate": 1e-3 if options.tiny else 1e-5,  # a tiny model is random and learns from scratch
            "learning_rate_scheduler": {"decay": "cosine", "warmup_fraction": 0.07},
            "skip_all_evaluation": True,
            **length,
        },
        "backend": {"type": "local"},
    }


def _write_columns(messages: Path, dataset: Path) -> None:
    """Return a prompt and an answer, which Ludwig joins.

    Without a chat template: Ludwig drops everything up to the last padding token of a prompt, and SmolLM2's padding
    token ends each turn.
    """
    with dataset.open("w") as file:
        for line in messages.read_text().splitlines():
            question, answer = json.loads(line)["messages"]
            file.write(json.dumps({"prompt": f"{question['content']}\n\n", "answer": answer["content"]}) + "\n")
