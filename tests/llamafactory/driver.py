"""LLaMA-Factory, its classic path and V1, for the conformance suite."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict
from neftune_llamafactory.callback import FromArguments
from neftune_transformers.tiny import make_tiny_model
from safetensors.torch import load_file

from tests.conformance import golden
from tests.llamafactory.configs import MODES, V1_MODES, base_config, command
from tests.llamafactory.runs import HAS_V1, llamafactory_cli, run_llamafactory
from tests.support.loading import transformers_loads_model
from tests.support.recorder import KILL_AFTER, AtStepEnd, Run


def make_driver() -> LlamaFactoryDriver:
    return LlamaFactoryDriver(Path(tempfile.mkdtemp(prefix="neftune-")))


@contextlib.contextmanager
def without_patches() -> Iterator[None]:
    """LLaMA-Factory as if this package were not installed."""
    import transformers.trainer
    from llamafactory.hparams import parser, training_args

    with pytest.MonkeyPatch.context() as patch:
        ours, original = training_args.TrainingArguments, training_args.TrainingArguments.__bases__[0]
        patch.setattr(training_args, "TrainingArguments", original)
        patch.setattr(parser, "_TRAIN_ARGS", [original if cls is ours else cls for cls in parser._TRAIN_ARGS])
        others = [callback for callback in transformers.trainer.DEFAULT_CALLBACKS if callback is not FromArguments]
        patch.setattr(transformers.trainer, "DEFAULT_CALLBACKS", others)
        for name in ("parse_dict", "parse_args_into_dataclasses"):
            method = getattr(transformers.HfArgumentParser, name)
            patch.setattr(transformers.HfArgumentParser, name, getattr(method, "__wrapped__", method))
        if HAS_V1:
            from llamafactory.v1.config import arg_parser
            from llamafactory.v1.core.base_trainer import BaseTrainer

            patch.setattr(arg_parser, "TrainingArguments", arg_parser.TrainingArguments.__bases__[0])
            patch.setattr(BaseTrainer, "fit", BaseTrainer.fit.__wrapped__)
        yield


def _saving(mode: str) -> dict[str, Any]:
    return {"save_steps": 3} | ({} if mode in V1_MODES else {"save_strategy": "steps"})


class LlamaFactoryDriver:
    """See `tests.conformance.driver.Driver`."""

    name = "llamafactory"
    modes = MODES + V1_MODES if HAS_V1 else tuple(mode for mode in MODES if not mode.startswith("neat_packing"))
    sft_modes = ("sft", "lora")
    native_modes = tuple(mode for mode in modes if mode != "rm_lora" and mode not in V1_MODES)
    native_hook = "neftune_post_forward_hook"
    reference_modes = ("dpo_lora", "kto", "kto_lora")
    rollout_modes: dict[str, int] = {}
    golden_modes = ("sft", "v1") if HAS_V1 else ("sft",)
    resumed_modes = ("lora", "v1") if HAS_V1 else ("lora",)
    resumes_dropout = True
    seed = golden.SEED
    pad_id = 0

    def __init__(self, folder: Path) -> None:
        self.model = make_tiny_model(folder / "model")
        self.weight = load_file(self.model / "model.safetensors")["model.embed_tokens.weight"]

    def train(
        self,
        mode: str,
        keys: Mapping[str, Any],
        *,
        folder: Path,
        stock: bool = False,
        evaluate: bool = False,
        at_step_end: AtStepEnd | None = None,
        save: bool = False,
    ) -> Run:
        config = base_config(self.model, mode) | dict(keys)
        if evaluate:
            config |= {"val_size": 0.1, "eval_strategy": "steps", "eval_steps": 1}
        if save:
            config |= _saving(mode)
        with without_patches() if stock else contextlib.nullcontext():
            return run_llamafactory(config, folder, command(mode), at_step_end=at_step_end)

    def launch(
        self,
        mode: str,
        keys: Mapping[str, Any],
        *,
        folder: Path,
        kill_after: int | None = None,
        resume: Path | None = None,
    ) -> Run:
        config = base_config(self.model, mode) | dict(keys) | _saving(mode)
        if resume is not None:
            config |= {"resume_from_checkpoint": str(resume / "checkpoint-3")}
        return llamafactory_cli(config, folder, command(mode), env={KILL_AFTER: str(kill_after)})

    def train_golden(self, mode: str, examples: Sequence[golden.Golden], model: Path, folder: Path) -> Run:
        folder.mkdir(parents=True)
        config = base_config(model, mode) | {"neftune_noise_alpha": golden.ALPHA, "max_steps": 1}
        if mode == "v1":
            rows = [{"instruction": e.question, "input": "", "output": e.answer} for e in examples]
            data = folder / "rows.jsonl"
            data.write_text("".join(json.dumps(row) + "\n" for row in rows))
            listed = {"rows": {"path": str(data), "source": "local", "converter": "alpaca"}}
            (folder / "rows.yaml").write_text(json.dumps(listed))  # JSON is YAML
            config |= {"train_dataset": str(folder / "rows.yaml"), "micro_batch_size": len(examples)}
        else:
            rows = [{"input_ids": e.ids, "attention_mask": [1] * len(e.ids), "labels": e.ids} for e in examples]
            DatasetDict(train=Dataset.from_list(rows)).save_to_disk(folder / "tokenized")
            config |= {"tokenized_path": str(folder / "tokenized"), "per_device_train_batch_size": len(examples)}
        return run_llamafactory(config, folder, command(mode))

    def loads_model(self) -> Any:
        return transformers_loads_model()
