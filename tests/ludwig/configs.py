"""Complete Ludwig configurations of runs of a few steps, and their dataset."""

from __future__ import annotations

import copy
import csv
import io
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.support.texts import answer, question

MODES = (
    "full",
    "pad_unk",
    "pad_eos",
    "pad_eos_zero",
    "accumulation",
    "accumulation_uneven",
    "lora",
    "lora_4bit",
    "lora_8bit",
    "lora_embedding",
    "saved_embedding",
    "checkpointing",
    "checkpointing_lora",
    "compile",
    "ecd",
    "ecd_left",
    "ecd_words",
    "dpo",
)

# The special tokens of the copies of the model, by mode; "<pad>" has id 0, "</s>" 2, "<unk>" 3.
TOKENS = {
    "pad_unk": {"pad_token": "<unk>"},
    "pad_eos": {"pad_token": "</s>"},
    "pad_eos_zero": {"pad_token": "<pad>", "eos_token": "<pad>"},
}


def base_config(model_dir: Path, mode: str) -> dict[str, Any]:
    """A complete configuration of a run of five optimizer steps without noise; `mode` is one of `MODES`.

    full: 4 examples of about 20 to 110 tokens in a batch, padded on the left.
    pad_unk, pad_eos, pad_eos_zero: as full, but the tokenizer's padding token is id 3; the end token, id 2; the end
        token, id 0. Ludwig pads with id 0 whatever the tokenizer says, and masks what equals the tokenizer's id.
    accumulation: two batches of 2 in a step; accumulation_uneven: four and then two, where an epoch ends.
    lora_4bit, lora_8bit: quantized by bitsandbytes.
    saved_embedding: trained in full beside IA3 adapters (Ludwig's LoRA has no such key).
    ecd: a classifier on the hidden states, padded on the right; ecd_left: on the left; ecd_words: on the right, with
        Ludwig's default tokenizer, whose ids are not the model's and whose padding id is 2.
    dpo: as far as Ludwig has it, the likelihood of the chosen answer.
    """
    if mode not in MODES:
        raise ValueError(f"mode is {mode!r}, but must be one of {', '.join(MODES)}")
    model_dir = Path(model_dir)
    if mode in TOKENS:
        model_dir = _copy_with_tokens(model_dir, mode)
    trainer: dict[str, Any] = {
        "batch_size": 4,
        "eval_batch_size": 4,
        "evaluate_training_set": False,
        "gradient_accumulation_steps": 1,
        "learning_rate": 1e-3,
        "skip_all_evaluation": True,
        "train_steps": 5,
    }
    config: dict[str, Any] = {
        "backend": {"type": "local"},  # else it looks for a Ray cluster
        "preprocessing": {"split": {"type": "fixed", "column": "split"}},
        "trainer": trainer,
    }
    if mode.startswith("ecd"):
        preprocessing = {"tokenizer": "hf_tokenizer", "pretrained_model_name_or_path": str(model_dir)}
        if mode == "ecd_left":
            preprocessing |= {"padding": "left"}
        if mode == "ecd_words":
            preprocessing = {}
        encoder = {"type": "llm", "base_model": str(model_dir)}
        feature = {"name": "output", "type": "text", "encoder": encoder, "preprocessing": preprocessing}
        trainer |= {"learning_rate": 1e-5}
        config |= {"model_type": "ecd", "input_features": [feature]}
        return config | {"output_features": [{"name": "label", "type": "category"}]}

    config |= {
        "model_type": "llm",
        "base_model": str(model_dir),
        "input_features": [{"name": "instruction", "type": "text"}],
        "output_features": [{"name": "output", "type": "text"}],
        "generation": {"max_new_tokens": 4},
    }
    trainer |= {"type": "dpo" if mode == "dpo" else "finetune"}
    if mode == "accumulation":
        trainer |= {"batch_size": 2, "gradient_accumulation_steps": 2, "train_steps": 10}
    if mode == "accumulation_uneven":
        trainer |= {"batch_size": 2, "gradient_accumulation_steps": 4, "train_steps": 16}
    if "lora" in mode:
        modules = ["embed_tokens", "q_proj"] if mode == "lora_embedding" else ["q_proj", "v_proj"]
        dropout = 0.0 if mode == "lora_embedding" else 0.1  # PEFT would drop from the embedding
        config |= {"adapter": {"type": "lora", "r": 8, "alpha": 16, "dropout": dropout, "target_modules": modules}}
    if mode in ("lora_4bit", "lora_8bit"):
        config |= {"quantization": {"bits": int(mode[5]), "bnb_4bit_compute_dtype": "float32"}}
    if mode == "saved_embedding":
        modules = ["embed_tokens", "lm_head"]
        config |= {"adapter": {"type": "ia3", "target_modules": ["k_proj"], "feedforward_modules": []}}
        config["adapter"] |= {"modules_to_save": modules}
    if mode.startswith("checkpointing"):
        trainer |= {"enable_gradient_checkpointing": True}
    if mode == "compile":
        trainer |= {"compile": True}
    return config


def words_config() -> dict[str, Any]:
    """A classifier without a language model."""
    encoder = {"type": "embed", "embedding_size": 8}
    return {
        "model_type": "ecd",
        "backend": {"type": "local"},
        "preprocessing": {"split": {"type": "fixed", "column": "split"}},
        "input_features": [{"name": "output", "type": "text", "encoder": encoder}],
        "output_features": [{"name": "label", "type": "category"}],
        "trainer": {"batch_size": 4, "eval_batch_size": 4, "train_steps": 2, "skip_all_evaluation": True},
    }


def with_keys(config: dict[str, Any], keys: Mapping[str, Any]) -> dict[str, Any]:
    """`config` with `neftune_*` keys among the parameters of its model, or of its encoder."""
    config = copy.deepcopy(config)
    owner = config if config["model_type"] == "llm" else config["input_features"][0]["encoder"]
    owner["model_parameters"] = {**owner.get("model_parameters", {}), **keys}
    return config


def write_dataset(folder: Path) -> Path:
    """Write the dataset of all modes, `folder`/data.csv: 12 different examples to train on, and 4 to evaluate on."""
    file = io.StringIO()
    rows = csv.writer(file, lineterminator="\n")
    rows.writerow(["instruction", "output", "label", "split"])
    for i in range(16):
        rows.writerow([question(i), answer(i, 1 + i // 2 % 4), "ab"[i // 3 % 2], int(i >= 12)])
    path = folder / "data.csv"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(file.getvalue())
    return path


def _copy_with_tokens(model_dir: Path, mode: str) -> Path:
    """The same model with other special tokens."""
    copy = model_dir.with_name(f"{model_dir.name}_{mode}")
    if not copy.exists():
        shutil.copytree(model_dir, copy)
        path = copy / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | TOKENS[mode]))
        ids = {f"{name}_id": {"<pad>": 0, "</s>": 2, "<unk>": 3}[token] for name, token in TOKENS[mode].items()}
        for name in ("config.json", "generation_config.json"):
            path = copy / name
            path.write_text(json.dumps(json.loads(path.read_text()) | ids))
    return copy
