"""The Python that the pages show for Trainer and TRL."""

import logging

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.support import rewards
from tests.support.documentation import ROOT, shown
from tests.support.recorder import embedding_hooks
from tests.transformers.driver import TransformersDriver, make_driver


@pytest.fixture(scope="module")
def driver() -> TransformersDriver:
    return make_driver()


def test_the_trl_snippet_of_the_readme(driver, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = Dataset.from_list([{"text": "The tide was out."}] * 4)
    # The snippet as it is, on a machine without a GPU and for one step.
    code = shown("README.md", "python", 0).replace(
        'output_dir="out", ', 'output_dir="out", bf16=False, max_steps=1, report_to="none", '
    )
    scope = {"model": str(driver.model), "data": data}
    exec(code, scope)
    assert scope["trainer"].state.global_step == 1
    assert not [hook for hook in embedding_hooks(scope["trainer"].model) if "neftune" in hook]


def test_the_trl_snippet_of_the_start(driver, tmp_path, monkeypatch, caplog):
    """It says where the noise is."""
    monkeypatch.chdir(tmp_path)
    code = (
        shown("docs/start.md", "python", 0)
        .replace("neftune_plugins/commands/data", f"{ROOT}/neftune_plugins/commands/data")
        .replace("max_steps=20", 'bf16=False, max_steps=1, max_length=64, report_to="none"')
    )
    library = logging.getLogger("transformers")
    monkeypatch.setattr(library, "handlers", [*library.handlers, caplog.handler])
    caplog.set_level("INFO", logger="transformers")  # as the snippet does, but for this test alone
    exec(code, scope := {"model": str(driver.model)})
    assert scope["trainer"].state.global_step == 1
    assert shown("docs/start.md", "text").strip().removesuffix("...") in caplog.text


def test_the_snippet_of_grpo(driver, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = shown("docs/rl.md", "python").replace(
        'output_dir="out", ', 'output_dir="out", bf16=False, max_steps=1, report_to="none", max_completion_length=4, '
    )
    data = Dataset.from_list([{"prompt": "What did you see?"}] * 8)
    scope = {"model": str(driver.model), "data": data, "reward": rewards.length}
    exec(code, scope)
    assert scope["trainer"].state.global_step == 1
    assert not [hook for hook in embedding_hooks(scope["trainer"].model) if "neftune" in hook]


def test_the_decoding_that_the_authors_suggest(driver):
    model = AutoModelForCausalLM.from_pretrained(driver.model)
    prompt = AutoTokenizer.from_pretrained(driver.model)(
        "What did you see?", return_tensors="pt", return_token_type_ids=False
    )
    code = shown("docs/questions.md", "python").replace("max_new_tokens=256", "max_new_tokens=4")
    exec(code, scope := {"model": model, "prompt": prompt})
    assert scope["answer"].shape[1] > prompt["input_ids"].shape[1]


def test_the_trainer_snippet(driver, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = Dataset.from_list([{"input_ids": list(range(4, 12)), "labels": list(range(4, 12))}] * 16)
    scope = {"model": AutoModelForCausalLM.from_pretrained(driver.model), "data": data}
    exec(shown("docs/transformers.md", "python"), scope)
    assert scope["trainer"].state.global_step == 2
    assert torch.isfinite(torch.tensor(scope["trainer"].state.log_history[-1]["train_loss"]))
