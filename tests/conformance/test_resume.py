"""A run that is killed between two checkpoints and resumed is, to the bit, the run that was not."""

import json
import shutil
import signal

import pytest
import torch

from tests.support.recorder import trained

KEYS = {"neftune_noise_alpha": 5.0, "neftune_noise_schedule": "cosine"}


@pytest.fixture
def dropout(driver, tmp_path, monkeypatch):
    """The driver's model, with dropout in its attention where the framework can resume that."""
    if driver.resumes_dropout:
        model = shutil.copytree(driver.model, tmp_path / "dropout" / "model")
        config = model / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"attention_dropout": 0.1}))
        monkeypatch.setattr(driver, "model", model)


def test_a_killed_run_is_resumed_to_the_weights_of_the_uninterrupted_one(driver, dropout, resumed_mode, tmp_path):
    whole = driver.launch(resumed_mode, KEYS, folder=tmp_path / "whole")
    assert whole.returncode == 0, whole.output
    killed = driver.launch(resumed_mode, KEYS, folder=tmp_path / "killed", kill_after=4)
    assert killed.returncode == -signal.SIGKILL, killed.output
    resumed = driver.launch(resumed_mode, KEYS, folder=tmp_path / "resumed", resume=killed.saved)
    assert resumed.returncode == 0, resumed.output
    assert [step["step"] for step in resumed.steps] == [4, 5]
    for call, other in zip(trained(resumed), trained(whole)[3:], strict=True):
        assert call.global_step == other.global_step
        assert torch.equal(call.noise, other.noise)
    if driver.resumes_dropout:
        states = [step["rng"] for step in whole.steps]
        assert len(set(states)) == 5
        assert [step["rng"] for step in resumed.steps] == states[3:]
    assert resumed.losses == whole.losses[3:]
    assert resumed.weights == whole.weights is not None
