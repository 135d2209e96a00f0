"""`neftune demo`: the model, the data and the report, which the demos of all frameworks share."""

import importlib.resources
import json
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from neftune_plugins import REPORT_VARIABLE, DemoOptions, NEFTuneError, NoiseConfig

HELD_OUT = 16  # rows kept for the loss before and after
TRAINED = 64  # so that the demo takes less than 3 minutes on two CPU cores
QUESTION = "Explain in two sentences why leaves change colour in autumn."


@dataclass(frozen=True)
class Training:
    """A framework's part of the demo.

    config: the file that was written.
    line: the line in it that switches the noise on.
    command: the framework's own command line.
    model: where the trained model will be.
    """

    config: Path
    line: str
    command: list[str]
    model: Path


def number(alpha: float) -> int | float:
    """Format alpha: 5, not 5.0."""
    return int(alpha) if alpha.is_integer() else alpha


def as_yaml(config: Mapping[str, Any]) -> str:
    """Write a configuration as YAML in its own order, with quotes around values that need them."""
    return str(yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True, width=10**6))


Prepare = Callable[[DemoOptions, Path, Path], Training]
"""(options, model folder, file of chat messages in JSON lines) -> Training; writes the framework's configuration."""


def run(options: DemoOptions, prepare: Prepare) -> None:
    """Train, and print the report.

    Raises NEFTuneError for a bad alpha, a missing model, and a training that fails.
    """
    NoiseConfig(alpha=options.alpha)
    folder = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    model = _model(options)
    rows = _rows()
    data = folder / "train.jsonl"
    data.write_text(
        "".join(json.dumps({"messages": _messages(row)}) + "\n" for row in rows[HELD_OUT : HELD_OUT + TRAINED])
    )
    training = prepare(options, model, data)
    print(f"\nConfiguration: {training.config}\nThe one line that makes it NEFTune: {training.line}\n", flush=True)
    print(f"$ {' '.join(training.command)}", flush=True)
    record = folder / "noise.jsonl"
    record.unlink(missing_ok=True)
    begin = time.monotonic()
    environment = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", **os.environ, REPORT_VARIABLE: str(record)}
    process = subprocess.run(training.command, cwd=folder, env=environment, check=False)
    if process.returncode:
        raise NEFTuneError(f"the training failed with exit status {process.returncode}; its output is above")
    seconds = time.monotonic() - begin
    print("\nMeasuring the noise-free loss before and after, and asking the trained model", flush=True)
    tokenizer = AutoTokenizer.from_pretrained(model)
    before = _loss(_load(model), tokenizer, rows[:HELD_OUT])
    trained = _load(training.model)
    after = _loss(trained, tokenizer, rows[:HELD_OUT])
    print(report(record, options.alpha, seconds, before, after, _answer(trained, tokenizer)), flush=True)


def report(record: Path, alpha: float, seconds: float, before: float, after: float, answer: str) -> str:
    """Return the text of the report, from the record of `neftune_plugins.model.report`."""
    examples = [json.loads(line) for line in record.read_text().splitlines()]
    theory = [alpha / 3**0.5 / (example["length"] * example["dim"]) ** 0.5 for example in examples]
    ratios = [example["rms"] / expected for example, expected in zip(examples, theory, strict=True)]
    lengths = [example["length"] for example in examples]
    lines = [
        "",
        f"neftune_noise_alpha: {alpha:g}, trained for {seconds:.0f} s",
        f"  examples seen       {len(examples)} in {len({example['step'] for example in examples})} steps",
        f"  true lengths L      {min(lengths)} to {max(lengths)} tokens, median {statistics.median(lengths):g}, "
        f"in rows padded to {min(e['width'] for e in examples)} to {max(e['width'] for e in examples)}",
        "  noise that entered, over alpha / sqrt(3 L d), the root mean square of the paper's noise:",
        f"                      mean {statistics.mean(ratios):.4f}, from {min(ratios):.4f} to {max(ratios):.4f}",
        f"  noise on padding    {max(example['padding'] for example in examples):g}",
        "",
        "       L   row width      measured   alpha/sqrt(3 L d)   with L = row width",
    ]
    for example, expected in list(zip(examples, theory, strict=True))[:8]:
        native = expected * (example["length"] / example["width"]) ** 0.5
        lines.append(
            f"  {example['length']:6d} {example['width']:11d} {example['rms']:13.6f} {expected:19.6f} {native:20.6f}"
        )
    lines += [
        "",
        f"  noise-free loss on {HELD_OUT} held-out rows: {before:.4f} before, {after:.4f} after",
        "",
        f"  {QUESTION}",
        f"  > {answer}",
    ]
    return "\n".join(lines)


def _model(options: DemoOptions) -> Path:
    if options.model is not None:
        if not (options.model / "config.json").exists():
            raise NEFTuneError(f"--model {options.model}: there is no config.json in it; give a model's folder")
        return options.model
    if options.tiny:
        from neftune_transformers.tiny import make_tiny_model

        return make_tiny_model(options.folder / "tiny-model")
    from neftune_transformers.smollm2 import smollm2

    return smollm2()


def _rows() -> list[dict[str, str]]:
    text = (
        importlib.resources.files("neftune_plugins")
        .joinpath("commands/data/instructions.jsonl")
        .read_text(encoding="utf-8")
    )
    return [json.loads(line) for line in text.splitlines()]


def _messages(row: dict[str, str]) -> list[dict[str, str]]:
    prompt = f"{row['instruction']}\n\n{row['input']}" if row["input"] else row["instruction"]
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": row["output"]}]


def _load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32).eval()


@torch.no_grad()
def _loss(model: Any, tokenizer: Any, rows: list[dict[str, str]]) -> float:
    """Mean cross-entropy per token of the answers, without noise."""
    total, tokens = 0.0, 0
    for row in rows:
        messages = _messages(row)
        prompt = tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
        whole = tokenizer.apply_chat_template(messages, tokenize=False)
        ids = tokenizer(whole, return_tensors="pt", add_special_tokens=False).input_ids
        labels = ids.clone()
        labels[:, : len(tokenizer(prompt, add_special_tokens=False).input_ids)] = -100
        answered = int((labels[:, 1:] != -100).sum())
        total += model(input_ids=ids, labels=labels).loss.item() * answered
        tokens += answered
    return total / tokens


def _answer(model: Any, tokenizer: Any) -> str:
    """Generate greedily, with the repetition penalty of the paper's authors."""
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": QUESTION}], tokenize=False, add_generation_prompt=True
    )
    inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=False, return_token_type_ids=False)
    output = model.generate(**inputs, max_new_tokens=80, do_sample=False, repetition_penalty=1.2)
    return str(tokenizer.decode(output[0, inputs.input_ids.shape[1] :], skip_special_tokens=True)).strip()
