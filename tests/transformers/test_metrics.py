"""Metrics and the loss without noise in Trainer and TRL, beyond what tests/conformance states for all frameworks."""

import pytest
from transformers import TrainerCallback

from neftune_plugins import NoiseConfigError
from tests.conformance.conftest import make_driver
from tests.support.events import LOSSES, METRICS, scalars
from tests.support.recorder import Run

KEYS = {"neftune_noise_alpha": 5.0, "neftune_clean_loss_steps": 1}


@pytest.fixture(scope="session")
def driver(pytestconfig):
    return make_driver(pytestconfig)


def own_metrics(run: Run) -> list[dict[str, object]]:
    """What the trainer logs of itself, but for the times."""
    logs = [entry for entry in run.logs if "loss" in entry]
    return [{name: value for name, value in entry.items() if not name.startswith("neftune/")} for entry in logs]


@pytest.mark.parametrize("mode", ["trainer_accumulation", "sft_lora", "dpo", "dpo_lora"])
def test_the_loss_without_noise_is_on_the_scale_of_the_loss_and_in_no_other_metric(driver, mode, tmp_path):
    noisy = driver.train(mode, {"neftune_noise_alpha": 5.0}, folder=tmp_path / "noisy")
    clean = driver.train(mode, {}, folder=tmp_path / "clean")
    both = driver.train(mode, KEYS, folder=tmp_path / "both")
    assert own_metrics(both) == own_metrics(noisy)
    logs = [entry for entry in both.logs if "loss" in entry]
    for entry in logs:
        assert entry["neftune/noisy_loss"] == pytest.approx(entry["loss"], rel=1e-4)
    assert logs[0]["neftune/clean_loss"] == pytest.approx(clean.losses[0], rel=1e-4)


def test_the_loss_without_noise_of_grpo(driver, tmp_path):
    noisy = driver.train("grpo", {"neftune_noise_alpha": 5.0}, folder=tmp_path / "noisy")
    both = driver.train("grpo", KEYS, folder=tmp_path / "both")
    assert both.weights == noisy.weights
    for entry in both.logs:
        if "loss" in entry:
            assert entry["neftune/noisy_loss"] == pytest.approx(entry["loss"], rel=1e-3, abs=1e-6)
            assert entry["neftune/clean_loss"] != entry["neftune/noisy_loss"]


def test_a_trainer_that_computes_no_loss_for_us_stops_after_its_first_step(driver, tmp_path):
    keys = {"neftune_noise_alpha": 5.0, "neftune_clean_loss_steps": 1000}
    with pytest.raises(NoiseConfigError, match="neftune_clean_loss_steps: 1000 has no effect here"):
        driver.train("online_dpo", keys, folder=tmp_path)


def test_evaluation_and_the_summary_are_logged_without_metrics(driver, tmp_path):
    run = driver.train("trainer", KEYS, folder=tmp_path, evaluate=True)
    others = [entry for entry in run.logs if "loss" not in entry]
    assert {"eval_loss", "train_runtime"} <= {name for entry in others for name in entry}
    assert not [name for entry in others for name in entry if name.startswith("neftune/")]


def test_metrics_are_in_every_reporter_and_in_the_log_history(driver, tmp_path):
    seen = []

    class Reporter(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            seen.append((dict(logs), list(state.log_history)))

    trainer = driver.trainer("trainer", KEYS, tmp_path, callbacks=[Reporter()], report_to=["tensorboard"])
    trainer.train()
    logs, history = seen[-2]
    assert logs["neftune/sequences"] == history[-1]["neftune/sequences"] == 4
    events = scalars(tmp_path)
    for name in METRICS | LOSSES:
        want = [(entry["step"], entry[name]) for entry in trainer.state.log_history if name in entry]
        assert events[f"train/{name}"] == [(step, pytest.approx(value)) for step, value in want]
        assert len(want) == 5
