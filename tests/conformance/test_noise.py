"""What "right" means, measured from outside in real training runs of the framework."""

import copy
import itertools
import math
import pickle
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator

import pytest
import torch

from tests.conformance.golden import digest, golden_examples, golden_model
from tests.support import specification
from tests.support.bad_values import BAD_VALUES
from tests.support.probe import Call, Example, find_causal_model, padding_noise, per_example, ratio
from tests.support.recorder import generated, neftune_hooks, trained

ALPHA = 5.0
PACKAGES = [
    "neftune_plugins.autoload",
    "neftune_plugins",
    "neftune_axolotl",
    "neftune_llamafactory",
    "neftune_ludwig",
    "neftune_swift",
    "neftune_transformers",
]


def examples(calls: list[Call], pad_id: int) -> Iterator[tuple[Call, Example]]:
    for call in calls:
        for example in per_example(call, pad_id):
            yield call, example


def test_every_example_has_the_papers_magnitude(run, driver, mode):
    calls = trained(run(mode, neftune_noise_alpha=ALPHA))
    assert len(calls) >= 4
    for _, example in examples(calls, driver.pad_id):
        # Standard error of the root mean square of n uniform draws: sqrt(E x^4 / (E x^2)^2 - 1) / (2 sqrt n).
        error = math.sqrt(9 / 5 - 1) / (2 * math.sqrt(example.noise.numel()))
        assert abs(ratio(example, ALPHA) - 1) < 5 * error
        length, dim = example.noise.shape
        assert example.noise.abs().max() < 1.0001 * ALPHA / math.sqrt(length * dim)


def test_noise_is_bit_for_bit_the_specified_one(run, driver, mode):
    """Hence the same for an example in every batch order, batch size, padding, packing, and framework."""
    checked = 0
    for call, example in examples(trained(run(mode, neftune_noise_alpha=ALPHA)), driver.pad_id):
        want = torch.tensor(
            specification.noise(
                example.ids.tolist(), example.noise.shape[1], alpha=ALPHA, seed=driver.seed, step=call.global_step
            )
        )
        if call.global_step == 0:  # the embedding is still the one that the test knows
            clean = torch.nn.functional.embedding(example.ids, driver.weight)
            assert torch.equal(example.noise, (clean + want) - clean)
            checked += 1
        else:
            torch.testing.assert_close(example.noise, want, rtol=0, atol=2e-7)
    assert checked


def test_the_same_examples_have_the_same_noise_in_every_framework(driver, golden_mode, tmp_path):
    golden = golden_examples()
    run = driver.train_golden(golden_mode, golden, golden_model(tmp_path), tmp_path / "run")
    found = {
        tuple(example.ids.tolist()): digest(example.noise)
        for call, example in examples(trained(run), driver.pad_id)
        if call.global_step == 0
    }
    assert found == {tuple(example.ids): example.noise for example in golden}


def test_padding_is_exactly_clean(run, driver, mode):
    calls = trained(run(mode, neftune_noise_alpha=ALPHA))
    assert calls
    for call in calls:
        assert not padding_noise(call, driver.pad_id).any()


def test_forwards_that_are_not_trained_on_are_exactly_clean(run, driver, mode):
    others = [call for call in run(mode, neftune_noise_alpha=ALPHA).calls if not (call.training and call.grad_enabled)]
    assert bool(others) == (mode in driver.reference_modes)
    assert not any(call.noise.any() for call in others)


def test_rollouts_are_clean_and_the_policy_is_noised_once_for_each_micro_batch(run, driver, rollout_mode):
    result = run(rollout_mode, neftune_noise_alpha=ALPHA)
    rollouts, policy = generated(result), trained(result)
    assert len(rollouts) > len(policy)
    assert not any(call.grad_enabled or call.noise.any() for call in rollouts)
    assert all(call.noise.any() for call in policy)
    assert Counter(call.global_step for call in policy) == dict.fromkeys(range(5), driver.rollout_modes[rollout_mode])


def test_recomputed_activations_have_the_noise_of_the_forward(run, mode):
    if "checkpointing" in mode:
        assert any(call.recomputes for call in trained(run(mode, neftune_noise_alpha=ALPHA)))
    for call in trained(run(mode, neftune_noise_alpha=ALPHA)):
        for recomputed in call.recomputes:
            assert torch.equal(recomputed, call.noise)


def test_steps_have_different_noise(run, driver, mode):
    by_ids: dict[tuple[int, ...], dict[int, torch.Tensor]] = {}
    for call, example in examples(trained(run(mode, neftune_noise_alpha=ALPHA)), driver.pad_id):
        by_ids.setdefault(tuple(example.ids.tolist()), {})[call.global_step] = example.noise
    # A driver's dataset has at most twelve different examples; what is generated need not come again.
    again = any(len(at_step) > 1 for at_step in by_ids.values())
    assert again or len(by_ids) < 12 or mode in driver.rollout_modes
    for at_step in by_ids.values():
        noises = list(at_step.values())
        for one, other in itertools.pairwise(noises):
            assert (one - other).abs().max() > 0.1 * one.abs().max()


def test_without_the_key_the_run_is_that_of_the_framework_alone(run, mode):
    ours, stock = run(mode), run(mode, stock=True)
    assert len(ours.losses) >= 4
    assert ours.losses == stock.losses
    assert ours.weights == stock.weights is not None
    assert [step["rng"] for step in ours.steps] == [step["rng"] for step in stock.steps]
    assert not [hook for step in ours.steps for hook in neftune_hooks(step["hooks"])]


def test_noise_leaves_the_random_state_and_the_data_order_alone(run, driver, mode):
    noisy, clean = run(mode, neftune_noise_alpha=ALPHA), run(mode)
    # What a model generates depends on what it has learnt: then the first step tells.
    steps = 1 if mode in driver.rollout_modes else len(clean.steps)
    assert [step["rng"] for step in noisy.steps[:steps]] == [step["rng"] for step in clean.steps[:steps]]
    assert noisy.losses != clean.losses
    calls = ([call for call in one.calls if call.global_step < steps] for one in (noisy, clean))
    for a, b in zip(*calls, strict=True):
        assert (a.input_ids is None) == (b.input_ids is None)
        assert a.input_ids is None or torch.equal(a.input_ids, b.input_ids)


def test_what_is_logged_is_what_entered(run, driver, mode):
    result = run(mode, neftune_noise_alpha=ALPHA)
    logged = [entry for entry in result.logs if "neftune/alpha" in entry]
    assert [entry["step"] for entry in logged] == [step["step"] for step in result.steps]
    for entry in logged:
        entered = [call for call in trained(result) if call.global_step == entry["step"] - 1]
        noises = [example.noise.double() for _, example in examples(entered, driver.pad_id)]
        assert entry["neftune/alpha"] == ALPHA
        assert entry["neftune/sequences"] == len(noises)
        assert entry["neftune/mean_length"] == pytest.approx(sum(map(len, noises)) / len(noises), rel=1e-4)
        norm = math.sqrt(sum(noise.square().sum().item() for noise in noises) / len(noises))
        assert entry["neftune/noise_norm"] == pytest.approx(norm, rel=1e-4)
        assert entry["neftune/noise_norm_expected"] == pytest.approx(ALPHA / math.sqrt(3), rel=1e-4)
        if entry["step"] == 1:  # the embedding is still the one that the test knows
            clean = [driver.weight[example.ids].double() for _, example in examples(entered, driver.pad_id)]
            signal = sum(one.square().sum().item() for one in clean) / len(clean)
            decibels = 10 * math.log10(signal / norm**2)
            assert entry["neftune/signal_to_noise_db"] == pytest.approx(decibels, rel=1e-3)


def test_metrics_and_the_loss_without_noise_leave_training_alone(run, sft_mode):
    """Both runs are made here, one after the other: other trainings in between may change how a process rounds."""
    without = run(sft_mode, neftune_noise_alpha=ALPHA, neftune_metrics=False)
    both = run(sft_mode, neftune_noise_alpha=ALPHA, neftune_clean_loss_steps=2)
    assert not [name for entry in without.logs for name in entry if name.startswith("neftune/")]
    assert both.weights == without.weights
    assert both.losses == without.losses
    assert [step["rng"] for step in both.steps] == [step["rng"] for step in without.steps]
    found = {entry["step"]: entry for entry in both.logs if "neftune/clean_loss" in entry}
    assert list(found) == [2, 4]
    for step, entry in found.items():
        assert entry["neftune/noisy_loss"] == pytest.approx(both.losses[step - 1], rel=1e-4)
        assert entry["neftune/clean_loss"] != entry["neftune/noisy_loss"]


def test_the_loss_without_noise_is_that_of_the_run_without_noise(run, sft_mode):
    """At the first step, when the model is the same, and dropout and batch are."""
    first = run(sft_mode, neftune_noise_alpha=ALPHA, neftune_clean_loss_steps=1).logs[0]
    assert first["neftune/clean_loss"] == pytest.approx(run(sft_mode).losses[0], rel=1e-4)


def test_runs_repeat_bit_for_bit(driver, sft_mode, tmp_path):
    # Side by side: TRL 0.19 changes the last bits of every run after the first in a process with it.
    one, other = (driver.train(sft_mode, {"neftune_noise_alpha": ALPHA}, folder=tmp_path / name) for name in "ab")
    assert one.losses == other.losses
    assert one.weights == other.weights is not None


def test_the_native_hook_is_never_beside_ours(run, mode):
    noisy = run(mode, neftune_noise_alpha=ALPHA)
    for step in noisy.steps:
        neftune = neftune_hooks(step["hooks"])
        assert len(neftune) == 1
        assert neftune[0].startswith("neftune_plugins.")
    assert not neftune_hooks(noisy.hooks_after)


def test_without_us_the_native_hook_is_as_it_was(run, driver, native_mode):
    """And the probe tells native noise from ours: it is on padding, or of another length's magnitude."""
    stock = run(native_mode, stock=True, neftune_noise_alpha=int(ALPHA))
    for step in stock.steps:
        assert [hook.rsplit(".", 1)[1] for hook in neftune_hooks(step["hooks"])] == [driver.native_hook]
    assert trained(stock)[0].noise.any()
    assert not torch.equal(trained(stock)[0].noise, trained(run(native_mode, neftune_noise_alpha=ALPHA))[0].noise)


@pytest.mark.parametrize("kind", ["gaussian", "bernoulli"])
def test_noise_types(run, driver, sft_mode, kind):
    calls = trained(run(sft_mode, neftune_noise_alpha=ALPHA, neftune_noise_type=kind))
    fourth = {"gaussian": 3.0, "bernoulli": 1.0}[kind]
    for _, example in examples(calls, driver.pad_id):
        rms = ratio(example, ALPHA) / math.sqrt(3)  # over alpha / sqrt(L d)
        assert abs(rms - 1) < 5 * math.sqrt(fourth - 1) / (2 * math.sqrt(example.noise.numel())) + 1e-4


def test_native_magnitude_for_comparison(run, driver, sft_mode):
    for call, example in examples(
        trained(run(sft_mode, neftune_noise_alpha=ALPHA, neftune_noise_length="padded")), driver.pad_id
    ):
        length, width = len(example.ids), call.input_ids.shape[1]
        error = math.sqrt(9 / 5 - 1) / (2 * math.sqrt(example.noise.numel()))
        assert abs(ratio(example, ALPHA) * math.sqrt(width / length) - 1) < 5 * error
        assert not padding_noise(call, driver.pad_id).any()


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_alpha_follows_the_schedule(run, driver, sft_mode, schedule):
    scheduled = run(sft_mode, neftune_noise_alpha=ALPHA, neftune_noise_schedule=schedule)
    constant = run(sft_mode, neftune_noise_alpha=ALPHA)
    steps = len(scheduled.steps)
    seen = set()
    for call, other in zip(trained(scheduled), trained(constant), strict=True):
        alpha = specification.alpha_at(schedule, ALPHA, call.global_step, steps)
        torch.testing.assert_close(call.noise, other.noise * (alpha / ALPHA), rtol=0, atol=4e-7)
        seen.add(call.global_step)
    assert seen == set(range(steps)) and steps >= 4


def test_the_seed_can_be_given(run, driver, sft_mode):
    call = trained(run(sft_mode, neftune_noise_alpha=ALPHA, neftune_noise_seed=2**63 + 1))[0]
    example = per_example(call, driver.pad_id)[0]
    want = specification.noise(example.ids.tolist(), example.noise.shape[1], alpha=ALPHA, seed=2**63 + 1, step=0)
    torch.testing.assert_close(example.noise, torch.tensor(want), rtol=0, atol=2e-7)


def test_evaluation_during_training_is_clean(driver, sft_mode, tmp_path):
    noisy = driver.train(sft_mode, {"neftune_noise_alpha": ALPHA}, folder=tmp_path / "noisy", evaluate=True)
    clean = driver.train(sft_mode, {}, folder=tmp_path / "clean", evaluate=True)
    evaluation = [call for call in noisy.calls if not call.training]
    assert len(evaluation) >= 4
    assert not any(call.noise.any() for call in evaluation)
    assert [step["rng"] for step in noisy.steps] == [step["rng"] for step in clean.steps]


def test_generation_and_copies_inside_training_are_clean(driver, sft_mode, tmp_path):
    embedded, clean, pickled = [], [], []

    def at_step_end(model, step):
        if step != 2:
            return
        ids = torch.arange(4, 12)[None]
        causal = find_causal_model(model)
        use_cache, causal.config.use_cache = causal.config.use_cache, False
        copied = copy.deepcopy(causal).train()
        embedding = copied.get_input_embeddings()
        embedding.register_forward_hook(lambda module, args, output: embedded.append(output.detach()))
        copied.model(input_ids=ids)  # the forward of the whole may be a patch that runs the original
        clean.append(type(embedding).forward(embedding, ids).detach())
        # Only what is ours: the frameworks hang closures on the model that cannot be pickled.
        hooks = [hook for module in causal.modules() for hook in module._forward_hooks.values()]
        pickled.append(pickle.dumps([hook for hook in hooks if "neftune" in type(hook).__module__]))
        model.train()
        model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, do_sample=False)
        causal.config.use_cache = use_cache
        model.train()

    run = driver.train(sft_mode, {"neftune_noise_alpha": ALPHA}, folder=tmp_path, at_step_end=at_step_end)
    assert torch.equal(*embedded, *clean)
    assert len(pickle.loads(pickled[0])) >= 2
    assert b"neftune" not in pickled[0]
    generation = [call for call in run.calls if call.training and not call.grad_enabled]
    assert len(generation) >= 3
    assert not any(call.noise.any() for call in generation)


def test_what_is_saved_holds_nothing_of_ours(driver, sft_mode, tmp_path):
    noisy = driver.train(sft_mode, {"neftune_noise_alpha": ALPHA}, folder=tmp_path / "noisy", save=True)
    clean = driver.train(sft_mode, {}, folder=tmp_path / "clean", save=True, stock=True)
    names = {path.relative_to(noisy.saved) for path in noisy.saved.rglob("*") if path.is_file()}
    assert names == {path.relative_to(clean.saved) for path in clean.saved.rglob("*") if path.is_file()}
    weights = [name for name in names if name.suffix == ".safetensors"]
    assert weights
    from safetensors.torch import load_file

    for name in weights:
        assert load_file(noisy.saved / name).keys() == load_file(clean.saved / name).keys()
    for name in names:
        if name.suffix in {".bin", ".json", ".pt", ".pth", ".safetensors", ".yaml"}:
            content = (noisy.saved / name).read_bytes()
            for package in PACKAGES:
                assert package.encode() not in content, name


def test_a_saved_model_loads_where_the_package_is_absent(driver, tmp_path):
    run = driver.train(driver.sft_modes[0], {"neftune_noise_alpha": ALPHA}, folder=tmp_path, save=True)
    script = (
        # Its metadata are there all the same, and tell torch to load it.
        "import os, sys; os.environ['TORCH_DEVICE_BACKEND_AUTOLOAD'] = '0';"
        f"sys.modules.update(dict.fromkeys({PACKAGES}));"
        "import torch; from transformers import AutoModelForCausalLM;"
        f"model = AutoModelForCausalLM.from_pretrained({str(run.saved)!r}).train(); ids = torch.arange(5)[None];"
        "embedding = model.get_input_embeddings(); model(ids); assert not embedding._forward_hooks;"
        "assert torch.equal(embedding(ids), torch.nn.functional.embedding(ids, embedding.weight))"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize(("keys", "message"), BAD_VALUES, ids=[str(keys)[:60] for keys, _ in BAD_VALUES])
def test_bad_values_stop_the_run_before_the_model_loads(driver, keys, message, tmp_path):
    with driver.loads_model() as loaded, pytest.raises(Exception) as caught:  # noqa: PT011  (each framework has its own)
        driver.train(driver.sft_modes[0], keys, folder=tmp_path)
    assert message in str(caught.value)
    assert loaded == []
