"""Complete LLaMA-Factory configurations of runs of a few steps, and their datasets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.support.texts import answer, question

MODES = (
    "sft",
    "sft_stored",
    "accumulation",
    "packing",
    "neat_packing",
    "neat_packing_eager",
    "pt",
    "pt_packed",
    "lora",
    "lora_embedding",
    "saved_embedding",
    "checkpointing",
    "rm",
    "rm_lora",
    "dpo",
    "dpo_lora",
    "kto",
    "kto_lora",
    "orpo",
    "simpo",
)
V1_MODES = (
    "v1",
    "v1_accumulation",
    "v1_dynamic",
    "v1_packed",
    "v1_lora",
    "v1_saved_embedding",
    "v1_rm",
)
LORA = {"finetuning_type": "lora", "lora_rank": 8, "lora_alpha": 16, "lora_target": "q_proj,v_proj"}
PREFERENCE = {"dpo": "sigmoid", "orpo": "orpo", "simpo": "simpo"}


def base_config(model_dir: Path, mode: str) -> dict[str, Any]:
    """A complete configuration of a five-step run without noise; `mode` is one of `MODES` or `V1_MODES`.

    sft: 4 examples of about 35 to 120 tokens in a batch, padded on the right: LLaMA-Factory has no key for the left,
        and does not ask the tokenizer. As in most modes, with its default: reentrant checkpointing of activations.
    sft_stored: without checkpointing. checkpointing: the one that is not reentrant.
    packing: several examples in a row with a restart of the positions; neat_packing: with a 4-D mask beside it.
    pt: texts, padded. pt_packed: blocks cut from all texts, without any trace of where a text began.
    v1: the new trainer (USE_V1=1), padded. v1_dynamic: as many examples as fit into a number of tokens, padded.
    v1_packed: the same without padding, told apart by restarts of the positions; `padding_free` gives the same rows,
        but insists on flash attention. v1_rm: chosen and rejected in one row, told apart by a mask of segment ids.
    """
    if mode in V1_MODES:
        return _v1_config(Path(model_dir), mode)
    if mode not in MODES:
        raise ValueError(f"mode is {mode!r}, but must be one of {', '.join(MODES + V1_MODES)}")
    folder = Path(model_dir).parent
    stage = mode.split("_")[0]
    config: dict[str, Any] = {
        "model_name_or_path": str(model_dir),
        "cache_dir": str(folder / "cache"),
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "full",
        "template": "default",
        "dataset": "chat",
        "dataset_dir": str(write_datasets(folder)),
        "cutoff_len": 256,
        "overwrite_output_dir": True,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "max_steps": 5,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": 42,
        "use_cpu": True,
    }
    if stage in PREFERENCE:
        config |= {"stage": "dpo", "pref_loss": PREFERENCE[stage], "dataset": "pairs"}
    elif stage in ("kto", "rm"):
        config |= {"stage": stage, "dataset": "judged" if stage == "kto" else "pairs"}
    elif stage == "pt":
        config |= {"stage": "pt", "dataset": "texts", "packing": mode == "pt_packed", "cutoff_len": 128}
    if mode == "pt_packed":
        config |= {"per_device_train_batch_size": 2}
    if config["dataset"] == "pairs":
        config |= {"per_device_train_batch_size": 2}  # of pairs
    if mode == "accumulation":
        config |= {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    if stage in ("packing", "neat"):
        config |= {"packing": True, "neat_packing": stage == "neat", "per_device_train_batch_size": 2}
        config |= {"flash_attn": "disabled" if mode == "neat_packing_eager" else "sdpa"}
    if "lora" in mode:
        config |= LORA | {"lora_dropout": 0.1}
    if mode == "lora_embedding":
        config |= {"lora_target": "embed_tokens,q_proj", "lora_dropout": 0.0}
    if mode == "saved_embedding":
        config |= LORA | {"additional_target": "embed_tokens,lm_head"}
    if mode == "sft_stored":
        config |= {"disable_gradient_checkpointing": True}
    if mode == "checkpointing":
        config |= {"use_reentrant_gc": False}
    return config


def command(mode: str) -> str:
    """What follows `llamafactory-cli`; `train` is of the classic trainers, the others are of V1."""
    if mode not in V1_MODES:
        return "train"
    return "rm" if mode == "v1_rm" else "sft"


def _v1_config(model_dir: Path, mode: str) -> dict[str, Any]:
    kind = "pairs" if mode == "v1_rm" else "chat"
    config: dict[str, Any] = {
        "model": str(model_dir),
        "template": "chatml",
        "train_dataset": str(write_datasets(model_dir.parent) / f"v1_{kind}.yaml"),
        "micro_batch_size": 2 if mode == "v1_rm" else 4,
        "cutoff_len": 256,
        "learning_rate": 1e-3,
        "bf16": False,
        "max_steps": 5,
        "batching_workers": 0,
        "seed": 42,
    }
    lora = {"name": "lora", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]}
    if mode == "v1_accumulation":
        config |= {"micro_batch_size": 2, "global_batch_size": 4}
    if mode == "v1_dynamic":
        config |= {"batching_strategy": "dynamic_batching", "micro_batch_size": 2}
    if mode == "v1_packed":
        config |= {"batching_strategy": "dynamic_padding_free", "micro_batch_size": 2}
    if mode == "v1_lora":
        config |= {"peft_config": lora | {"lora_dropout": 0.1}}
    if mode == "v1_saved_embedding":
        config |= {"peft_config": lora | {"lora_dropout": 0.0, "modules_to_save": ["embed_tokens", "lm_head"]}}
    return config


# --- Datasets --------------------------------------------------------------------------------------------------------


def write_datasets(folder: Path) -> Path:
    """Write all datasets into `folder / "data"`, for the classic trainers and for V1, and return it."""
    data = folder / "data"
    pairs = [(question(i), answer(i, 1 + i % 4), answer(i + 3, 1 + i // 4 % 3)) for i in list(range(6)) * 4]
    rows: dict[str, list[dict[str, Any]]] = {
        "chat": [
            {"instruction": question(i), "input": "", "output": answer(i, 1 + i // 2 % 4)} for i in list(range(12)) * 5
        ],
        "texts": [{"text": f"{question(i)} {answer(i, 1 + i // 2 % 4)}"} for i in list(range(12)) * 5],
        "pairs": [{"instruction": prompt, "chosen": good, "rejected": bad} for prompt, good, bad in pairs],
        "judged": [
            {"instruction": prompt, "output": text, "label": text is good}
            for prompt, good, bad in pairs
            for text in (good, bad)
        ],
        "v1_pairs": [
            {
                "chosen": [{"role": "user", "content": prompt}, {"role": "assistant", "content": good}],
                "rejected": [{"role": "user", "content": prompt}, {"role": "assistant", "content": bad}],
            }
            for prompt, good, bad in pairs
        ],
    }
    for name, lines in rows.items():
        _write(data / f"{name}.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    info = {
        "chat": {"file_name": "chat.jsonl"},
        "texts": {"file_name": "texts.jsonl", "columns": {"prompt": "text"}},
        "pairs": {
            "file_name": "pairs.jsonl",
            "ranking": True,
            "columns": {"prompt": "instruction", "chosen": "chosen", "rejected": "rejected"},
        },
        "judged": {
            "file_name": "judged.jsonl",
            "columns": {"prompt": "instruction", "response": "output", "kto_tag": "label"},
        },
    }
    _write(data / "dataset_info.json", json.dumps(info))
    for name, file, converter in (("chat", "chat", "alpaca"), ("pairs", "v1_pairs", "pair")):
        entry = {name: {"path": str(data / f"{file}.jsonl"), "source": "local", "converter": converter}}
        _write(data / f"v1_{name}.yaml", json.dumps(entry))  # JSON is YAML
    return data


def _write(path: Path, text: str) -> None:
    """Write the file, unless it is there: a new modification time would make `datasets` read it again."""
    if not path.exists() or path.read_text() != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
