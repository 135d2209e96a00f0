"""The plugin in Ludwig: its command line, its schema, its Python interface, the configurations that we show, and the
demo."""

import functools
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from neftune_plugins import NoiseConfigError
from tests.ludwig.configs import base_config, with_keys, words_config
from tests.ludwig.driver import without_patches
from tests.ludwig.runs import ENVIRONMENT, SCRIPTS, WARM, clean_process, ludwig_cli, run_ludwig
from tests.ludwig.watching import (
    ALPHA,
    KEYS,
    NOT_SAVED,
    is_clean,
    ludwig_model,
    neftune_hooks_in,
    refused,
    same_noise,
    trained,
)
from tests.support.bad_values import BAD_KEYS
from tests.support.demo import check_demo
from tests.support.docstrings import run_example
from tests.support.documentation import shown, snippets
from tests.support.logs import LineHandler
from tests.support.noise import assert_papers_noise
from tests.support.probe import padding_noise, per_example, ratio
from tests.support.recorder import Run, neftune_hooks, read_run
from tests.support.warm import Execute, cold

ROOT = Path(__file__).parents[2]
OURS = ["neftune_plugins.model.hooks.EmbeddingHook"]
NATIVE = ["ludwig.modules.training_hooks.NEFTuneHook.hook_fn"]
WITHOUT_US = {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}


@pytest.fixture(scope="module")
def noisy(driver, tmp_path_factory) -> Run:
    """Full fine-tuning with the key."""
    return driver.train("full", KEYS, folder=tmp_path_factory.mktemp("noisy"))


# --- Processes that take long to start: two at a time ----------------------------------------------------------------


CALLBACK_RUNS = """\
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from tests.ludwig.configs import base_config, with_keys
from tests.ludwig.runs import run_ludwig
model, dataset, folder = map(Path, sys.argv[1:])
run_ludwig(with_keys(base_config(model, "full"), {"neftune_noise_alpha": 5}), folder / "stock", dataset)
assert "neftune_plugins.autoload" not in sys.modules
from neftune_ludwig import NEFTuneCallback
from tests.ludwig.recorder import Recorder
for name, mode, keys in (
    ("callback", "full", {}), ("callback_and_key", "full", {"neftune_noise_alpha": 5}), ("ecd", "ecd", {}),
):
    (folder / name).mkdir()
    callbacks = [NEFTuneCallback(alpha=5), Recorder(folder / name)]
    try:
        run_ludwig(with_keys(base_config(model, mode), keys), folder / name, dataset, callbacks=callbacks)
    except Exception as error:
        print(f"{name}: {type(error).__name__}: {error}", flush=True)
"""


@pytest.fixture(scope="module")
def outside(driver, tmp_path_factory) -> dict[str, Future]:
    """What the processes gave, by name."""
    folder = tmp_path_factory.mktemp("outside")

    def train(name: str, alpha: float, execute: Execute) -> Run:
        config = with_keys(base_config(driver.model, "full"), {"neftune_noise_alpha": alpha})
        return ludwig_cli(config, folder / name, driver.dataset, execute=execute)

    def schema() -> dict[str, Any]:
        path = folder / "schema.json"
        command = [SCRIPTS / "ludwig", "export_schema", "--model-type", "llm", "--output", path]
        WARM.run(command, cwd=folder, env=environment())
        return json.loads(path.read_text())

    def without_autoload() -> Path:
        runs = folder / "without_autoload"
        runs.mkdir()
        command = [sys.executable, "-c", CALLBACK_RUNS, driver.model, driver.dataset, runs]
        result = cold(command, cwd=runs, env=environment(**WITHOUT_US))
        (runs / "output").write_text(result.stdout)
        return runs

    def demo() -> tuple[Path, list[subprocess.CompletedProcess[str]]]:
        """Twice in one folder."""
        cwd = folder / "demo"
        cwd.mkdir()
        command = [SCRIPTS / "neftune", "demo", *LUDWIG, "--tiny", "--steps", "4"]
        return cwd / "neftune-demo", [WARM.run(command, cwd=cwd, env=environment()) for _ in "ab"]

    # It waits for all of them: the tests in this process change its environment.
    with ThreadPoolExecutor(2) as pool:
        return {
            "one key": pool.submit(train, "one_key", 5.5, cold),
            "demo": pool.submit(demo),
            "bad value": pool.submit(train, "bad_value", -1, WARM.run),
            "schema": pool.submit(schema),
            "without autoload": pool.submit(without_autoload),
        }


def environment(**more: str) -> dict[str, str]:
    paths = [str(ROOT), os.environ.get("PYTHONPATH")]
    return {**os.environ, **ENVIRONMENT, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **more}


@pytest.fixture(scope="module")
def stock(driver, tmp_path_factory) -> Run:
    return driver.train("full", KEYS, folder=tmp_path_factory.mktemp("stock"), stock=True)


def test_switched_off_ludwig_is_as_it_comes(driver, stock, tmp_path, monkeypatch):
    monkeypatch.setenv("NEFTUNE_PLUGINS", "0")
    run = driver.train("full", KEYS, folder=tmp_path)
    assert neftune_hooks(run.steps[0]["hooks"]) == neftune_hooks(stock.steps[0]["hooks"]) == NATIVE
    assert run.losses == stock.losses
    assert run.weights == stock.weights is not None


# --- Keys ------------------------------------------------------------------------------------------------------------


def test_null_is_off(driver, tmp_path):
    run = driver.train("full", {"neftune_noise_alpha": None}, folder=tmp_path)
    assert neftune_hooks(run.steps[0]["hooks"]) == []
    assert is_clean(run.calls)


@pytest.mark.parametrize(("keys", "message"), BAD_KEYS, ids=[str(keys)[:60] for keys, _ in BAD_KEYS])
def test_misspelt_keys_stop_the_run_before_the_model_loads(driver, keys, message, tmp_path):
    with refused(driver, message):
        driver.train("full", keys, folder=tmp_path)


def test_defaults_for_text_features_are_a_right_place(driver, tmp_path):
    config = base_config(driver.model, "ecd")
    encoder = config["input_features"][0].pop("encoder")
    config["defaults"] = {"text": {"encoder": encoder | {"model_parameters": KEYS}}}
    run = run_ludwig(config, tmp_path, driver.dataset)
    assert_papers_noise(trained(run.calls), driver.pad_id)


def test_cached_embeddings_are_none_with_a_language_model(driver, tmp_path):
    """Ludwig leaves `cache_encoder_embeddings` out for encoders of type llm: they run in training, and have noise."""
    config = with_keys(base_config(driver.model, "ecd"), KEYS)
    config["input_features"][0]["preprocessing"]["cache_encoder_embeddings"] = True
    config["input_features"][0]["encoder"]["trainable"] = False
    run = run_ludwig(config, tmp_path, driver.dataset)
    assert len(trained(run.calls)) == 5
    assert_papers_noise(trained(run.calls), driver.pad_id)


# --- The Python interface --------------------------------------------------------------------------------------------


def train_three_times(driver, folder: Path) -> list[Run]:
    from tests.ludwig.recorder import Recorder

    runs = []
    with ludwig_model(with_keys(base_config(driver.model, "full"), KEYS)) as (model, _):
        for i in range(3):
            (folder / str(i)).mkdir()
            recorder = Recorder(folder / str(i))
            model.callbacks.append(recorder)  # Ludwig 0.13 takes none in train()
            model.train(dataset=str(driver.dataset), output_directory=str(folder / str(i)), **NOT_SAVED)
            model.callbacks.remove(recorder)
            runs.append(read_run(folder / str(i)))
            assert not neftune_hooks_in(model.model)
    return runs


def test_one_model_trained_three_times_has_one_noise_each_time(driver, tmp_path):
    runs = train_three_times(driver, tmp_path)
    for run in runs:
        assert [neftune_hooks(step["hooks"]) for step in run.steps] == [OURS] * 5
        assert len(trained(run.calls)) == 5
        assert_papers_noise(trained(run.calls), driver.pad_id)


def test_ludwigs_own_hooks_pile_up(driver, tmp_path, monkeypatch):
    """What the test above is about."""
    monkeypatch.setenv("NEFTUNE_PLUGINS", "0")
    runs = train_three_times(driver, tmp_path)
    assert [sum(len(neftune_hooks(step["hooks"])) for step in run.steps) for run in runs] == [5, 10, 15]


@pytest.mark.parametrize("switch", ["1", "0"])
def test_tuning_the_batch_size_is_clean(driver, switch, tmp_path, monkeypatch):
    """Ludwig's own hook is on while it tunes."""
    monkeypatch.setenv("NEFTUNE_PLUGINS", switch)
    config = with_keys(base_config(driver.model, "full"), KEYS)
    config["trainer"] |= {"batch_size": "auto", "eval_batch_size": "auto", "max_batch_size": 4, "train_steps": 3}
    config["preprocessing"] |= {"global_max_sequence_length": 128}
    with ludwig_model(config) as (model, watch):
        model.train(dataset=str(driver.dataset), output_directory=str(tmp_path), **NOT_SAVED)
    begin, end = watch.marks
    tuning = watch.calls[:begin]
    assert len(trained(tuning)) >= 5
    assert any(not call.grad_enabled for call in tuning)
    assert len(trained(watch.calls[begin:end])) == 3
    if switch == "1":
        assert is_clean(tuning)
        assert_papers_noise(trained(watch.calls[begin:end]), driver.pad_id)
    else:
        assert not is_clean(tuning)


@pytest.mark.parametrize("mode", ["full", "ecd"])
def test_evaluation_and_prediction_after_training_are_clean(driver, mode, tmp_path):
    config = with_keys(base_config(driver.model, mode), KEYS)
    config["trainer"]["skip_all_evaluation"] = False
    with ludwig_model(config) as (model, watch):
        model.experiment(
            dataset=str(driver.dataset), output_directory=str(tmp_path), eval_split="validation", **NOT_SAVED
        )
        experiment = len(watch.calls)
        model.evaluate(dataset=str(driver.dataset))
        evaluation = len(watch.calls)
        model.predict(dataset=str(driver.dataset))
    begin, end = watch.marks
    training = watch.calls[begin:end]
    assert_papers_noise(trained(training), driver.pad_id)
    assert is_clean([call for call in training if not call.training])
    assert end < experiment < evaluation < len(watch.calls)
    assert is_clean(watch.calls[end:])
    assert not neftune_hooks_in(model.model)


def test_the_example_of_the_docstring_trains_with_noise(driver, tmp_path, monkeypatch):
    from ludwig.api import LudwigModel
    from neftune_ludwig import NEFTuneCallback

    monkeypatch.chdir(tmp_path)  # Ludwig writes its results there
    config = base_config(driver.model, "full")
    names = {"LudwigModel": LudwigModel, "config": config, "dataset": str(driver.dataset)}
    with ludwig_model(config) as (_, watch):
        run_example("NEFTuneCallback", NEFTuneCallback, {**names, "NEFTuneCallback": NEFTuneCallback})
    assert_papers_noise(trained(watch.calls), driver.pad_id)


def test_online_training_is_noisy(driver, tmp_path):
    with ludwig_model(with_keys(base_config(driver.model, "full"), KEYS)) as (model, watch):
        model.train(dataset=str(driver.dataset), output_directory=str(tmp_path), **NOT_SAVED)
        mark = len(watch.calls)
        model.train_online(dataset=str(driver.dataset))
        online = watch.since(mark)
        assert len(trained(online)) >= 3
        assert_papers_noise(trained(online), driver.pad_id)
        assert not torch.equal(trained(online)[0].noise, trained(online)[1].noise)
        assert not neftune_hooks_in(watch.model)


def test_online_training_keeps_the_model(driver):
    """On a model that was never trained, and then again with the same trainer."""
    with ludwig_model(with_keys(base_config(driver.model, "full"), KEYS)) as (model, watch):
        model.train_online(dataset=str(driver.dataset))
        first = len(watch.calls)
        assert model.model is watch.model
        model.train_online(dataset=str(driver.dataset))
        assert_papers_noise(trained(watch.calls), driver.pad_id)
        assert not torch.equal(trained(watch.calls)[0].noise, trained(watch.since(first))[0].noise)
        assert model.model is watch.model
        assert not neftune_hooks_in(watch.model)


@pytest.mark.parametrize(
    ("mode", "trainer", "num_steps"),
    [
        ("accumulation", {}, 5),
        ("accumulation_uneven", {}, 5),  # epochs of 6 batches: 4 and 2, 4 and 2, 4
        ("accumulation_uneven", {"train_steps": None, "epochs": 2, "steps_per_checkpoint": 3}, 6),  # 3, 1 and 2 in each
        ("ecd", {}, 5),
    ],
)
def test_a_schedule_is_over_the_updates_of_the_optimizer(driver, mode, trainer, num_steps, tmp_path):
    config = with_keys(base_config(driver.model, mode), KEYS | {"neftune_noise_schedule": "linear"})
    config["trainer"] |= trainer
    run = run_ludwig(config, tmp_path, driver.dataset, random_seed=driver.seed)
    assert len(run.steps) == num_steps
    for call in trained(run.calls):
        assert_papers_noise([call], driver.pad_id, ALPHA * (1 - call.global_step / num_steps))


def train_with_callback(driver, folder: Path, keys: dict[str, Any], config: dict[str, Any] | None = None, **given: Any):
    from neftune_ludwig import NEFTuneCallback

    from tests.ludwig.recorder import Recorder

    config = config or with_keys(base_config(driver.model, "full"), keys)
    return run_ludwig(config, folder, driver.dataset, callbacks=[NEFTuneCallback(**given), Recorder(folder)])


@pytest.mark.parametrize(
    ("keys", "given"), [({}, {"alpha": ALPHA}), (KEYS, {"alpha": ALPHA}), (KEYS, {}), ({}, {"alpha": 5.0})], ids=str
)
def test_the_callback_gives_the_noise_of_the_key(driver, noisy, keys, given, tmp_path):
    run = train_with_callback(driver, tmp_path, keys, **given)
    assert [neftune_hooks(step["hooks"]) for step in run.steps] == [OURS] * 5
    assert same_noise(run, noisy)
    assert run.weights == noisy.weights


def test_the_callback_has_the_other_keys_as_arguments(driver, tmp_path):
    others = {"neftune_noise_type": "bernoulli", "neftune_noise_length": "padded", "neftune_noise_seed": 0}
    key = driver.train("full", KEYS | others, folder=tmp_path / "key")
    run = train_with_callback(driver, tmp_path / "callback", {}, alpha=ALPHA, type="bernoulli", length="padded", seed=0)
    assert same_noise(run, key)
    assert run.weights == key.weights


def test_a_callback_that_says_something_else_than_the_key_is_an_error(driver, tmp_path):

    message = "neftune_noise_alpha: 5.0 in the configuration, but 10 in NEFTuneCallback; give it in one place"
    with pytest.raises(NoiseConfigError, match=re.escape(message)):
        train_with_callback(driver, tmp_path, KEYS, alpha=10)


def test_a_callback_with_a_wrong_value_is_an_error_at_once():
    from neftune_ludwig import NEFTuneCallback

    with pytest.raises(NoiseConfigError, match="neftune_noise_alpha: 'five' must be a number"):
        NEFTuneCallback(alpha="five")
    with pytest.raises(TypeError, match="NEFTuneCallback has no argument 'kind'"):
        NEFTuneCallback(alpha=5, kind="gaussian")


def test_a_callback_on_a_model_without_a_language_model_is_an_error(driver, tmp_path):
    from neftune_plugins import NoiseNotAppliedError

    message = "NEFTuneCallback: ECD has no language model (model_type llm, or a text encoder of type llm)"
    with pytest.raises(NoiseNotAppliedError, match=re.escape(message)):
        train_with_callback(driver, tmp_path, {}, words_config(), alpha=ALPHA)


def test_switched_off_the_callback_does_nothing(driver, stock, tmp_path, monkeypatch):
    monkeypatch.setenv("NEFTUNE_PLUGINS", "0")
    run = train_with_callback(driver, tmp_path, KEYS, alpha=10)
    assert neftune_hooks(run.steps[0]["hooks"]) == NATIVE
    assert run.weights == stock.weights


def test_a_training_that_fails_leaves_no_hook(driver, tmp_path):
    models = []

    def fail(model: torch.nn.Module, step: int) -> None:
        models.append(model)
        if step == 2:
            assert neftune_hooks_in(model)
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        driver.train("full", KEYS, folder=tmp_path, at_step_end=fail)
    assert not neftune_hooks_in(models[0])


def test_a_training_that_fails_before_it_begins_leaves_no_hook(driver):
    """Ludwig tells callbacks of the end only where training had begun."""
    from ludwig.callbacks import Callback

    class Failing(Callback):
        def on_resume_training(self, *args: Any, **kwargs: Any) -> None:
            raise OSError("no checkpoint")

    with ludwig_model(with_keys(base_config(driver.model, "full"), KEYS), Failing()) as (model, watch):
        with pytest.raises(OSError, match="no checkpoint"):
            model.train(dataset=str(driver.dataset), **NOT_SAVED)
        assert not neftune_hooks_in(watch.model)


def test_names_of_the_users_that_look_like_keys_are_left_alone(driver):
    from ludwig.schema.model_types.base import ModelConfig

    config = base_config(driver.model, "ecd")
    config["output_features"][0]["loss"] = {
        "type": "softmax_cross_entropy",
        "class_weights": {"neftune": 1.0, "b": 2.0},
    }
    ModelConfig.from_dict(config)


def test_where_ludwig_and_the_tokenizer_pad_with_the_token_in_front_it_is_padding():
    from neftune_ludwig.layout import of_model

    class Tokenizer:
        def __init__(self, pad_token_id: int) -> None:
            self.pad_token_id = pad_token_id

        def __call__(self, text: str) -> SimpleNamespace:
            return SimpleNamespace(input_ids=[0])

    row = {"input_ids": torch.tensor([[0, 0, 0, 1, 2, 0]])}
    for pad_token_id, lengths in ((0, [0, 0, 0, 1, 1, 1]), (7, [0, 0, 1, 1, 1, 1])):
        assert of_model(Tokenizer(pad_token_id))(row).real_BL[0].long().tolist() == lengths


ORDERS = {
    # The documented route, with nothing imported before: no complaint, and every patch in its place.
    "callback first": """
        from neftune_ludwig import NEFTuneCallback
        import ludwig.api
        from neftune_plugins.autoload import unpatched
        from ludwig.models.llm import LLM
        from ludwig.trainers.trainer import Trainer
        assert unpatched("neftune_ludwig") == ""
        for function in (LLM._activate_forward_hooks, Trainer.__init__, Trainer.train):
            assert hasattr(function, "__wrapped__")
    """,
    # Its own import brings torch, and its patch comes too late: then the key must not pass.
    "trainer first": """
        from ludwig.trainers.trainer import Trainer
        from ludwig.error import ConfigValidationError
        from ludwig.schema.model_types.base import ModelConfig
        config = {"model_type": "llm", "base_model": "m", "input_features": [{"name": "a", "type": "text"}],
                  "output_features": [{"name": "b", "type": "text"}], "trainer": {"type": "finetune"}}
        ModelConfig.from_dict(config)
        try:
            ModelConfig.from_dict(config | {"model_parameters": {"neftune_noise_alpha": 5}})
        except Exception as error:
            message = str(error)
        assert "neftune_noise_alpha would have no effect" in message and "import torch first" in message, message
    """,
}


@pytest.mark.parametrize("order", ORDERS)
def test_whatever_is_imported_first(order, driver, tmp_path):
    script = textwrap.dedent(ORDERS[order]).replace('"m"', repr(str(driver.model)))
    result = cold([sys.executable, "-c", script], cwd=tmp_path, env=environment())
    assert result.returncode == 0, result.stdout
    assert ("could not be patched" in result.stdout) == (order == "trainer first")


# --- Saved models and resumed runs -----------------------------------------------------------------------------------


def steps(driver, mode: str, keys: dict[str, Any], num_batches: int, folder: Path, resume: Path | None = None) -> Run:
    """`num_batches` in all, going on from the results in `resume`, which are copied."""
    config = with_keys(base_config(driver.model, mode), keys)
    config["trainer"]["train_steps"] = num_batches
    options = {"random_seed": driver.seed, "save": True}
    if resume is not None:
        shutil.copytree(resume, folder / "resumed")
        options["model_resume_path"] = str(folder / "resumed")
    return run_ludwig(config, folder, driver.dataset, **options)


@pytest.fixture(scope="module")
def resumed(driver, tmp_path_factory):
    """A run of six steps, and one that was interrupted after three, an epoch."""

    @functools.cache
    def resumed(mode: str, num_batches: int) -> tuple[Run, Run]:
        folder = tmp_path_factory.mktemp(mode)
        whole = steps(driver, mode, KEYS, 2 * num_batches, folder / "whole")
        steps(driver, mode, KEYS, num_batches, folder / "half")
        half = folder / "half" / "out" / "experiment_run"
        return whole, steps(driver, mode, KEYS, 2 * num_batches, folder / "rest", half)

    return resumed


@pytest.mark.parametrize(("mode", "num_batches"), [("accumulation", 6), ("lora", 3)])
def test_a_resumed_run_has_the_noise_of_the_run_that_was_not_interrupted(resumed, mode, num_batches):
    whole, rest = resumed(mode, num_batches)
    assert [step["step"] for step in rest.steps] == [4, 5, 6]
    assert len(rest.calls) == num_batches
    for call, other in zip(rest.calls, whole.calls[num_batches:], strict=True):
        assert torch.equal(call.noise, other.noise)


WITH_DROPOUT = pytest.mark.xfail(
    raises=AssertionError,
    reason="Ludwig's checkpoints hold no random state: a resumed run is seeded anew, and dropout with it",
)


@pytest.mark.parametrize(("mode", "num_batches"), [("accumulation", 6), pytest.param("lora", 3, marks=WITH_DROPOUT)])
def test_a_resumed_run_is_the_run_that_was_not_interrupted(resumed, mode, num_batches):
    whole, rest = resumed(mode, num_batches)
    assert rest.losses == whole.losses[3:]
    assert rest.weights == whole.weights is not None


def test_noise_can_begin_and_end_with_a_resumed_run(driver, tmp_path):
    for before, after in (({}, KEYS), (KEYS, {})):
        folder = tmp_path / f"{len(before)}{len(after)}"
        first = steps(driver, "full", before, 3, folder / "first")
        rest = steps(driver, "full", after, 6, folder / "rest", folder / "first" / "out" / "experiment_run")
        assert [step["step"] for step in rest.steps] == [4, 5, 6]
        for run, keys in ((first, before), (rest, after)):
            assert neftune_hooks(run.steps[0]["hooks"]) == (OURS if keys else [])
            if keys:
                assert_papers_noise(trained(run.calls), driver.pad_id)
            else:
                assert is_clean(run.calls)


@pytest.mark.parametrize(
    ("mode", "keys", "readable"),
    [
        ("full", KEYS, True),
        ("full", {"neftune_noise_alpha": 5.0}, True),
        ("full", KEYS | {"neftune_noise_type": "gaussian", "neftune_noise_seed": 7}, True),
        ("full", {"neftune_noise_alpha": 5.5}, False),
        ("ecd", KEYS | {"neftune_noise_type": "gaussian"}, True),
    ],
    ids=str,
)
def test_a_saved_model_has_its_keys(driver, mode, keys, readable, tmp_path):
    """And a model with a whole alpha can be read where this package is absent."""
    from ludwig.error import ConfigValidationError
    from ludwig.schema.model_types.base import ModelConfig

    run = driver.train(mode, keys, folder=tmp_path, save=True)
    saved = json.loads((run.saved.parent / "model_hyperparameters.json").read_text())
    owner = saved if mode == "full" else saved["input_features"][0]["encoder"]
    given = {name: value for name, value in owner["model_parameters"].items() if name.startswith("neftune")}
    assert given == keys
    assert isinstance(given["neftune_noise_alpha"], int) == readable
    for part in (saved, owner):
        if part.get("adapters", "") is None:
            del part["adapters"]  # with it, Ludwig 0.17 alone can read no saved language model
    assert ModelConfig.from_dict(saved)
    with without_patches():
        if readable:
            assert ModelConfig.from_dict(saved)
        else:
            with pytest.raises(ConfigValidationError, match=r"5\.5 is not (of type 'integer'|valid)"):
                ModelConfig.from_dict(saved)


# --- The configurations that we show ---------------------------------------------------------------------------------


EXAMPLES = sorted((ROOT / "example_configs" / "ludwig").glob("*.yaml"))


def example_config(path: Path, model: Path) -> SimpleNamespace:
    """The example on a tiny model, and the dataset of its command."""
    text = path.read_text()
    command = text.splitlines()[0]
    assert command.startswith(f"# ludwig train --config example_configs/ludwig/{path.name} --dataset ")
    dataset = ROOT / command.split()[-1]
    assert dataset.exists()
    assert text.count("neftune_noise") == 1
    return SimpleNamespace(config=_with_model(yaml.safe_load(text), model), dataset=dataset)


def _with_model(value: Any, model: Path) -> Any:
    if isinstance(value, dict):
        return {
            name: str(model) if name in ("base_model", "pretrained_model_name_or_path") else _with_model(child, model)
            for name, child in value.items()
        }
    return [_with_model(child, model) for child in value] if isinstance(value, list) else value


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_pass_ludwigs_validation(driver, path):
    from ludwig.schema.model_types.base import ModelConfig

    assert f"| `{path.name}` |" in path.with_name("README.md").read_text()
    config = ModelConfig.from_dict(example_config(path, driver.model).config)
    owner = config if config.model_type == "llm" else config.input_features[0].encoder
    assert owner.model_parameters.neftune_noise_alpha == 5


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_train_with_noise(driver, path, tmp_path):
    example = example_config(path, driver.model)
    del example.config["trainer"]["epochs"]
    example.config["trainer"] |= {"train_steps": 2, "skip_all_evaluation": True}
    dataset = Path(shutil.copy(example.dataset, tmp_path))  # Ludwig leaves a lock beside it
    run = run_ludwig(example.config, tmp_path / "run", dataset)
    assert len(trained(run.calls)) == 2
    assert neftune_hooks(run.steps[0]["hooks"]) == OURS
    for call in trained(run.calls):
        for item in per_example(call, driver.pad_id):
            assert abs(ratio(item, 5) - 1) < 0.1
        assert not padding_noise(call, driver.pad_id).any()


def test_the_page_in_python(driver, tmp_path, monkeypatch):
    from neftune_ludwig import callback

    handles = []

    def install(*args: Any, **kwargs: Any) -> Any:
        handles.append(real_install(*args, **kwargs))
        return handles[-1]

    real_install = callback.install
    monkeypatch.setattr(callback, "install", install)
    monkeypatch.chdir(tmp_path)
    code = shown("docs/ludwig.md", "python")
    with clean_process(LineHandler()):
        exec(code, {"config": base_config(driver.model, "full"), "dataset": shutil.copy(driver.dataset, tmp_path)})
    assert [(handle.config.alpha, handle.step, handle.installed) for handle in handles] == [(5, 5, False)]


def test_the_yaml_of_the_page(driver):
    from ludwig.schema.model_types.base import ModelConfig

    found = [
        yaml.safe_load(code) for code in snippets(ROOT / "docs" / "ludwig.md", "yaml") if "model_parameters" in code
    ]
    assert found
    for keys in found:
        if "hyperopt" in keys:
            assert ModelConfig.from_dict(base_config(driver.model, "full") | keys).hyperopt.parameters
            continue
        if "input_features" in keys:
            config = base_config(driver.model, "ecd")
            encoder = keys["input_features"][0]["encoder"] | {"base_model": str(driver.model)}
            config["input_features"][0]["encoder"] = encoder
            parameters = ModelConfig.from_dict(config).input_features[0].encoder.model_parameters
        else:
            parameters = ModelConfig.from_dict(base_config(driver.model, "full") | keys).model_parameters
        assert parameters.neftune_noise_alpha in (5, 5.5)


# --- What the command lines gave ------------------------------------------------------------------------------------


def test_the_command_line_with_one_key(driver, outside):
    """With a value that Ludwig alone refuses."""
    run = outside["one key"].result()
    assert run.returncode == 0, run.output
    assert "neftune_noise_alpha: 5.5 is applied by neftune-plugins, the native hook is off" in run.output
    assert len(trained(run.calls)) == 5
    assert_papers_noise(trained(run.calls), driver.pad_id, 5.5)
    assert neftune_hooks(run.steps[0]["hooks"]) == OURS
    assert run.hooks_after == []


def test_the_command_line_with_a_bad_value_fails_before_the_model_loads(outside):
    run = outside["bad value"].result()
    assert run.returncode != 0
    assert "neftune_noise_alpha: -1 must be finite and above 0" in run.output
    assert "Loading weights" not in run.output
    assert "Loading large language model" not in run.output
    assert run.calls == []


def test_without_pytorchs_autoload_ludwig_is_as_it_comes(stock, outside):
    folder = outside["without autoload"].result()
    run = read_run(folder / "stock")
    assert run.steps, (folder / "output").read_text()
    assert neftune_hooks(run.steps[0]["hooks"]) == NATIVE
    assert run.losses == stock.losses
    assert run.weights == stock.weights


def test_the_exported_schema_has_the_keys(outside):
    schema = outside["schema"].result()
    fields = next(
        choice["properties"] for choice in schema["properties"]["model_parameters"]["oneOf"] if "properties" in choice
    )
    assert "rope_scaling" in fields
    ours = {name: field for name, field in fields.items() if name.startswith("neftune")}
    types = {name: sorted(_types(field)) for name, field in ours.items()}
    assert types == {
        "neftune_noise_alpha": ["null", "number"],
        "neftune_noise_type": ["null", "string"],
        "neftune_noise_length": ["null", "string"],
        "neftune_noise_schedule": ["null", "string"],
        "neftune_noise_seed": ["integer", "null"],
        "neftune_metrics": ["boolean", "null"],
        "neftune_clean_loss_steps": ["integer", "null"],
        "neftune_audit": ["null", "string"],
    }
    assert ours["neftune_noise_length"]["enum"] == ["sequence", "padded", None]
    assert ours["neftune_noise_schedule"]["enum"] == ["constant", "linear", "cosine", None]
    assert all(len(field["description"]) > 50 for field in ours.values())


def _types(field: dict[str, Any]) -> list[str]:
    if "type" in field:
        return field["type"] if isinstance(field["type"], list) else [field["type"]]
    return [choice["type"] for choice in field.get("anyOf", field.get("oneOf", []))]


@pytest.mark.parametrize("name", ["callback", "callback_and_key"])
def test_the_callback_needs_no_patches(noisy, outside, name):
    """Also where the key makes Ludwig put its own hook in, which is off in training."""
    folder = outside["without autoload"].result()
    run = read_run(folder / name)
    assert run.steps, (folder / "output").read_text()
    assert [neftune_hooks(step["hooks"]) for step in run.steps] == [OURS] * 5
    assert same_noise(run, noisy)
    assert run.weights == noisy.weights
    assert run.hooks_after == []


def test_the_callback_needs_no_patches_with_an_encoder(driver, outside, tmp_path):
    folder = outside["without autoload"].result()
    run, noisy = read_run(folder / "ecd"), driver.train("ecd", KEYS, folder=tmp_path)
    assert run.steps, (folder / "output").read_text()
    assert same_noise(run, noisy)
    assert run.weights == noisy.weights


# --- The demo --------------------------------------------------------------------------------------------------------


LUDWIG = ["--framework", "ludwig"]


def test_the_demo_trains_and_reports(outside):
    """Twice in one folder."""
    folder, results = outside["demo"].result()
    models = list(folder.glob("ludwig-*/experiment_run/model/model_weights"))
    assert len(models) == len(results) == 2
    for result, model in zip(results, models, strict=True):
        check_demo(result, folder / "ludwig.yaml", model)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--alpha", "-1", "--tiny"], "neftune: neftune_noise_alpha: -1.0 must be finite and above 0"),
        (["--model", "nowhere"], "there is no config.json in it; give a model's folder"),
    ],
)
def test_the_demo_says_what_is_wrong(arguments, message, tmp_path, capsys, monkeypatch):
    from neftune_plugins.commands.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["neftune", "demo", *LUDWIG, *arguments])
    code = None
    try:
        code = main()
    except SystemExit as end:
        code = end.code
    output = capsys.readouterr()
    assert message in f"{code}{output.out}{output.err}"
    assert code
