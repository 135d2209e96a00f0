"""Complete ms-swift configurations of runs of a few steps, and their datasets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.support.texts import answer, question

MODES = (
    "sft",
    "sft_stored",
    "left",
    "batch1",
    "accumulation",
    "checkpointing",
    "pt",
    "lora",
    "lora_embedding",
    "saved_embedding",
    "infonce",
    "rm",
    "rm_lora",
    "dpo",
    "dpo_lora",
    "kto",
    "kto_lora",
    "orpo",
    "simpo",
    "cpo",
    "grpo",
    "grpo_lora",
    "gkd",
)
RLHF = ("rm", "dpo", "kto", "orpo", "simpo", "cpo", "grpo", "gkd")
LORA = {"tuner_type": "lora", "lora_rank": 8, "lora_alpha": 16, "lora_dropout": 0.1}


def command(mode: str) -> str:
    """What follows `swift`."""
    method = mode.split("_")[0]
    return "rlhf" if method in RLHF else "pt" if method == "pt" else "sft"


def base_config(model_dir: Path, mode: str) -> dict[str, Any]:
    """A complete configuration of a five-step run without noise; `mode` is one of `MODES`.

    sft: 4 examples of about 35 to 150 tokens in a batch, padded on the right; the labels are narrower than the ids. As
        in all modes, with its default: reentrant checkpointing of activations.
    sft_stored: without checkpointing. checkpointing: the one that is not reentrant.
    batch1: one example, whose labels have only those that are trained. left: padded on the left, with positions.
    infonce: pairs of texts for an embedding model, all columns in one forward.
    gkd: each batch is what the model generates.
    """
    if mode not in MODES:
        raise ValueError(f"mode is {mode!r}, but must be one of {', '.join(MODES)}")
    folder = write_datasets(Path(model_dir).parent)
    method = mode.split("_")[0]
    config: dict[str, Any] = {
        "model": str(model_dir),
        "model_type": "llama",
        "template": "chatml",
        "tuner_type": "full",
        "dataset": [str(folder / f"{_dataset(method)}.jsonl")],
        "split_dataset_ratio": 0.0,
        "max_length": 256,
        "torch_dtype": "float32",
        "use_hf": True,
        "check_model": False,
        "add_version": False,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "max_steps": 5,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "dataloader_num_workers": 0,
        "save_strategy": "no",
        "report_to": ["none"],
        "disable_tqdm": True,
        "seed": 42,
    }
    if method in RLHF:
        config |= {"rlhf_type": method}
    if _dataset(method) == "pairs":
        config |= {"per_device_train_batch_size": 2}  # of pairs
    if "lora" in mode or mode == "saved_embedding":
        config |= LORA | {"target_modules": ["q_proj", "v_proj"]}
    return config | _OF_MODES.get(mode, {}) | _OF_METHODS.get(method, lambda model: {})(model_dir)


_OF_MODES: dict[str, dict[str, Any]] = {
    "sft_stored": {"gradient_checkpointing": False},
    "left": {"padding_side": "left"},
    "batch1": {"per_device_train_batch_size": 1},
    "accumulation": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
    "checkpointing": {"gradient_checkpointing_kwargs": {"use_reentrant": False}},
    "lora_embedding": {"target_modules": ["embed_tokens", "q_proj"], "lora_dropout": 0.0},
    "saved_embedding": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "infonce": {"task_type": "embedding", "loss_type": "infonce"},
}
# A rollout of two prompts, which serves two steps. (Micro-batches have widths of their own.)
_GRPO = {"num_generations": 4, "per_device_train_batch_size": 8, "num_iterations": 2, "reward_funcs": ["format"]}
_OF_METHODS: dict[str, Any] = {
    "grpo": lambda model: _GRPO | {"max_completion_length": 24, "use_vllm": False},
    "gkd": lambda model: {
        "teacher_model": str(model),
        "teacher_model_type": "llama",
        "lmbda": 1.0,
        "max_completion_length": 24,
    },
}


# --- Datasets --------------------------------------------------------------------------------------------------------


def _dataset(method: str) -> str:
    if method in ("pt", "infonce", "kto", "grpo"):
        return {"pt": "texts", "infonce": "columns", "kto": "judged", "grpo": "prompts"}[method]
    return "pairs" if method in ("rm", "dpo", "orpo", "simpo", "cpo") else "chat"


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def _assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def write_datasets(folder: Path) -> Path:
    """Write all datasets into `folder / "data"`, and return it."""
    chats = [(question(i), answer(i, 1 + i // 2 % 4)) for i in list(range(12)) * 5]
    pairs = [(question(i), answer(i, 1 + i % 4), answer(i + 3, 1 + i // 4 % 3)) for i in list(range(6)) * 4]
    rows: dict[str, list[dict[str, Any]]] = {
        "chat": [{"messages": [_user(asked), _assistant(told)]} for asked, told in chats],
        "texts": [{"messages": [_assistant(f"{asked} {told}")]} for asked, told in chats],
        "columns": [{"messages": [_user(asked)], "positive_messages": [[_user(told)]]} for asked, told in chats],
        "prompts": [{"messages": [_user(asked)]} for asked, _ in chats],
        "pairs": [
            {"messages": [_user(asked), _assistant(good)], "rejected_response": bad} for asked, good, bad in pairs
        ],
        "judged": [
            {"messages": [_user(asked), _assistant(text)], "label": text is good}
            for asked, good, bad in pairs
            for text in (good, bad)
        ],
    }
    for name, lines in rows.items():
        _write(folder / "data" / f"{name}.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    return folder / "data"


def _write(path: Path, text: str) -> None:
    """Write the file, unless it is there: a new modification time would make `datasets` read it again."""
    if not path.exists() or path.read_text() != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
