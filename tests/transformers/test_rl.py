"""Trainers that generate inside training, and models with value heads: what the conformance suite does not ask."""

import copy

import pytest
import torch
import trl
from datasets import Dataset
from neftune_transformers import NEFTuneCallback
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from neftune_plugins import NoiseConfig, install
from tests.support import specification
from tests.support.probe import Probe, per_example
from tests.support.recorder import generated, trained
from tests.support.texts import question
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


def test_the_ratio_of_grpo_has_the_noise_in_its_numerator_alone(driver, grpo, tmp_path):
    """As docs/rl.md says: without noise the first pass has nothing to clip."""
    clean = driver.train("grpo", {}, folder=tmp_path)
    clipped = [run.logs[0]["clip_ratio/region_mean"] for run in (grpo, clean)]
    assert clipped[0] > 0
    assert clipped[1] == 0


def test_rollouts_of_grpo_are_decoded_token_by_token(grpo):
    widths = [call.input_ids.shape[1] for call in generated(grpo) if call.global_step == 0]
    assert widths[0] > 1
    assert set(widths[1:]) == {1}


def test_rows_of_grpo_are_padded_on_both_sides(grpo):
    masks = torch.cat([call.attention_mask[:, [0, -1]] for call in trained(grpo)])
    assert (masks == 0).any(0).tolist() == [True, True]


@pytest.mark.skipif(not hasattr(trl, "PPOTrainer"), reason="in this release of TRL no trainer has a loop of its own")
@pytest.mark.parametrize("name", ["PPO", "RLOO"])
def test_loops_that_do_not_tell_when_a_step_begins(driver, name, tmp_path):
    policy = AutoModelForCausalLM.from_pretrained(driver.model)
    reference = copy.deepcopy(policy)
    reward = AutoModelForSequenceClassification.from_pretrained(driver.model, num_labels=1)
    tokenizer = AutoTokenizer.from_pretrained(driver.model, padding_side="left")
    config = getattr(trl, f"{name}Config")(
        output_dir=str(tmp_path),
        seed=driver.seed,
        per_device_train_batch_size=4,
        total_episodes=12,
        num_mini_batches=1,
        num_ppo_epochs=2,
        response_length=8,
        num_sample_generations=0,
        report_to="none",
        use_cpu=True,
    )
    data = Dataset.from_list([{"input_ids": tokenizer(question(i)).input_ids} for i in range(8)])
    common = {"processing_class": tokenizer, "reward_model": reward, "train_dataset": data, "eval_dataset": data}
    common["callbacks"] = [NEFTuneCallback(alpha=5)]
    if name == "PPO":
        critic = copy.deepcopy(reward)
        trainer = trl.PPOTrainer(config, model=policy, ref_model=reference, value_model=critic, **common)
    else:
        trainer = trl.RLOOTrainer(config, policy=policy, ref_policy=reference, **common)
    probe = Probe().attach(policy)
    trainer.train()
    rollouts = [call for call in probe.calls if not call.grad_enabled]
    assert len(rollouts) >= 3 * 8
    assert not any(call.noise.any() for call in rollouts)
    calls = [call for call in probe.calls if call.grad_enabled]
    assert len(calls) == 3 * 2  # three steps, two passes each
    for i, call in enumerate(calls):
        for example in per_example(call, driver.pad_id):
            want = specification.noise(example.ids.tolist(), 64, alpha=5, seed=driver.seed, step=i // 2)
            torch.testing.assert_close(example.noise, torch.tensor(want), rtol=0, atol=2e-7)


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
