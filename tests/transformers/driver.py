"""Trains with Hugging Face Trainer and TRL, in this process."""

from __future__ import annotations

import contextlib
import os
import pickle
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.update({"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"})

import pytest
import torch
from datasets import Dataset
from neftune_transformers import NEFTuneCallback
from neftune_transformers.tiny import make_tiny_model
from peft import LoraConfig
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainingArguments,
)
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from tests.conformance import golden
from tests.support import rewards
from tests.support.recorder import KILL_AFTER, AtStepEnd, Recorder, Run, embedding_hooks
from tests.support.texts import answer, question
from tests.support.warm import Warm, cold

try:
    from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer

    ONLINE_DPO_REWARD: dict[str, Any] = {"reward_funcs": rewards.length}
except ImportError:  # TRL 0.19
    from trl import OnlineDPOConfig, OnlineDPOTrainer

    ONLINE_DPO_REWARD = {"judge": rewards.LongerOfTwo()}

ROOT = Path(__file__).parents[2]
WARM = Warm(__name__, environment={"OMP_NUM_THREADS": "1"})
STEPS = 5
SFT_MODES = (
    "trainer",
    "trainer_left",
    "trainer_batch1",
    "trainer_accumulation",
    "trainer_checkpointing",
    "trainer_checkpointing_reentrant",
    "sft",
    "sft_packed",
    "sft_lora",
    "sft_lora_checkpointing",
    "sft_lora_embedding",
    "sft_saved_embedding",
)
DPO_MODES = ("dpo", "dpo_lora")
GRPO_MODES = ("grpo", "grpo_lora")
ONLINE_DPO_MODES = ("online_dpo", "online_dpo_lora")

LORA = {
    "lora": LoraConfig(r=8, lora_alpha=16, lora_dropout=0.1, target_modules=["q_proj", "v_proj"]),
    "lora_embedding": LoraConfig(r=8, lora_alpha=16, target_modules=["embed_tokens", "q_proj"]),
    "saved_embedding": LoraConfig(r=8, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"]),
}


# A process of a launched run.
PROCESS = """\
import os, pathlib, pickle
driver, call = pickle.loads(pathlib.Path("call").read_bytes())
run = driver.train(**call)
pathlib.Path("run" + os.environ.get("RANK", "0")).write_bytes(pickle.dumps(run))
"""


def make_driver() -> TransformersDriver:
    return TransformersDriver(Path(tempfile.mkdtemp(prefix="neftune-")))


class TransformersDriver:
    """See `tests.conformance.driver.Driver`."""

    name = "transformers"
    modes = SFT_MODES + DPO_MODES + GRPO_MODES + ONLINE_DPO_MODES
    sft_modes = ("trainer", "sft_lora")
    native_modes = modes
    native_hook = "neftune_post_forward_hook"
    reference_modes = ("dpo_lora", *GRPO_MODES, *ONLINE_DPO_MODES)
    rollout_modes = dict.fromkeys(GRPO_MODES, 2) | dict.fromkeys(ONLINE_DPO_MODES, 1)
    golden_modes = ("trainer",)
    resumed_modes = ("sft_lora",)
    resumes_dropout = True
    seed = golden.SEED

    def __init__(self, folder: Path) -> None:
        self.model = make_tiny_model(folder / "model")
        self.tokenizer = AutoTokenizer.from_pretrained(self.model)
        self.pad_id = self.tokenizer.pad_token_id
        self.weight = AutoModelForCausalLM.from_pretrained(self.model).get_input_embeddings().weight.detach()

    def trainer(
        self,
        mode: str,
        keys: Mapping[str, Any],
        folder: Path,
        *,
        callbacks: list[Any],
        stock: bool = False,
        **arguments: Any,
    ) -> Trainer:
        """A trainer of that mode; `neftune_noise_alpha` is given in its arguments, the other keys in our callback."""
        others = {name.removeprefix("neftune_").removeprefix("noise_"): value for name, value in keys.items()}
        arguments |= {"neftune_noise_alpha": others.pop("alpha", None)}
        if not stock:
            callbacks = [NEFTuneCallback(**others), *callbacks]
        arguments = {
            "output_dir": str(folder / "out"),
            "seed": self.seed,
            "max_steps": STEPS,
            "per_device_train_batch_size": 1 if mode == "trainer_batch1" else 4,
            "gradient_accumulation_steps": 2 if mode == "trainer_accumulation" else 1,
            "learning_rate": 1e-3,
            "logging_steps": 1,
            "logging_nan_inf_filter": False,
            "report_to": "none",
            "save_strategy": "no",
            "use_cpu": True,
            "disable_tqdm": True,
            **arguments,
        }
        if "checkpointing" in mode:
            arguments["gradient_checkpointing"] = True
            arguments["gradient_checkpointing_kwargs"] = {"use_reentrant": mode.endswith("reentrant")}
        tokenizer = AutoTokenizer.from_pretrained(
            self.model, padding_side="left" if mode == "trainer_left" else "right"
        )
        torch.manual_seed(self.seed)
        model = AutoModelForCausalLM.from_pretrained(self.model)
        method = next((name for name in ("sft", "dpo", "grpo", "online_dpo") if mode.startswith(name)), "trainer")
        lora = LORA.get(mode.removeprefix(f"{method}_").removesuffix("_checkpointing"))
        common = {"model": model, "processing_class": tokenizer, "callbacks": callbacks}
        if mode in self.rollout_modes:
            tokenizer.padding_side = "left"
            common |= {"train_dataset": Dataset.from_list([{"prompt": question(i)} for i in range(24)])}
        if mode in GRPO_MODES:
            # Two prompts a rollout, which serves two steps of two micro-batches each; the end is made a likely token.
            arguments |= {"gradient_accumulation_steps": 2, "num_iterations": 2, "num_generations": 4, "beta": 0.04}
            arguments |= {"max_completion_length": 24}
            arguments |= {"generation_kwargs": {"sequence_bias": [[[tokenizer.eos_token_id], 3.5]]}}
            return GRPOTrainer(**common, args=GRPOConfig(**arguments), reward_funcs=rewards.length, peft_config=lora)
        if mode in ONLINE_DPO_MODES:
            config = OnlineDPOConfig(**arguments, max_new_tokens=24)
            return OnlineDPOTrainer(**common, args=config, peft_config=lora, **ONLINE_DPO_REWARD)
        if mode in DPO_MODES:
            rows = [
                {"prompt": question(i), "chosen": answer(i, 1 + i % 4), "rejected": answer(i + 3, 1 + i // 4 % 3)}
                for i in list(range(6)) * 4
            ]
            arguments |= {"max_length": 256}
            config = DPOConfig(**arguments)
            return DPOTrainer(**common, args=config, train_dataset=Dataset.from_list(rows), peft_config=lora)
        texts = [f"{question(i)}\n{answer(i, 1 + i % 5)}" for i in list(range(12)) * 4]
        if mode.startswith("sft"):
            arguments |= {"max_length": 256, "packing": mode == "sft_packed", "dataset_num_proc": None}
            data = Dataset.from_list([{"text": text} for text in texts])
            return SFTTrainer(
                **common,
                args=SFTConfig(**arguments),
                train_dataset=data,
                eval_dataset=data.select(range(4)),
                peft_config=lora,
            )
        rows = [tokenizer(text) for text in texts]
        data = Dataset.from_list([{"input_ids": row["input_ids"]} for row in rows])
        return Trainer(
            **common,
            args=TrainingArguments(**arguments),
            train_dataset=data,
            eval_dataset=data.select(range(4)),
            data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
        )

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
        resume: Path | None = None,
        **more: Any,
    ) -> Run:
        """`resume` is the `saved` of another run, `more` are further TrainingArguments."""
        recorder = Recorder(at_step_end=at_step_end)
        arguments = more | ({"eval_strategy": "steps", "eval_steps": 1} if evaluate else {})
        if save:
            arguments |= {"save_strategy": "steps", "save_steps": 3}
        trainer = self.trainer(mode, keys, folder, callbacks=[recorder], stock=stock, **arguments)
        trainer.train(resume_from_checkpoint=resume and str(resume / "checkpoint-3"))
        if save:
            trainer.save_model()
        recorder.record["hooks_after"] = embedding_hooks(trainer.model)
        return Run(calls=recorder.probe.calls, **recorder.record, saved=Path(trainer.args.output_dir))

    def launch(
        self,
        mode: str,
        keys: Mapping[str, Any],
        *,
        folder: Path,
        kill_after: int | None = None,
        resume: Path | None = None,
    ) -> Run:
        call = {"mode": mode, "keys": keys, "folder": folder, "save": True, "resume": resume}
        return self.launch_ranks(1, call, kill_after=kill_after)[0]

    def launch_ranks(self, ranks: int, call: dict[str, Any], *, kill_after: int | None = None) -> list[Run]:
        """`self.train(**call)` in so many processes; the run of each."""
        folder: Path = call["folder"]
        folder.mkdir()
        (folder / "call").write_bytes(pickle.dumps((self, call)))
        (folder / "process.py").write_text(PROCESS)
        paths = [str(ROOT), os.environ.get("PYTHONPATH")]
        env = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            KILL_AFTER: str(kill_after),
        }
        if ranks > 1:
            torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
            process = cold([*torchrun, "process.py"], cwd=folder, env=env)
        else:
            process = WARM.run(["process.py"], cwd=folder, env=env)
        runs = []
        for rank in range(ranks):
            left = folder / f"run{rank}"
            run = pickle.loads(left.read_bytes()) if left.exists() else Run(saved=folder / "out")
            run.returncode, run.output = process.returncode, process.stdout
            runs.append(run)
        return runs

    def train_golden(self, mode: str, examples: Sequence[golden.Golden], model: Path, folder: Path) -> Run:
        recorder = Recorder()
        tokenizer = AutoTokenizer.from_pretrained(model)
        arguments = TrainingArguments(
            output_dir=str(folder),
            neftune_noise_alpha=golden.ALPHA,
            seed=golden.SEED,
            max_steps=1,
            per_device_train_batch_size=len(examples),
            report_to="none",
            save_strategy="no",
            use_cpu=True,
        )
        Trainer(
            model=AutoModelForCausalLM.from_pretrained(model),
            args=arguments,
            train_dataset=Dataset.from_list([{"input_ids": example.ids} for example in examples]),
            data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
            callbacks=[NEFTuneCallback(), recorder],
        ).train()
        return Run(calls=recorder.probe.calls, **recorder.record)

    @contextlib.contextmanager
    def loads_model(self) -> Iterator[list[str]]:
        """The caller loads the model of a Trainer: what must not happen is training."""
        begun: list[str] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Trainer, "train", lambda self, *args, **kwargs: begun.append("train"))
            yield begun
