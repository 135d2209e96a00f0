"""Ludwig's part of `neftune demo`."""

import json
import tempfile
from pathlib import Path

from neftune_transformers.demo import Training, run

from neftune_ludwig.training import arguments, trained_model
from neftune_plugins import DemoOptions

CONFIG = """\
model_type: llm
base_model: {model}
input_features:
  - {{name: prompt, type: text}}
output_features:
  - {{name: answer, type: text}}
preprocessing:
  global_max_sequence_length: 512
  split: {{probabilities: [1.0, 0.0, 0.0]}}
model_parameters:
  {line}
trainer:
  type: finetune
  batch_size: 4
  gradient_accumulation_steps: 1
  learning_rate: {rate}
  learning_rate_scheduler: {{decay: cosine, warmup_fraction: 0.07}}
  skip_all_evaluation: true
  {length}
backend: {{type: local}}
"""


def demo(options: DemoOptions) -> None:
    """Train with `ludwig train`."""
    run(options, _prepare)


def _prepare(options: DemoOptions, model: Path, data: Path) -> Training:
    # Ludwig keeps tokenised data beside the dataset and uses it again, for whatever model.
    output = Path(tempfile.mkdtemp(prefix="ludwig-", dir=options.folder))
    dataset = output / "train.jsonl"
    _write_columns(data, dataset)
    line = f"neftune_noise_alpha: {options.alpha:g}"
    length = "epochs: 1" if options.steps is None else f"train_steps: {options.steps}"
    # A tiny model is random and learns from scratch.
    rate = "0.001" if options.tiny else "0.00001"
    config = options.folder / "ludwig.yaml"
    config.write_text(CONFIG.format(model=model, line=line, rate=rate, length=length))
    command = [*arguments(config, output), "--dataset", str(dataset), "--skip_save_progress"]
    return Training(config, line, command, trained_model(output))


def _write_columns(messages: Path, dataset: Path) -> None:
    """A prompt and an answer, which Ludwig joins. Without a chat template: Ludwig drops what stands before the last
    padding token of a prompt, and SmolLM2's is the one that ends each turn."""
    with dataset.open("w") as file:
        for line in messages.read_text().splitlines():
            question, answer = json.loads(line)["messages"]
            file.write(json.dumps({"prompt": f"{question['content']}\n\n", "answer": answer["content"]}) + "\n")
