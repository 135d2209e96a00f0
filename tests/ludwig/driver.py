"""Ludwig for the conformance suite."""

from __future__ import annotations

import contextlib
import csv
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from neftune_transformers.tiny import make_tiny_model
from safetensors.torch import load_file

from tests.conformance import golden
from tests.ludwig.configs import MODES, base_config, with_keys, write_dataset
from tests.ludwig.runs import ludwig_cli, run_ludwig
from tests.support.loading import transformers_loads_model
from tests.support.recorder import KILL_AFTER, AtStepEnd, Run


def make_driver() -> LudwigDriver:
    return LudwigDriver(Path(tempfile.mkdtemp(prefix="neftune-")))


@contextlib.contextmanager
def without_patches() -> Iterator[None]:
    """Ludwig as if this package were not installed."""
    import ludwig.models.llm
    import ludwig.schema.llms.model_parameters as model_parameters
    import ludwig.schema.model_types.base as base
    import ludwig.trainers.trainer as trainer
    from ludwig.config_validation.validation import get_schema
    from ludwig.schema.encoders.text_encoders import LLMEncoderConfig
    from ludwig.schema.model_types.llm import LLMModelConfig

    original = model_parameters.ModelParametersConfig.__base__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_parameters, "ModelParametersConfig", original)
        for config in (LLMEncoderConfig, LLMModelConfig):  # they made their fields of our class
            marker = config.model_fields["model_parameters"].metadata[0]
            patch.setattr(marker.marshmallow_field, "cls", original)
        patch.setattr(base, "check_schema", base.check_schema.__wrapped__)
        llm, own = ludwig.models.llm.LLM, trainer.Trainer
        patch.setattr(llm, "_activate_forward_hooks", llm._activate_forward_hooks.__wrapped__)
        patch.setattr(own, "__init__", own.__init__.__wrapped__)
        patch.setattr(own, "train", own.train.__wrapped__)
        patch.setattr(own, "train_online", own.train_online.__wrapped__)
        get_schema.cache_clear()
        yield
    get_schema.cache_clear()


class LudwigDriver:
    """See `tests.conformance.driver.Driver`."""

    name = "ludwig"
    modes = MODES
    sft_modes = ("full", "lora")
    native_modes = tuple(mode for mode in MODES if not mode.startswith("ecd"))
    native_hook = "hook_fn"
    reference_modes = ()
    rollout_modes: dict[str, int] = {}
    golden_modes = ("full",)
    resumed_modes = ("full",)
    resumes_dropout = False
    seed = golden.SEED
    pad_id = 0

    def __init__(self, folder: Path) -> None:
        self.model = make_tiny_model(folder / "model")
        self.dataset = write_dataset(folder)
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
        config = with_keys(base_config(self.model, mode), keys)
        with without_patches() if stock else contextlib.nullcontext():
            return run_ludwig(
                config,
                folder,
                self.dataset,
                at_step_end=at_step_end,
                evaluate=evaluate,
                save=save,
                random_seed=self.seed,
            )

    def launch(
        self,
        mode: str,
        keys: Mapping[str, Any],
        *,
        folder: Path,
        kill_after: int | None = None,
        resume: Path | None = None,
    ) -> Run:
        config = with_keys(base_config(self.model, mode), keys)
        arguments = ["--random_seed", str(self.seed)]
        if resume is not None:
            arguments += ["--model_resume_path", str(resume.parents[1])]
        return ludwig_cli(config, folder, self.dataset, *arguments, env={KILL_AFTER: str(kill_after)})

    def train_golden(self, mode: str, examples: Sequence[golden.Golden], model: Path, folder: Path) -> Run:
        """Ludwig ends each example with the end token: here a line break, as ChatML does."""
        path = model / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token": "\u010a"}))  # as BPE writes it
        folder.mkdir(parents=True)
        data = folder / "data.csv"
        with data.open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["instruction", "output", "split"])
            rows.writerows([e.prompt, e.completion.removesuffix("\n"), 0] for e in examples)
        config = with_keys(base_config(model, mode), {"neftune_noise_alpha": golden.ALPHA})
        config["trainer"] |= {"batch_size": len(examples), "train_steps": 1}
        return run_ludwig(config, folder, data, random_seed=golden.SEED)

    def loads_model(self) -> Any:
        return transformers_loads_model()
