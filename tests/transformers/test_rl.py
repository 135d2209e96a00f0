"""Trainers that generate inside training, and models with value heads: what the conformance suite does not ask."""

import pytest
import torch
import trl

from neftune_plugins import NoiseConfig, install
from tests.support import specification
from tests.support.probe import Probe, per_example
from tests.support.recorder import generated, trained
from tests.transformers.driver import LORA, TransformersDriver, make_driver

KEYS = {"neftune_noise_alpha": 5.0}


@pytest.fixture(scope="module")
def driver() -> TransformersDriver:
    torch.set_num_threads(1)
    return make_driver()


@pytest.fixture(scope="module")
def grpo(driver, tmp_path_factory):
    return driver.train("grpo", KEYS, folder=tmp_path_factory.mktemp("grpo"))


def test_each_pass_of_grpo_over_a_rollout_has_noise_of_its_own(grpo):
    first, second = (
        {tuple(call.input_ids.flatten().tolist()): call.noise for call in trained(grpo) if call.global_step == step}
        for step in (0, 1)
    )
    assert len(first) == 2
    assert first.keys() == second.keys()
    assert not any(torch.equal(first[ids], second[ids]) for ids in first)


def test_rollouts_of_grpo_are_decoded_token_by_token(grpo):
    widths = [call.input_ids.shape[1] for call in generated(grpo) if call.global_step == 0]
    assert widths[0] > 1
    assert set(widths[1:]) == {1}


def test_rows_of_grpo_are_padded_on_both_sides(grpo):
    masks = torch.cat([call.attention_mask[:, [0, -1]] for call in trained(grpo)])
    assert (masks == 0).any(0).tolist() == [True, True]


@pytest.mark.skipif(not hasattr(trl, "AutoModelForCausalLMWithValueHead"), reason="this release of TRL has none")
@pytest.mark.parametrize("lora", [None, LORA["lora"]], ids=["full", "lora"])
def test_a_model_with_a_value_head(driver, lora):
    model = trl.AutoModelForCausalLMWithValueHead.from_pretrained(str(driver.model), peft_config=lora).train()
    probe = Probe().attach(model)
    ids = torch.tensor([[*range(4, 12)], [*range(20, 25), 0, 0, 0]])
    with install(model, NoiseConfig(alpha=5)) as noise:
        noise.step = 3
        _, _, value = model(input_ids=ids, attention_mask=(ids != 0).long())
        with torch.no_grad():
            model(input_ids=ids, attention_mask=(ids != 0).long())
    assert value.requires_grad
    noised, clean = probe.calls
    assert not clean.noise.any()
    for example in per_example(noised, driver.pad_id):
        want = specification.noise(example.ids.tolist(), 64, alpha=5, seed=0, step=3)
        torch.testing.assert_close(example.noise, torch.tensor(want), rtol=0, atol=2e-7)
