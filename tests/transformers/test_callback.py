"""The callback's own affairs: exceptions, resuming, repeated training, and its errors."""

import copy
import logging
import os
import subprocess
import sys
import types
from collections import defaultdict

import pytest
import torch
from neftune_transformers import NEFTuneCallback
from neftune_transformers.notice import EFFECT
from transformers import (
    AutoModelForCausalLM,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from neftune_plugins import NoiseConfig, NoiseConfigError, NoiseNotAppliedError, install
from tests.support import specification
from tests.support.commands import assert_healthy
from tests.support.docstrings import run_example
from tests.support.probe import Probe, padding_noise, per_example, ratio
from tests.support.recorder import Recorder, weights_hash
from tests.transformers.driver import TransformersDriver, make_driver

KEYS = {"neftune_noise_alpha": 5.0}


@pytest.fixture(scope="module")
def driver() -> TransformersDriver:
    torch.set_num_threads(1)
    return make_driver()


def native_and_ours(recorder: Recorder) -> list[str]:
    """The packages that the NEFTune hooks of the first step came from."""
    return [hook.split(".")[0] for hook in recorder.record["steps"][0]["hooks"] if "neftune" in hook]


def all_hooks(model: torch.nn.Module) -> list[object]:
    return [
        hook
        for module in model.modules()
        for hooks in (module._forward_pre_hooks, module._forward_hooks, module._backward_hooks)
        for hook in hooks.values()
    ]


class Fail(TrainerCallback):
    def __init__(self, error: type[BaseException]) -> None:
        self.error = error

    def on_step_end(self, args, state, control, **kwargs):
        raise self.error


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("mode", ["trainer", "sft_lora", "dpo_lora"])
def test_nothing_is_left_after_an_exception(driver, mode, error, tmp_path):
    trainer = driver.trainer(mode, KEYS, tmp_path, callbacks=[Fail(error)])
    before = all_hooks(trainer.model)
    with pytest.raises(error):
        trainer.train()
    # Gradient checkpointing, TRL's default in newer releases, makes the embedding's output require gradients.
    theirs = [hook for hook in all_hooks(trainer.model) if getattr(hook, "__name__", "") == "make_inputs_require_grads"]
    assert [hook for hook in all_hooks(trainer.model) if hook not in theirs] == [h for h in before if h not in theirs]
    assert trainer.neftune_noise_alpha == 5.0  # as the user set it
    trainer.callback_handler.callbacks = [c for c in trainer.callback_handler.callbacks if not isinstance(c, Fail)]
    trainer.train()


def test_a_second_train_is_like_the_first(driver, tmp_path):
    """One hook, and the noise of a trainer that trains once."""
    recorder = Recorder()
    trainer = driver.trainer("trainer", KEYS, tmp_path, callbacks=[recorder])
    initial = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    hashes = []
    for _ in range(2):
        trainer.model.load_state_dict(initial)
        trainer.optimizer = trainer.lr_scheduler = None
        trainer.train()
        hashes.append(weights_hash(trainer.model))
    assert hashes[0] == hashes[1]
    assert all(sum("neftune" in hook for hook in step["hooks"]) == 1 for step in recorder.record["steps"])


def test_a_run_resumed_on_another_number_of_ranks_keeps_the_noise_of_each_example(driver, tmp_path):
    """Two processes with two examples each, then one with twice two."""
    keys = KEYS | {"neftune_noise_schedule": "cosine"}
    both = {"mode": "trainer", "keys": keys, "per_device_train_batch_size": 2}
    two = {"folder": tmp_path / "two", "save": True, "ddp_backend": "gloo"}
    one = {"folder": tmp_path / "one", "resume": two["folder"] / "out", "gradient_accumulation_steps": 2}
    ranks = driver.launch_ranks(2, both | two)
    assert ranks[0].returncode == 0, ranks[0].output
    resumed = driver.train(**both, **one)
    seen = []
    for runs in (ranks, [resumed]):
        examples = defaultdict(set)
        for call in [call for run in runs for call in run.calls]:
            alpha = specification.alpha_at("cosine", 5.0, call.global_step, 5)
            for example in per_example(call, driver.pad_id):
                ids, dim = example.ids.tolist(), example.noise.shape[1]
                want = specification.noise(ids, dim, alpha=alpha, seed=driver.seed, step=call.global_step)
                torch.testing.assert_close(example.noise, torch.tensor(want), rtol=0, atol=2e-7)
                examples[call.global_step].add(tuple(ids))
        seen.append(examples)
    assert [sorted(examples) for examples in seen] == [[0, 1, 2, 3, 4], [3, 4]]
    assert all(examples == seen[0][step] for step, examples in seen[1].items())


def test_a_run_resumed_to_a_longer_one_is_on_its_schedule(driver, tmp_path):
    keys = KEYS | {"neftune_noise_schedule": "linear"}
    short = driver.train("trainer", keys, folder=tmp_path / "short", save=True)
    resumed = driver.train("trainer", keys, folder=tmp_path / "long", resume=short.saved, max_steps=8)
    assert [call.global_step for call in resumed.calls] == [3, 4, 5, 6, 7]
    for call in resumed.calls:
        for example in per_example(call, driver.pad_id):
            assert abs(ratio(example, 5.0 * (1 - call.global_step / 8)) - 1) < 0.05


def test_a_run_resumed_at_its_end_has_the_noise_of_the_step_that_it_trains(driver, tmp_path):
    """Trainer of transformers 5.24 trains a step beyond max_steps (findings/trainer-resumed-past-the-end.sh)."""
    short = driver.train("trainer", KEYS, folder=tmp_path / "short", save=True)
    resumed = driver.train("trainer", KEYS, folder=tmp_path / "long", resume=short.saved, max_steps=3)
    for call in resumed.calls:
        assert call.global_step == 3
        for example in per_example(call, driver.pad_id):
            ids, dim = example.ids.tolist(), example.noise.shape[1]
            want = specification.noise(ids, dim, alpha=5.0, seed=driver.seed, step=3)
            torch.testing.assert_close(example.noise, torch.tensor(want), rtol=0, atol=2e-7)
    assert len(resumed.calls) == 1


def test_each_trial_of_a_search_has_the_noise_of_its_alpha(driver, tmp_path):
    """The native hook keeps the alpha of the first (transformers 5.24, findings/trainer-search-noise.sh)."""
    optuna = pytest.importorskip("optuna")
    found = []

    class Look(TrainerCallback):
        def on_train_begin(self, args, state, control, model=None, **others):
            self.probe = Probe().attach(model)

        def on_train_end(self, args, state, control, **others):
            self.probe.detach()
            found.extend((args.neftune_noise_alpha, call) for call in self.probe.calls)

    made = driver.trainer("trainer", KEYS, tmp_path, callbacks=[], max_steps=1)
    trainer = Trainer(
        args=made.args,
        model_init=lambda: copy.deepcopy(made.model),
        data_collator=made.data_collator,
        train_dataset=made.train_dataset,
        eval_dataset=made.train_dataset,
        callbacks=[NEFTuneCallback(), Look()],
    )
    alphas = [1.0, 20.0]
    trainer.hyperparameter_search(
        hp_space=lambda trial: {"neftune_noise_alpha": trial.suggest_categorical("neftune_noise_alpha", alphas)},
        compute_objective=lambda metrics: 0.0,
        n_trials=2,
        backend="optuna",
        sampler=optuna.samplers.GridSampler({"neftune_noise_alpha": alphas}, seed=0),
    )
    assert sorted({alpha for alpha, _ in found}) == alphas
    for alpha, call in found:
        assert all(abs(ratio(example, alpha) - 1) < 0.05 for example in per_example(call, driver.pad_id))


def test_alpha_can_be_given_to_the_callback_alone(driver, tmp_path):
    recorder = Recorder()
    trainer = driver.trainer("trainer", {}, tmp_path, callbacks=[NEFTuneCallback(alpha=5.0), recorder], stock=True)
    trainer.train()
    assert recorder.probe.calls[0].noise.any()


def test_the_example_of_the_docstring_trains_with_noise(driver, tmp_path):
    made = driver.trainer("trainer", {}, tmp_path, callbacks=[], stock=True)
    probe = Probe().attach(made.model)
    names = {"model": made.model, "args": made.args, "rows": made.train_dataset}

    def quiet_trainer(*args, **kwargs) -> Trainer:
        trainer = Trainer(*args, data_collator=made.data_collator, **kwargs)
        trainer.remove_callback(PrinterCallback)
        return trainer

    names |= {"Trainer": quiet_trainer, "NEFTuneCallback": NEFTuneCallback}
    run_example("NEFTuneCallback", NEFTuneCallback, names)
    for call in probe.calls:
        for example in per_example(call, driver.pad_id):
            assert abs(ratio(example, 5.0) - 1) < 0.05


@pytest.mark.parametrize("value", [-1, float("nan"), True, "abc", {"a": 1}])
def test_a_bad_value_is_told_when_the_callback_is_made(value):
    with pytest.raises(NoiseConfigError, match="neftune_noise_alpha"):
        NEFTuneCallback(alpha=value)


def test_two_alphas_are_one_too_many(driver, tmp_path):
    with pytest.raises(
        NoiseConfigError, match=r"neftune_noise_alpha: 5\.0 in the configuration, but 7 in NEFTuneCallb"
    ):
        driver.trainer("trainer", KEYS, tmp_path, callbacks=[NEFTuneCallback(alpha=7)], stock=True)


def test_companions_without_alpha_are_an_error(driver, tmp_path):
    with pytest.raises(NoiseConfigError, match=r"neftune_noise_type without neftune_noise_alpha has no effect"):
        driver.trainer("trainer", {}, tmp_path, callbacks=[NEFTuneCallback(type="gaussian")], stock=True)


def test_trainers_without_the_callback_keep_the_native_hook(driver, tmp_path):
    NEFTuneCallback()
    recorder = Recorder()
    driver.trainer("trainer", KEYS, tmp_path, callbacks=[recorder], stock=True).train()
    assert native_and_ours(recorder) == ["transformers"]


def test_the_switch_in_the_environment_leaves_the_native_hook(driver, tmp_path, monkeypatch):
    monkeypatch.setenv("NEFTUNE_PLUGINS", "0")
    recorder = Recorder()
    driver.trainer("trainer", KEYS, tmp_path, callbacks=[recorder]).train()
    assert native_and_ours(recorder) == ["transformers"]


def test_a_compiled_run_has_the_noise_of_an_eager_one(driver, tmp_path):
    noises = []
    for compiled in (False, True):
        recorder = Recorder()
        driver.trainer(
            "trainer", KEYS, tmp_path, callbacks=[recorder], torch_compile=compiled, torch_compile_backend="eager"
        ).train()
        noises.append([call.noise for call in recorder.probe.calls if call.training])
    assert len(noises[0]) == len(noises[1]) > 0
    assert torch.equal(noises[0][0], noises[1][0])
    torch.compiler.reset()


def test_a_llama_is_one_graph_for_all_steps(driver):
    model = AutoModelForCausalLM.from_pretrained(driver.model).train()
    ids = torch.randint(4, 500, (2, 16))
    with install(model, NoiseConfig(alpha=5.0)) as handle:
        torch.compiler.reset()
        torch._dynamo.utils.counters.clear()
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        for step in range(3):
            handle.step = step
            losses = [
                run(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids).loss for run in (model, compiled)
            ]
            torch.testing.assert_close(*losses)
            losses[1].backward()
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
        assert not torch._dynamo.utils.counters["graph_break"]
    torch.compiler.reset()


def test_bf16_autocast(driver, tmp_path):
    recorder = Recorder()
    driver.trainer("trainer", KEYS, tmp_path, callbacks=[recorder], bf16=True).train()
    full = Recorder()
    driver.trainer("trainer", KEYS, tmp_path, callbacks=[full]).train()
    assert torch.equal(recorder.probe.calls[0].noise, full.probe.calls[0].noise)


def test_the_class_is_accepted_where_an_instance_is(driver, tmp_path):
    recorder = Recorder()
    driver.trainer("trainer", KEYS, tmp_path, callbacks=[NEFTuneCallback, recorder], stock=True).train()
    assert native_and_ours(recorder) == ["neftune_plugins"]


def test_trainer_and_arguments_are_transformers_own():
    assert Trainer.train.__wrapped__.__module__ == "transformers.trainer"
    assert TrainingArguments.__module__ == "transformers.training_args"


@pytest.mark.parametrize("name", ["cp_size", "sp_size"])
def test_sequences_cut_over_processes_are_refused_before_training(driver, name, tmp_path, monkeypatch):
    parallel = pytest.importorskip("accelerate.parallelism_config").ParallelismConfig(**{name: 2})
    trainer = driver.trainer("trainer", KEYS, tmp_path, callbacks=[])
    # accelerate itself has no context parallelism on a CPU.
    monkeypatch.setattr(type(trainer.accelerator), "parallelism_config", parallel)
    message = f"parallelism_config.{name}: 2 cannot be combined with neftune_noise_alpha: each process gets a slice"
    with pytest.raises(NoiseConfigError, match=message):
        trainer.train()
    assert trainer.state.global_step == 0
    assert trainer.neftune_noise_alpha == 5.0


class AddLate(TrainerCallback):
    """Adds a callback of ours when training has begun."""

    def __init__(self, event: str, *given: NEFTuneCallback) -> None:
        self.trainer: Trainer | None = None

        def add(*args, **kwargs):
            for callback in given or [NEFTuneCallback()]:
                self.trainer.add_callback(callback)

        setattr(self, event, add)


@pytest.mark.parametrize("given", [{}, {"alpha": 5.0}])
def test_a_callback_that_another_adds_as_training_begins_is_alone(driver, given, tmp_path):
    """Both hooks were on: 1.35 to 1.44 of the noise, padding noised."""
    late, recorder = AddLate("on_train_begin", NEFTuneCallback(**given)), Recorder()
    keys = {} if given else KEYS
    late.trainer = driver.trainer("trainer", keys, tmp_path, callbacks=[late, recorder], stock=True)
    before = all_hooks(late.trainer.model)
    late.trainer.train()
    assert native_and_ours(recorder) == ["neftune_plugins"]
    for call in recorder.probe.calls:
        assert not padding_noise(call, driver.pad_id).any()
        for example in per_example(call, driver.pad_id):
            assert abs(ratio(example, 5.0) - 1) < 0.05
    assert all_hooks(late.trainer.model) == before


def test_nothing_is_left_of_a_late_callback_after_an_exception(driver, tmp_path):
    late = AddLate("on_train_begin")
    late.trainer = driver.trainer("trainer", KEYS, tmp_path, callbacks=[late, Fail(RuntimeError)], stock=True)
    before = all_hooks(late.trainer.model)
    with pytest.raises(RuntimeError):
        late.trainer.train()
    assert all_hooks(late.trainer.model) == before


@pytest.mark.parametrize("event", ["on_step_begin", "on_step_end"])
def test_a_callback_that_is_added_in_a_step_is_an_error(driver, event, tmp_path):
    late = AddLate(event, NEFTuneCallback())
    late.trainer = driver.trainer("trainer", KEYS, tmp_path, callbacks=[late], stock=True)
    with pytest.raises(NoiseNotAppliedError, match="NEFTuneCallback was added when training had begun, in step"):
        late.trainer.train()


def notices(caplog) -> list[str]:
    """Each record once: with CI set, the logger of transformers propagates to a handler that has seen it."""
    records = {id(record): record for record in caplog.records}.values()
    return [record.message for record in records if "left to the Trainer's own hook" in record.message]


@pytest.fixture
def as_first(monkeypatch, caplog):
    """No training of this process has been told of."""
    monkeypatch.setattr("neftune_transformers.notice._said", [])
    library = logging.getLogger("transformers")
    monkeypatch.setattr(library, "handlers", [*library.handlers, caplog.handler])


def test_a_trainer_without_the_callback_says_so_once(driver, tmp_path, caplog, as_first):
    for _ in range(2):
        driver.trainer("trainer", KEYS, tmp_path, callbacks=[], stock=True).train()
    assert len(notices(caplog)) == 1
    assert "neftune_noise_alpha: 5.0" in notices(caplog)[0]


@pytest.mark.parametrize(("keys", "stock"), [({}, True), (KEYS, False), ({"neftune_noise_alpha": 0.0}, True)])
def test_nothing_is_said_where_the_native_hook_adds_nothing(driver, keys, stock, tmp_path, caplog, as_first):
    driver.trainer("trainer", keys, tmp_path, callbacks=[], stock=stock).train()
    assert notices(caplog) == []


def test_the_notice_is_switched_off_with_the_package(tmp_path):
    code = "import neftune_transformers.autoload as a, transformers.trainer_callback as t; a.register(); "
    code += "import transformers.optimization; print(hasattr(t.CallbackHandler.on_train_begin, '__wrapped__'))"
    for value, wrapped in (("1", "True"), ("0", "False")):
        env = {**os.environ, "NEFTUNE_PLUGINS": value}
        assert (
            subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True).stdout
            == f"{wrapped}\n"
        )


def test_the_doctor_says_which_noise_a_trainer_without_the_callback_gets(driver, tmp_path, caplog, as_first):
    found = assert_healthy("transformers")["adapter"]["found"]
    assert f"without the callback uses its own hook, {EFFECT}, and one log line says so" in found
    driver.trainer("trainer", KEYS, tmp_path, callbacks=[], stock=True).train()
    assert EFFECT in notices(caplog)[0]


def test_the_doctor_does_not_promise_a_log_line_that_is_off():
    code = "import neftune_transformers.framework as f, transformers.trainer; print(f._adapter())"
    for value, said in (("1", "and one log line says so"), ("0", "no log line says so, because PyTorch's autoload is")):
        env = {**os.environ, "TORCH_DEVICE_BACKEND_AUTOLOAD": value}
        result = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
        assert said in result.stdout


@pytest.mark.parametrize("model", [None, object()])
def test_a_trainer_whose_model_is_none_of_pytorch_is_told_what_to_do(model):
    """SetFit's ended in an AttributeError."""
    state, args = TrainerState(), TrainingArguments("out", report_to="none", use_cpu=True)
    with pytest.raises(
        NoiseNotAppliedError, match=r"no PyTorch model when the training began.*use neftune_plugins.inst"
    ):
        NEFTuneCallback(alpha=5).on_train_begin(args, state, TrainerControl(), model=model)


def test_a_trainer_of_its_own_kind_needs_no_processing_class(driver):
    """Its arguments are no TrainingArguments, and it tells of a model alone."""
    model = AutoModelForCausalLM.from_pretrained(driver.model).train()
    callback, state, args = NEFTuneCallback(alpha=5), TrainerState(max_steps=2), types.SimpleNamespace()
    callback.on_init_end(args, state, TrainerControl())
    callback.on_train_begin(args, state, TrainerControl(), model=model)
    ids = torch.arange(4, 12)[None]
    with torch.no_grad():
        clean = model(input_ids=ids).logits
    assert not torch.equal(model(input_ids=ids).logits, clean)
    state.global_step = 1
    model(input_ids=ids)
    callback.on_train_end(args, state, TrainerControl())
    assert torch.equal(model(input_ids=ids).logits, clean)
