"""What Ludwig does by itself that one would not expect: docs/surprises.md lists it. Seen with 0.17.10 and 0.13."""

import csv
from importlib.metadata import version
from typing import Any

import pytest
import torch
from packaging.version import Version

from tests.ludwig.configs import base_config
from tests.ludwig.driver import without_patches
from tests.ludwig.runs import run_ludwig
from tests.ludwig.watching import NOT_SAVED, ludwig_model


def weights_before_and_after(config: dict[str, Any], dataset: Any, folder: Any) -> tuple[dict, dict]:
    from ludwig.callbacks import Callback

    before = {}

    class Begin(Callback):
        def on_trainer_train_setup(self, trainer: Any, *args: Any, **kwargs: Any) -> None:
            before.update({name: p.detach().clone() for name, p in trainer.model.named_parameters()})

    with ludwig_model(config, Begin()) as (model, watch):
        model.train(dataset=str(dataset), output_directory=str(folder), **NOT_SAVED)
        return before, {name: parameter.detach().clone() for name, parameter in watch.model.named_parameters()}


@pytest.fixture
def pairs(driver, tmp_path):
    """The dataset with a column of rejected answers."""
    with driver.dataset.open(newline="") as file:
        rows = list(csv.DictReader(file))
    with (tmp_path / "pairs.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], "rejected"])
        writer.writeheader()
        writer.writerows(row | {"rejected": row["output"][::-1]} for row in rows)
    return tmp_path / "pairs.csv"


@pytest.mark.parametrize("kind", ["dpo", "kto", "orpo", "grpo"])
def test_a_preference_trainer_ends_in_the_weights_of_finetune(driver, pairs, kind, tmp_path):
    """Its code compares the answer with an output feature that has `rejected` in its name. No llm can have two."""
    config = base_config(driver.model, "full")
    before, want = weights_before_and_after(config, pairs, tmp_path / "finetune")
    config["trainer"] |= {"type": kind}
    _, found = weights_before_and_after(config, pairs, tmp_path / kind)
    assert found.keys() == want.keys()
    assert all(torch.equal(found[name], want[name]) for name in want)
    assert any(not torch.equal(before[name], want[name]) for name in want)


def test_a_language_model_has_one_output_feature_so_that_none_can_be_the_rejected_answer(driver):
    from ludwig.error import ConfigValidationError
    from ludwig.schema.model_types.base import ModelConfig

    config = base_config(driver.model, "dpo")
    config["output_features"].append({"name": "rejected", "type": "text"})
    with pytest.raises(ConfigValidationError, match="is too long"):
        ModelConfig.from_dict(config)


def test_an_encoder_of_type_llm_is_trained_with_trainable_false(driver, tmp_path):
    config = base_config(driver.model, "ecd")
    config["input_features"][0]["encoder"]["trainable"] = False
    before, after = weights_before_and_after(config, driver.dataset, tmp_path)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert any("q_proj" in name for name in changed)
    assert any("embed_tokens" in name for name in changed)


def test_lbfgs_with_a_language_model_fails_because_each_closure_finds_a_wider_batch(driver, tmp_path):
    """Each pass writes its targets, filled up to the width of the row with -100, into the batch that the next pass of
    the closure looks up."""
    config = base_config(driver.model, "full")
    config["trainer"]["optimizer"] = {"type": "lbfgs"}
    failed = None
    with without_patches(), ludwig_model(config) as (model, watch):
        try:
            model.train(dataset=str(driver.dataset), output_directory=str(tmp_path), **NOT_SAVED)
        except IndexError as error:
            failed = error
        widths = [call.input_ids.shape[1] for call in watch.calls]
    assert failed is not None
    assert widths[0] < widths[1], widths


def test_resuming_a_finished_run_without_evaluation_fails(driver, tmp_path):
    config = base_config(driver.model, "full")
    assert config["trainer"]["skip_all_evaluation"]
    with without_patches():
        first = run_ludwig(config, tmp_path / "first", driver.dataset, save=True)
        assert len(first.losses) == 5
        resume = str(tmp_path / "first" / "out" / "experiment_run")
        with pytest.raises(UnboundLocalError, match="has_nan_or_inf_tensors"):
            run_ludwig(config, tmp_path / "second", driver.dataset, save=True, model_resume_path=resume)


@pytest.mark.skipif(Version(version("ludwig")) < Version("0.17"), reason="it has one adapter, and no key `adapters`")
def test_the_full_configuration_of_a_language_model_is_not_valid(driver):
    """Ludwig's hyperopt gives each trial the full configuration of the first validation (ludwig/hyperopt/run.py)."""
    from ludwig.error import ConfigValidationError
    from ludwig.schema.model_types.base import ModelConfig

    with without_patches():
        full = ModelConfig.from_dict(base_config(driver.model, "full")).to_dict()
        assert full["adapters"] is None
        with pytest.raises(ConfigValidationError, match="None is not of type 'object'"):
            ModelConfig.from_dict(full)
        del full["adapters"]
        ModelConfig.from_dict(full)
