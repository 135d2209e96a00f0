"""Axolotl for the conformance suite."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from neftune_transformers.tiny import make_tiny_model
from packaging.version import Version
from safetensors.torch import load_file

from tests.axolotl.configs import MODES, base_config
from tests.axolotl.runs import axolotl_cli, run_axolotl
from tests.conformance import golden
from tests.support.recorder import KILL_AFTER, AtStepEnd, Run

SAVING = {"save_strategy": "steps", "save_steps": 3}
RL_MODES = ("dpo", "dpo_lora", "orpo", "kto", "grpo", "grpo_lora")

# Releases that do not find plugins by their entry points.
NEEDS_PLUGINS_KEY = Version(version("axolotl")) < Version("0.21")
OUR_PLUGIN = "neftune_axolotl.NEFTunePlugin"


def make_driver() -> AxolotlDriver:
    return AxolotlDriver(Path(tempfile.mkdtemp(prefix="neftune-")))


def with_plugin(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration as a user of this package writes it."""
    return config | {"plugins": [OUR_PLUGIN]} if NEEDS_PLUGINS_KEY else config


@contextlib.contextmanager
def without_entry_point() -> Iterator[None]:
    """Axolotl as if this package were not installed."""
    if NEEDS_PLUGINS_KEY:
        yield
        return
    from axolotl.integrations import base

    with pytest.MonkeyPatch.context() as patch:
        others = tuple(name for name in base.get_builtin_plugins() if name != OUR_PLUGIN)
        patch.setattr(base, "get_builtin_plugins", lambda: others)
        yield


class AxolotlDriver:
    """See `tests.conformance.driver.Driver`."""

    name = "axolotl"
    modes = MODES
    sft_modes = ("sft", "lora")
    native_modes = tuple(mode for mode in MODES if mode not in RL_MODES)
    native_hook = "neftune_post_forward_hook"
    reference_modes = ("dpo_lora", "kto", "grpo", "grpo_lora")
    rollout_modes = {"grpo": 2, "grpo_lora": 2}
    golden_modes = ("sft",)
    resumed_modes = ("sft",)
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
        from tests.axolotl import probe_plugin

        config = base_config(self.model, mode) | dict(keys)
        if evaluate:
            config |= {"val_set_size": 0.1, "eval_strategy": "steps", "eval_steps": 1}
        if save:
            config |= SAVING
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(probe_plugin, "at_step_end", at_step_end)
            with without_entry_point() if stock else contextlib.nullcontext():
                run = run_axolotl(config if stock else with_plugin(config), folder)
        run.saved = folder / "out"
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
        config = base_config(self.model, mode) | dict(keys) | SAVING
        if resume is not None:
            config |= {"resume_from_checkpoint": str(resume / "checkpoint-3")}
        run = axolotl_cli(with_plugin(config), folder, env={KILL_AFTER: str(kill_after)})
        run.saved = folder / "out"
        return run

    def train_golden(self, mode: str, examples: Sequence[golden.Golden], model: Path, folder: Path) -> Run:
        folder.mkdir(parents=True)
        rows = [{"input_ids": e.ids, "attention_mask": [1] * len(e.ids), "labels": e.ids} for e in examples]
        data = folder / "tokenized.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        config = base_config(model, mode) | {
            "datasets": [{"path": str(data), "ds_type": "json", "type": None}],
            "neftune_noise_alpha": golden.ALPHA,
            "micro_batch_size": len(examples),
            "max_steps": 1,
        }
        return run_axolotl(with_plugin(config), folder)

    @contextlib.contextmanager
    def loads_model(self) -> Iterator[list[str]]:
        from axolotl.loaders.model import ModelLoader

        loaded: list[str] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ModelLoader, "load", lambda self: loaded.append(str(self)))
            yield loaded
