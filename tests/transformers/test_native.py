"""What docs/native.md says of the native hook, so that the page changes when transformers does."""

import pytest
import torch

from benchmarks.noise import Lookup, noise_natively
from tests.support.probe import padding_noise, per_example, ratio
from tests.support.recorder import embedding_hooks, generated, trained
from tests.transformers.driver import TransformersDriver, make_driver
from tests.transformers.test_callback import Fail

KEYS = {"neftune_noise_alpha": 5.0}


@pytest.fixture(scope="module")
def driver() -> TransformersDriver:
    torch.set_num_threads(1)
    return make_driver()


def stock(driver, mode, tmp_path, keys=KEYS):
    return driver.train(mode, keys, folder=tmp_path, stock=True)


@pytest.mark.parametrize("mode", ["trainer", "sft_packed"])
def test_its_length_is_the_width_of_the_row(driver, mode, tmp_path):
    for call in stock(driver, mode, tmp_path).calls:
        for example in per_example(call, driver.pad_id):
            as_wide_as_the_row = (len(example.ids) / call.input_ids.shape[1]) ** 0.5
            error = (9 / 5 - 1) ** 0.5 / (2 * example.noise.numel() ** 0.5)
            assert ratio(example, 5.0) == pytest.approx(as_wide_as_the_row, rel=5 * error)


def test_padding_is_noised(driver, tmp_path):
    assert padding_noise(stock(driver, "trainer", tmp_path).calls[0], driver.pad_id).any()


def test_references_are_noised_in_dpo_with_lora(driver, tmp_path):
    references = [call for call in stock(driver, "dpo_lora", tmp_path).calls if not call.grad_enabled]
    assert references
    assert all(call.noise.any() for call in references)


def test_rollouts_of_grpo_are_noised_as_if_each_token_were_an_example(driver, tmp_path):
    run = stock(driver, "grpo", tmp_path)
    decoded = [call for call in generated(run) if call.input_ids.shape[1] == 1]
    assert decoded
    root_mean_square = torch.cat([call.noise for call in decoded]).square().mean().sqrt().item()
    assert root_mean_square == pytest.approx(5 / (3 * 64) ** 0.5, rel=0.02)
    # So the square root of a row's width times that of training.
    for call in trained(run):
        width = call.input_ids.shape[1]
        assert call.noise.square().mean().sqrt().item() == pytest.approx(root_mean_square / width**0.5, rel=0.05)


def test_it_moves_the_random_state(driver, tmp_path):
    noisy, clean = (stock(driver, "trainer", tmp_path, keys) for keys in (KEYS, {}))
    assert noisy.steps[0]["rng"] != clean.steps[0]["rng"]


def test_it_stays_after_an_exception(driver, tmp_path):
    trainer = driver.trainer("trainer", KEYS, tmp_path, callbacks=[Fail(RuntimeError)], stock=True)
    with pytest.raises(RuntimeError):
        trainer.train()
    assert [hook for hook in embedding_hooks(trainer.model) if hook.endswith("neftune_post_forward_hook")]


def test_a_bad_value_is_an_error_at_the_first_step_only(driver, tmp_path):
    trainer = driver.trainer("trainer", {"neftune_noise_alpha": -5.0}, tmp_path, callbacks=[], stock=True)
    with pytest.raises(RuntimeError):
        trainer.train()


def test_a_misspelt_key_is_an_error_of_python(driver, tmp_path):
    with pytest.raises(TypeError, match="neftune_nois_alpha"):
        driver.trainer("trainer", {}, tmp_path, callbacks=[], stock=True, neftune_nois_alpha=5.0)


def test_a_resumed_run_goes_on_with_the_random_state_of_the_checkpoint(driver, tmp_path):
    def trained(folder, resume=None, **arguments):
        trainer = driver.trainer("trainer", KEYS, tmp_path / folder, callbacks=[], stock=True, **arguments)
        trainer.train(resume_from_checkpoint=resume)
        return torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])

    whole = trained("whole", save_strategy="steps", save_steps=3)
    checkpoint = str(tmp_path / "whole" / "out" / "checkpoint-3")
    assert torch.equal(trained("resumed", checkpoint), whole)


def test_it_breaks_the_graph_where_lengths_change():
    model = Lookup(torch.nn.Parameter(torch.randn(10, 4)))
    noise_natively(model)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    short, long = (torch.ones(2, length, dtype=torch.int64) for length in (3, 4))
    compiled(short, attention_mask=short)
    with pytest.raises(torch._dynamo.exc.UserError, match="data-dependent expression"):
        compiled(long, attention_mask=long)
    torch.compiler.reset()
