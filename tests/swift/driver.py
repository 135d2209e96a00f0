"""ms-swift for the conformance suite."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from neftune_swift.callback import FromArguments
from neftune_transformers.tiny import make_tiny_model
from safetensors.torch import load_file

from tests.conformance import golden
from tests.support.loading import transformers_loads_model
from tests.support.recorder import KILL_AFTER, AtStepEnd, Run
from tests.swift.configs import MODES, base_config, command
from tests.swift.runs import run_swift, swift_cli


def make_driver() -> SwiftDriver:
    return SwiftDriver(Path(tempfile.mkdtemp(prefix="neftune-")))


@contextlib.contextmanager
def without_patches() -> Iterator[None]:
    """ms-swift as if this package were not installed, but for the fields of its arguments, which nobody reads."""
    import swift.trainers  # noqa: F401  (replaces the default callbacks)
    import transformers.trainer
    from swift.arguments import RLHFArguments, SftArguments

    with pytest.MonkeyPatch.context() as patch:
        others = [callback for callback in transformers.trainer.DEFAULT_CALLBACKS if callback is not FromArguments]
        patch.setattr(transformers.trainer, "DEFAULT_CALLBACKS", others)
        for kind in (SftArguments, RLHFArguments):
            patch.setattr(kind, "__post_init__", kind.__post_init__.__wrapped__)
        yield


_SAVING = {"save_strategy": "steps", "save_steps": 3}


class SwiftDriver:
    """See `tests.conformance.driver.Driver`."""

    name = "swift"
    modes = MODES
    sft_modes = ("sft", "lora")
    native_modes = modes
    native_hook = "neftune_post_forward_hook"
    reference_modes = ("dpo_lora", "kto", "kto_lora", "grpo", "grpo_lora", "gkd")
    rollout_modes = {"grpo": 1, "grpo_lora": 1, "gkd": 1}
    golden_modes = ("sft",)
    resumed_modes = ("lora",)
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
            config |= {"split_dataset_ratio": 0.1, "eval_strategy": "steps", "eval_steps": 1}
        if save:
            config |= _SAVING
        with without_patches() if stock else contextlib.nullcontext():
            run = run_swift(config, folder, command(mode), at_step_end=at_step_end)
        if save:
            run.saved /= "checkpoint-5"  # it saves nothing else
        return run

    def launch(
        self,
        mode: str,
        keys: Mapping[str, Any],
        *,
        folder: Path,
        kill_after: int | None = None,
        resume: Path | None = None,
    ) -> Run:
        config = base_config(self.model, mode) | dict(keys) | _SAVING
        if resume is not None:
            config |= {"resume_from_checkpoint": str(resume / "checkpoint-3")}
        return swift_cli(config, folder, command(mode), env={KILL_AFTER: str(kill_after)})

    def train_golden(self, mode: str, examples: Sequence[golden.Golden], model: Path, folder: Path) -> Run:
        folder.mkdir(parents=True)
        rows = [
            {"messages": [{"role": "user", "content": e.question}, {"role": "assistant", "content": e.answer}]}
            for e in examples
        ]
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        config = base_config(model, mode) | {"neftune_noise_alpha": golden.ALPHA, "max_steps": 1}
        config |= {"dataset": [str(folder / "rows.jsonl")], "per_device_train_batch_size": len(examples)}
        return run_swift(config, folder, command(mode))

    def loads_model(self) -> Any:
        return transformers_loads_model()
