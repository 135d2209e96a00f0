"""Schedules follow the updates that the optimiser makes, and a training without noise is an error."""

from typing import Any

import pytest
import torch

from neftune_plugins import NoiseConfigError, NoiseNotAppliedError
from tests.ludwig.configs import base_config, with_keys
from tests.ludwig.runs import run_ludwig
from tests.ludwig.watching import ALPHA, KEYS, NOT_SAVED, ludwig_model, neftune_hooks_in, trained
from tests.support.noise import assert_papers_noise

LINEAR = KEYS | {"neftune_noise_schedule": "linear"}


@pytest.mark.parametrize("accumulated", [2, 1])
def test_an_optimizer_that_does_not_accumulate_ends_the_schedule_with_the_run(driver, accumulated):
    """L-BFGS updates at every batch, and computes each batch's loss several times. (With model_type llm, it fails.)"""
    config = with_keys(base_config(driver.model, "ecd"), LINEAR)
    config["trainer"] |= {"optimizer": {"type": "lbfgs", "max_iter": 2}, "gradient_accumulation_steps": accumulated}
    config["trainer"] |= {"batch_size": 2, "train_steps": 6}
    with ludwig_model(config) as (model, watch):
        starts: list[int] = []
        model.callbacks.append(at_each_batch(lambda trainer: starts.append(len(watch.calls))))
        model.train(dataset=str(driver.dataset), **NOT_SAVED)
        ends = [*starts[1:], len(watch.calls)]
        assert len(starts) == 6
        for batch, (start, end) in enumerate(zip(starts, ends, strict=True)):
            calls = trained(watch.calls[start:end])
            assert len(calls) >= 2
            assert_papers_noise(calls, driver.pad_id, ALPHA * (1 - batch / 6))
            assert all(torch.allclose(call.noise, calls[0].noise, atol=1e-6) for call in calls)


def at_each_batch(see: Any) -> Any:
    from ludwig.callbacks import Callback

    class AtEachBatch(Callback):
        def on_batch_start(self, trainer: Any, *args: Any, **kwargs: Any) -> None:
            see(trainer)

    return AtEachBatch()


def test_updates_that_are_left_out_shorten_the_schedule(driver):
    """As where a scaled gradient overflows: then the optimiser's step is not called."""
    config = with_keys(base_config(driver.model, "full"), LINEAR)
    config["trainer"]["train_steps"] = 6
    with ludwig_model(config) as (model, watch):
        batch = 0

        def skip(trainer: Any) -> None:
            nonlocal batch
            batch += 1
            if batch == 1:
                step = trainer.distributed.step
                trainer.distributed.step = lambda *given: None if batch in (2, 3) else step(*given)

        model.callbacks.append(at_each_batch(skip))
        model.train(dataset=str(driver.dataset), **NOT_SAVED)
        # Alpha is set when an update begins: one that is left out changes what follows.
        for call, done in zip(trained(watch.calls), [0, 1 / 6, 1 / 6, 1 / 6, 2 / 4, 3 / 4], strict=True):
            assert_papers_noise([call], driver.pad_id, ALPHA * (1 - done))


def test_lbfgs_has_no_clean_loss(driver, tmp_path):
    config = with_keys(base_config(driver.model, "full"), KEYS | {"neftune_clean_loss_steps": 1})
    config["trainer"]["optimizer"] = {"type": "lbfgs"}
    message = "neftune_clean_loss_steps: 1 is not supported with optimizer.type lbfgs"
    with pytest.raises(NoiseConfigError, match=message):
        run_ludwig(config, tmp_path, driver.dataset)


def test_online_training_has_no_end_that_a_schedule_could_lead_to(driver):
    with ludwig_model(with_keys(base_config(driver.model, "full"), LINEAR)) as (model, watch):
        message = "set neftune_noise_schedule: constant in the model_parameters, or train with LudwigModel.train()"
        with pytest.raises(NoiseConfigError, match=message.replace("(", r"\(").replace(")", r"\)")):
            model.train_online(dataset=str(driver.dataset))
        assert not neftune_hooks_in(watch.model)
        assert watch.calls == []


@pytest.mark.parametrize("save", [True, False])
@pytest.mark.parametrize("first", [0, 2, 4])
def test_a_training_that_goes_on_without_noise_stops(driver, first, save, tmp_path):
    """Someone has put the model into evaluation mode: in the last update, too, where no other follows."""
    config = with_keys(base_config(driver.model, "full"), KEYS)
    batch = 0

    def switch(trainer: Any) -> None:
        nonlocal batch
        batch += 1
        if batch == first + 1:
            trainer.dist_model.eval()

    with ludwig_model(config) as (model, watch):
        model.callbacks.append(at_each_batch(switch))
        options = {"output_directory": str(tmp_path)} if save else NOT_SAVED
        with pytest.raises(NoiseNotAppliedError, match="was called in evaluation mode"):
            model.train(dataset=str(driver.dataset), **options)
        assert batch == first + 1
        assert not neftune_hooks_in(watch.model)
        if save and first == 4:
            assert list(tmp_path.glob("*/model/training_checkpoints/best.ckpt"))


def test_a_resumed_run_with_nothing_left_is_no_error(driver, tmp_path):
    config = with_keys(base_config(driver.model, "full"), KEYS)
    config["trainer"]["train_steps"] = 2
    run_ludwig(config, tmp_path / "first", driver.dataset, evaluate=True, save=True)
    resume = str(tmp_path / "first" / "out" / "experiment_run")
    run_ludwig(config, tmp_path / "second", driver.dataset, evaluate=True, save=True, model_resume_path=resume)
