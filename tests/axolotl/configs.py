"""Complete Axolotl configurations of runs of a few steps, and their datasets."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from tests.support.texts import answer, question

MODES = (
    "sft",
    "sft_left",
    "packed",
    "packed_sdpa",
    "packed_eager",
    "accumulation",
    "lora",
    "lora_embedding",
    "saved_embedding",
    "checkpointing",
    "checkpointing_reentrant",
    "dpo",
    "dpo_lora",
    "orpo",
    "kto",
    "grpo",
    "grpo_lora",
)


def base_config(model_dir: Path, mode: str) -> dict[str, Any]:
    """A complete configuration of a five-step run without noise; `mode` is one of `MODES`.

    sft: padded, 4 examples of about 30 to 115 tokens in a batch; sft_left pads on the left.
    packed: several examples in a row, told apart by a mask of segment ids; packed_sdpa, packed_eager: by position_ids.
    grpo: each rollout of eight completions serves two steps of two micro-batches.
    checkpointing: of activations, with `use_reentrant` false; checkpointing_reentrant: true.
    """
    model_dir = Path(model_dir)
    if mode == "sft_left":
        model_dir = _left_padding_copy(model_dir)
    config: dict[str, Any] = {
        "base_model": str(model_dir),
        "bf16": False,
        "fp16": False,
        "dataset_num_proc": 1,
        "dataset_prepared_path": str(model_dir.parent / "prepared"),
        "gradient_accumulation_steps": 1,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "lr_scheduler": "constant",
        "max_steps": 5,
        "micro_batch_size": 4,
        "optimizer": "adamw_torch",
        "save_strategy": "no",
        "seed": 42,
        "sequence_len": 512,
        "val_set_size": 0,
    }
    stage = mode.split("_")[0]
    if stage in ("dpo", "orpo", "kto"):
        config |= {"rl": stage, "micro_batch_size": 2, "datasets": [_preference_dataset(model_dir.parent, stage)]}
        config |= {"remove_unused_columns": False}
    elif stage == "grpo":
        rollouts = {"max_completion_length": 24, "num_generations": 4, "num_iterations": 2}
        config |= {"rl": stage, "gradient_accumulation_steps": 2, "datasets": [_prompt_dataset(model_dir.parent)]}
        config |= {"trl": {"beta": 0.04, "reward_funcs": ["tests.support.rewards.length"], **rollouts}}
    else:
        config |= {"datasets": [_chat_dataset(model_dir.parent)]}
    if stage == "packed":
        config |= {"sample_packing": True, "micro_batch_size": 1, "pad_to_sequence_len": True}
    if mode in ("packed_sdpa", "packed_eager"):
        config |= {"attn_implementation": mode.removeprefix("packed_")}
    if mode == "accumulation":
        config |= {"micro_batch_size": 2, "gradient_accumulation_steps": 2}
    if "lora" in mode or mode == "saved_embedding":
        config |= {"adapter": "lora", "lora_r": 8, "lora_alpha": 16, "lora_target_modules": ["q_proj", "v_proj"]}
    if mode in ("lora", "dpo_lora", "grpo_lora"):
        config |= {"lora_dropout": 0.1}
    if mode == "lora_embedding":
        config |= {"lora_target_modules": ["embed_tokens", "q_proj"]}
    if mode == "saved_embedding":
        config |= {"lora_modules_to_save": ["embed_tokens", "lm_head"]}
    if stage == "checkpointing":
        reentrant = mode == "checkpointing_reentrant"
        config |= {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": reentrant}}
    if mode not in MODES:
        raise ValueError(f"mode is {mode!r}, but must be one of {', '.join(MODES)}")
    return config


def _write_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    """Write JSON lines, unless the file is there: a new modification time would make `datasets` read it again."""
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if not path.exists() or path.read_text() != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return str(path)


def _chat_dataset(folder: Path) -> dict[str, Any]:
    rows = [
        {
            "messages": [
                {"role": "user", "content": question(i)},
                {"role": "assistant", "content": answer(i, 1 + i // 2 % 4)},
            ]
        }
        for i in list(range(12)) * 5
    ]
    path = _write_rows(folder / "data" / "chat.jsonl", rows)
    return {"path": path, "ds_type": "json", "type": "chat_template", "chat_template": "tokenizer_default"}


def _preference_dataset(folder: Path, stage: str) -> dict[str, Any]:
    pairs = [(question(i), answer(i, 1 + i % 4), answer(i + 3, 1 + i // 4 % 3)) for i in list(range(6)) * 4]
    if stage == "kto":
        rows: list[dict[str, Any]] = []
        for prompt, good, bad in pairs:
            rows.append({"prompt": prompt, "completion": good, "label": True})
            rows.append({"prompt": prompt, "completion": bad, "label": False})
        kind: Any = {"field_prompt": "prompt", "prompt_format": "{prompt}\n", "field_completion": "completion"}
        kind["field_label"] = "label"
    elif stage == "orpo":
        rows = [
            {
                "chosen": [{"role": "user", "content": prompt}, {"role": "assistant", "content": good}],
                "rejected": [{"role": "user", "content": prompt}, {"role": "assistant", "content": bad}],
            }
            for prompt, good, bad in pairs
        ]
        kind = "chat_template.argilla"
    else:
        rows = [{"prompt": prompt, "chosen": good, "rejected": bad} for prompt, good, bad in pairs]
        kind = {"field_prompt": "prompt", "prompt_format": "{prompt}\n"}
    path = _write_rows(folder / "data" / f"{stage}.jsonl", rows)
    return {"path": path, "ds_type": "json", "split": "train", "type": kind}


def _prompt_dataset(folder: Path) -> dict[str, Any]:
    path = _write_rows(folder / "data" / "prompts.jsonl", [{"prompt": question(i)} for i in range(24)])
    return {"path": path, "ds_type": "json", "split": "train"}


def _left_padding_copy(model_dir: Path) -> Path:
    """The same model with a tokenizer that pads on the left: Axolotl has no key for it, but asks the tokenizer."""
    copy = model_dir.with_name(f"{model_dir.name}_left")
    if not copy.exists():
        shutil.copytree(model_dir, copy)
        path = copy / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"padding_side": "left"}))
    return copy
