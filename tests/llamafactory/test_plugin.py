"""The plugin in LLaMA-Factory: its command line, what it hands to its processes, its web interface, our callbacks, the
configurations that we show, and the demo."""

import contextlib
import dataclasses
import functools
import importlib
import inspect
import json
import os
import re
import sys
import types
from collections import defaultdict
from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from neftune_plugins import NoiseConfig, NoiseConfigError, NoiseNotAppliedError, resolve
from neftune_plugins.config import key, looks_like_ours
from neftune_plugins.noise.layout import read_layout
from tests.llamafactory.configs import LORA, V1_MODES, base_config, command
from tests.llamafactory.driver import make_driver
from tests.llamafactory.recorders import record_v1
from tests.llamafactory.runs import (
    ENVIRONMENT,
    HAS_V1,
    SCRIPTS,
    SITE,
    WARM,
    clean_process,
    llamafactory_cli,
    llamafactory_torchrun,
)
from tests.support.bad_values import BAD_KEYS, MISPLACED
from tests.support.demo import AWKWARD, check_demo
from tests.support.docstrings import run_example
from tests.support.documentation import shown
from tests.support.logs import LineHandler
from tests.support.noise import OURS, assert_specified_noise, neftune_modules, noisy_per_step
from tests.support.probe import per_example, ratio
from tests.support.recorder import RECORD_DIR, KeepingRecorder, Run, neftune_hooks, read_run, remembered
from tests.support.warm import cold

ROOT = Path(__file__).parents[2]
KEYS = {"neftune_noise_alpha": 5}
AUTOLOAD = "TORCH_DEVICE_BACKEND_AUTOLOAD"
ZERO = "neftune_noise_alpha: 0 asks for no noise"
APPLIED = "neftune_noise_alpha: 5 is applied by neftune-plugins, the native hook is off"
needs_v1 = pytest.mark.skipif(not HAS_V1, reason="V1 of this release has no trainer")
both_paths = pytest.mark.parametrize("mode", ["sft", pytest.param("v1", marks=needs_v1)])


@pytest.fixture(scope="module")
def driver():
    torch.set_num_threads(1)
    return make_driver()


@pytest.fixture(scope="module")
def run(driver, tmp_path_factory):
    return remembered(driver.train, tmp_path_factory)


def launch(*arguments: object, v1: bool = False) -> Run:
    """What `llamafactory-cli` does with these arguments, in this process."""
    import transformers.trainer
    from llamafactory.cli import main

    recorder, lines = KeepingRecorder(), LineHandler()
    with clean_process(lines), contextlib.ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(sys, "argv", ["llamafactory-cli", *map(str, arguments)])
        patch.setenv("USE_V1", "1" if v1 else "0")
        # Not another list: ours is added to this one, when LLaMA-Factory is imported.
        transformers.trainer.DEFAULT_CALLBACKS.append(recorder)
        stack.callback(transformers.trainer.DEFAULT_CALLBACKS.remove, recorder)
        if v1:
            from llamafactory.v1.core.base_trainer import BaseTrainer

            stack.callback(record_v1(BaseTrainer, lambda: recorder))
        main()
    recorder.finish()
    return Run(calls=recorder.probe.calls, **recorder.record, output="\n".join(lines.lines))


def write_config(config: dict, folder: Path) -> Path:
    path = folder / "cfg.yaml"
    path.write_text(yaml.safe_dump({"output_dir": str(folder / "out"), **config}))
    return path


# --- The command line ------------------------------------------------------------------------------------------------


def test_the_command_line_with_one_key(driver, run, tmp_path):
    cli = llamafactory_cli(base_config(driver.model, "sft") | KEYS, tmp_path, execute=cold)
    assert cli.returncode == 0, cli.output
    assert cli.output.count(APPLIED) == 1
    assert_specified_noise(cli, driver)
    assert [hook for hook in cli.hooks_after if "neftune" in hook] == []
    assert cli.weights == run("sft", **KEYS).weights


@needs_v1
def test_the_command_line_of_v1_with_one_key(driver, run, tmp_path):
    cli = llamafactory_cli(base_config(driver.model, "v1") | KEYS, tmp_path, "sft", execute=cold)
    assert cli.returncode == 0, cli.output
    assert cli.output.count(APPLIED) == 1
    assert_specified_noise(cli, driver)
    assert cli.weights == run("v1", **KEYS).weights
    written = [json.loads(line) for line in (tmp_path / "out" / "trainer_log.jsonl").read_text().splitlines()]
    assert [line["neftune/sequences"] for line in written] == [4] * 5


@both_paths
def test_the_key_on_the_command_line(driver, run, mode, tmp_path):
    """A key after the file is merged into it, and flags do without a file."""
    config = base_config(driver.model, mode)
    overridden = launch(command(mode), write_config(config, tmp_path), "neftune_noise_alpha=5", v1=mode in V1_MODES)
    assert overridden.weights == run(mode, **KEYS).weights is not None
    flags = [part for name, value in (config | KEYS).items() for part in (f"--{name}", str(value))]
    flagged = launch(command(mode), *flags, "--output_dir", tmp_path / "flags", v1=mode in V1_MODES)
    assert flagged.weights == overridden.weights


@both_paths
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--neftune_noise_alpha", "abc"], "argument --neftune_noise_alpha/--neftune-noise-alpha: invalid float value"),
        (
            ["--neftune_noise_alpha", "5", "--neftune_noise_length", "packed"],
            "argument --neftune_noise_length/--neftune-noise-length: invalid choice: 'packed'",
        ),
    ],
)
def test_flags_of_another_type_are_refused_by_the_parser(driver, mode, flags, message, tmp_path, capsys):
    config = base_config(driver.model, mode)
    required = [part for name, value in config.items() for part in (f"--{name}", str(value))]
    with pytest.raises(SystemExit) as caught:
        launch(command(mode), *required, *flags, v1=mode in V1_MODES)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


@both_paths
def test_bad_values_on_the_command_line(driver, mode, tmp_path):
    path = write_config(base_config(driver.model, mode), tmp_path)
    messages = {
        "-1": "-1 must be finite and above 0, such as 5; 0 is no noise",
        ".nan": "nan must be finite and above 0, such as 5; 0 is no noise",
        "abc": "'abc' must be a number, such as 5; it is text",
        "true": "True must be a number, such as 5; YAML reads yes and on as true, no and off as false, which is True",
    }
    for value, problem in messages.items():
        message = f"neftune_noise_alpha: {problem} (from the command line)"
        with driver.loads_model() as loaded, pytest.raises(NoiseConfigError, match=f"^{re.escape(message)}$"):
            launch(command(mode), path, f"neftune_noise_alpha={value}", v1=mode in V1_MODES)
        assert loaded == []


@both_paths
@pytest.mark.parametrize("allowed", [False, True], ids=["refused", "allowed"])
@pytest.mark.parametrize(
    ("keys", "message"),
    [
        *BAD_KEYS,
        *MISPLACED,
        ({"optim_config": {"name": "adamw", "neftune_noise_alpha": 5}}, "optim_config.neftune_noise_alpha: 5 has no"),
        ({"--neftune_noise_alpha": None}, "--neftune_noise_alpha: there is no such key (value None); did you mean"),
    ],
    ids=lambda keys: str(keys)[:50],
)
def test_keys_that_nothing_reads_stop_the_run_before_the_model_loads(
    driver, mode, keys, message, allowed, tmp_path, monkeypatch
):
    """Also where LLaMA-Factory is told to drop what it does not know."""
    for name in ("ALLOW_EXTRA_ARGS", "ALLOW_EXTRA_KEYS"):
        monkeypatch.setenv(name, str(int(allowed)))
    with driver.loads_model() as loaded, pytest.raises(NoiseConfigError, match=re.escape(message)):
        driver.train(mode, keys, folder=tmp_path)
    assert loaded == []


@both_paths
@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("neftune_noise_alhpa=5", "neftune_noise_alhpa: there is no such key (value 5); did you mean"),
        ("neft_alpha=5", "neft_alpha: there is no such key (value 5); did you mean neftune_noise_alpha?"),
        ("deepspeed.neftune_noise_alpha=5", "deepspeed.neftune_noise_alpha: 5 has no effect there; write"),
        ("--neftune_noise_alpha=5", "After a configuration file, write key=value without --"),
    ],
)
def test_overrides_that_nothing_reads_stop_the_run(driver, mode, override, message, tmp_path, monkeypatch):
    for name in ("ALLOW_EXTRA_ARGS", "ALLOW_EXTRA_KEYS"):
        monkeypatch.setenv(name, "1")
    path = write_config(base_config(driver.model, mode), tmp_path)
    with driver.loads_model() as loaded, pytest.raises(NoiseConfigError, match=re.escape(message)):
        launch(command(mode), path, override, v1=mode in V1_MODES)
    assert loaded == []


@both_paths
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--neftune_noise_alhpa", "5"], "there is no such option (value 5); did you mean --neftune_noise_alpha?"),
        (["--neft_alpha=5"], "--neft_alpha: there is no such option (value 5); did you mean --neftune_noise_alpha?"),
        (["neftune_noise_alpha=5"], "neftune_noise_alpha=5 is not read; write --neftune_noise_alpha 5"),
        (["--dist_config", '{"name": "x", "neftune_noise_alpha": 5}'], "dist_config.neftune_noise_alpha: 5 has no"),
    ],
    ids=str,
)
def test_flags_that_nothing_reads_stop_the_run(driver, mode, flags, message, tmp_path, monkeypatch):
    for name in ("ALLOW_EXTRA_ARGS", "ALLOW_EXTRA_KEYS"):
        monkeypatch.setenv(name, "1")
    config = base_config(driver.model, mode)
    required = [part for name, value in config.items() for part in (f"--{name}", str(value))]
    with driver.loads_model() as loaded, pytest.raises(NoiseConfigError, match=re.escape(message)):
        launch(command(mode), *required, *flags, v1=mode in V1_MODES)
    assert loaded == []


@both_paths
def test_flags_that_are_shortened_are_read(driver, run, mode, tmp_path):
    config = base_config(driver.model, mode) | {"output_dir": str(tmp_path)}
    flags = [part for name, value in config.items() for part in (f"--{name}", str(value))]
    shortened = launch(command(mode), *flags, "--neftune_noise_a", "5", v1=mode in V1_MODES)
    assert shortened.weights == run(mode, **KEYS).weights


@both_paths
@pytest.mark.parametrize(
    "zero",
    [{"neftune_noise_alpha": 0}, {"neftune_noise_alpha": 0.0, "neftune_noise_type": "gaussian"}],
    ids=["alone", "with companions"],
)
def test_zero_is_the_run_without_noise(driver, run, mode, zero, tmp_path):
    found = driver.train(mode, zero, folder=tmp_path)
    assert not any(call.noise.any() for call in found.calls)
    assert [hook for step in found.steps for hook in step["hooks"] if "neftune" in hook] == []
    assert found.weights == run(mode).weights is not None
    assert ZERO in found.output
    assert ZERO not in run(mode).output


@both_paths
def test_zero_on_the_command_line_says_so_once(driver, run, mode, tmp_path):
    config = base_config(driver.model, mode) | {"output_dir": str(tmp_path / "out")}
    flags = [part for name, value in config.items() for part in (f"--{name}", str(value))]
    flagged = launch(command(mode), *flags, "--neftune_noise_alpha", "0", v1=mode in V1_MODES)
    overridden = launch(command(mode), write_config(config, tmp_path), "neftune_noise_alpha=0", v1=mode in V1_MODES)
    assert flagged.weights == overridden.weights == run(mode).weights
    assert ZERO in flagged.output and ZERO in overridden.output


def test_zero_given_to_our_callback_is_the_run_without_noise(driver, run, tmp_path):
    from neftune_llamafactory import NEFTuneCallback

    found = train_classic(base_config(driver.model, "sft"), tmp_path, NEFTuneCallback(alpha=0))
    assert found.weights == run("sft").weights
    with pytest.raises(NoiseConfigError, match="5 in the configuration, but 0 in NEFTuneCallback"):
        train_classic(base_config(driver.model, "sft") | KEYS, tmp_path, NEFTuneCallback(alpha=0))


@both_paths
@pytest.mark.parametrize("written", ["5", "5.0", "0.5e1"])
def test_a_number_that_is_given_as_text_is_that_number(run, mode, written):
    assert run(mode, neftune_noise_alpha=written).weights == run(mode, **KEYS).weights


def test_numbers_of_numpy_are_numbers():
    for alpha in (np.float32(5), np.float64(5), np.int64(5), np.array(5)):
        config = resolve({"neftune_noise_alpha": alpha, "neftune_noise_seed": np.int64(3)})
        assert config == NoiseConfig(alpha=5, seed=3)
        assert (type(config.alpha), type(config.seed)) in [(int, int), (float, int)]
    assert NoiseConfig(alpha=5, metrics=np.bool_(False), clean_loss_steps=np.uint8(2)).clean_loss_steps == 2
    assert resolve({"neftune_noise_alpha": np.float16(0)}) is None
    for alpha in (np.bool_(True), np.array([5]), np.array("a")):
        with pytest.raises(NoiseConfigError, match="must be a number, such as 5"):
            NoiseConfig(alpha=alpha)


def test_megatrons_arguments_are_refused(tmp_path):
    """USE_MCA=1 gives the parser other TrainingArguments, which have the native key and a trainer of their own."""
    from llamafactory.hparams import ModelArguments
    from transformers import HfArgumentParser, Seq2SeqTrainingArguments

    parser = HfArgumentParser([ModelArguments, Seq2SeqTrainingArguments])
    config = {"model_name_or_path": "x", "output_dir": str(tmp_path)}
    parser.parse_dict(config)
    parser.parse_dict(config | {"neftune_noise_alpha": 0})
    with pytest.raises(NoiseNotAppliedError, match="would have no effect: LLaMA-Factory puts it into"):
        parser.parse_dict(config | KEYS)
    with pytest.raises(NoiseNotAppliedError, match="would have no effect: LLaMA-Factory puts it into"):
        parser.parse_args_into_dataclasses(
            ["--model_name_or_path", "x", "--output_dir", str(tmp_path), "--neftune_noise_alpha", "5"]
        )


def test_parsers_of_others_are_left_alone(tmp_path):
    from transformers import HfArgumentParser, TrainingArguments

    config = {"output_dir": str(tmp_path), "trl": {"neftune_noise_alpha": 5}, "neftune_noise_alpha": 5}
    [arguments] = HfArgumentParser(TrainingArguments).parse_dict(config, allow_extra_keys=True)
    assert arguments.neftune_noise_alpha == 5


@both_paths
def test_no_argument_of_llamafactory_looks_like_ours(mode):
    if mode == "sft":
        from llamafactory.hparams import parser

        kinds = parser._TRAIN_ARGS
    else:
        from llamafactory.v1 import config

        kinds = [config.ModelArguments, config.DataArguments, config.TrainingArguments, config.SampleArguments]
    names = [field.name for kind in kinds for field in dataclasses.fields(kind)]
    assert len(names) > 30
    assert set(filter(looks_like_ours, names)) == {key(field) for field in dataclasses.fields(NoiseConfig)}


@both_paths
def test_the_help_has_each_key_once(mode, capsys):
    from llamafactory.hparams.training_args import TrainingArguments

    with pytest.raises(SystemExit) as caught:
        launch(command(mode), "-h", v1=mode in V1_MODES)
    assert caught.value.code in (0, None)
    shown = capsys.readouterr().out
    text = " ".join(shown.split())
    for name in map(key, dataclasses.fields(NoiseConfig)):
        assert len(re.findall(rf"^ +--{name}\b", shown, re.MULTILINE)) == 1
        assert text.count(TrainingArguments.__dataclass_fields__[name].metadata["help"]) == 1


@needs_v1
def test_v1_has_schedules(run, driver):
    assert_specified_noise(run("v1", **KEYS, neftune_noise_schedule="cosine"), driver, schedule="cosine")


# --- Several processes -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_ranks(driver, tmp_path_factory) -> list[Run]:
    config = base_config(driver.model, "sft") | KEYS | {"max_steps": 3}
    return llamafactory_torchrun(config, tmp_path_factory.mktemp("torchrun"))


def test_two_processes(driver, two_ranks):
    assert two_ranks[0].returncode == 0, two_ranks[0].output
    assert two_ranks[0].output.count(APPLIED) == 1  # said by one
    for rank in two_ranks:
        assert_specified_noise(rank, driver, num_steps=3)
        assert [hook for hook in rank.hooks_after if "neftune" in hook] == []
    assert two_ranks[0].weights == two_ranks[1].weights is not None
    for one, other in zip(two_ranks[0].calls, two_ranks[1].calls, strict=True):
        assert one.global_step == other.global_step
        assert one.input_ids.tolist() != other.input_ids.tolist()
    assert (two_ranks[0].saved / "training_args.bin").exists()


def test_two_processes_share_the_batch_of_one(driver, run, two_ranks):
    batch_size = base_config(driver.model, "sft")["per_device_train_batch_size"]
    single = run("sft", **KEYS, max_steps=3, per_device_train_batch_size=2 * batch_size)

    def noise(of_run: Run, step: int) -> dict[tuple[int, ...], torch.Tensor]:
        calls = [call for call in of_run.calls if call.global_step == step]
        examples = [example for call in calls for example in per_example(call, driver.pad_id)]
        return {tuple(example.ids.tolist()): example.noise for example in examples}

    for step in range(3):
        assert noise(two_ranks[0], step).keys() | noise(two_ranks[1], step).keys() == noise(single, step).keys()
    for rank in two_ranks:  # in later steps the weights are sums of another order
        for ids, of_rank in noise(rank, 0).items():
            assert torch.equal(of_rank, noise(single, 0)[ids])


V1_WORKER = """
import sys, torch
from llamafactory.v1 import launcher
torch.accelerator.synchronize = lambda *_: None  # see the test after this one
sys.argv[1:] = ["sft", {config!r}]
launcher.main()
"""


def v1_on_two_ranks(driver, folder: Path) -> list[Run]:
    """What `FORCE_TORCHRUN=1 llamafactory-cli sft` starts, without its fault on a CPU."""
    config = write_config(base_config(driver.model, "v1") | KEYS | {"max_steps": 2}, folder)
    script = folder / "worker.py"
    script.write_text(V1_WORKER.format(config=str(config)))
    paths = os.pathsep.join([str(SITE), str(ROOT)])
    process = cold(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", script],
        cwd=folder,
        env={**os.environ, **ENVIRONMENT, "USE_V1": "1", RECORD_DIR: str(folder), "PYTHONPATH": paths},
    )
    runs = [read_run(folder / f"rank{rank}") for rank in range(2)]
    for rank in runs:
        rank.output, rank.returncode = process.stdout, process.returncode
    return runs


@needs_v1
def test_two_processes_of_v1(driver, tmp_path):
    ranks = v1_on_two_ranks(driver, tmp_path)
    assert ranks[0].returncode == 0, ranks[0].output
    seen = [assert_specified_noise(rank, driver, num_steps=2) for rank in ranks]
    assert seen[0] != seen[1]
    assert ranks[0].weights == ranks[1].weights is not None


@needs_v1
def test_sequences_that_v1_cuts_over_processes_are_refused_before_the_model_loads(driver, tmp_path):
    distribution = {"name": "fsdp2", "cp_size": 2}
    with driver.loads_model() as loaded, pytest.raises(NoiseConfigError, match=r"^dist_config\.cp_size: 2 cannot be"):
        driver.train("v1", KEYS | {"dist_config": distribution}, folder=tmp_path)
    assert loaded == []


@needs_v1
@pytest.mark.xfail(
    raises=RuntimeError,
    reason="LLaMA-Factory's V1 waits for an accelerator after each step of several processes, also where there is none",
)
def test_v1_can_synchronize_processes_on_a_cpu():
    from llamafactory.v1.accelerator import helper

    helper.synchronize()


# --- What a run leaves behind ----------------------------------------------------------------------------------------


class TrainingStoppedError(Exception):
    pass


@both_paths
def test_an_interrupted_run_leaves_no_hook(driver, mode, tmp_path):
    models, during = [], []

    def at_step_end(model, step):
        if step == 3:
            models.append(model)
            during.append(neftune_modules(model))
            raise TrainingStoppedError

    with pytest.raises(TrainingStoppedError):
        driver.train(mode, KEYS, folder=tmp_path, at_step_end=at_step_end)
    assert during[0]
    assert neftune_modules(models[0]) == []


def test_export_and_chat_are_untouched(driver, run, tmp_path, capsys):
    adapter, exported = run("lora", **KEYS).saved, tmp_path / "exported"
    options = {
        "model_name_or_path": driver.model,
        "adapter_name_or_path": adapter,
        "template": "default",
        "export_dir": exported,
        "infer_dtype": "float32",
    }
    launch("export", *(part for name, value in options.items() for part in (f"--{name}", value)))
    base, merged = load_file(driver.model / "model.safetensors"), load_file(exported / "model.safetensors")
    lora = load_file(adapter / "adapter_model.safetensors")
    assert merged.keys() == base.keys()
    for name, weight in merged.items():
        module = f"base_model.model.{name.removesuffix('.weight')}"
        want = base[name]
        if f"{module}.lora_A.weight" in lora:
            scale = LORA["lora_alpha"] / LORA["lora_rank"]
            want = want + scale * lora[f"{module}.lora_B.weight"] @ lora[f"{module}.lora_A.weight"]
        torch.testing.assert_close(weight, want, rtol=0, atol=1e-6)

    from llamafactory.chat import ChatModel

    with clean_process(LineHandler()):
        chat = ChatModel(
            {"model_name_or_path": str(exported), "template": "default", "infer_backend": "huggingface"}
            | {"max_new_tokens": 4, "do_sample": False}
        )
        (response,) = chat.chat([{"role": "user", "content": "What did you see?"}])
        chat._loop.call_soon_threadsafe(chat._loop.stop)
    assert 0 < response.response_length <= 4
    assert neftune_modules(chat.engine.model) == []

    launch("version")
    assert "Welcome to LLaMA Factory, version" in capsys.readouterr().out
    launch("env")
    assert "`llamafactory` version" in capsys.readouterr().out


# --- Switched off, and our callbacks ---------------------------------------------------------------------------------

PACKAGES = ["neftune_plugins.autoload", "neftune_plugins", "neftune_llamafactory", "neftune_transformers"]

# In one process, for the time that the imports take.
ELSEWHERE = (
    f"""
import json, sys
from pathlib import Path
model, arguments, folder, has_v1, public = json.loads(sys.argv[1])
model, folder = Path(model), Path(folder)
found = {{}}
if public:
    sys.modules.update(dict.fromkeys({PACKAGES}))  # as if it were not installed
    import torch
    loaded = torch.load(arguments, weights_only=False)
    found["arguments"] = [f"{{type(loaded).__module__}}.{{type(loaded).__qualname__}}", loaded.neftune_noise_alpha,
        loaded.neftune_noise_type, loaded.neftune_noise_length]
    for name in {PACKAGES}:
        del sys.modules[name]
"""
    + """
import torch
torch.set_num_threads(1)
from tests.llamafactory.configs import base_config
from tests.llamafactory.runs import run_llamafactory
from tests.llamafactory.test_plugin import train_classic, train_v1
keys = {"neftune_noise_alpha": 5}

def shown(run):
    return {"losses": run.losses, "weights": run.weights, "hooks": run.steps[0]["hooks"]}

found["stock"] = shown(run_llamafactory(base_config(model, "sft") | keys, folder / "sft"))
if public:
    from neftune_llamafactory import NEFTuneCallback
    found["sft"] = shown(train_classic(base_config(model, "sft"), folder / "callback", NEFTuneCallback(alpha=5)))
if has_v1:
    try:
        run_llamafactory(base_config(model, "v1") | keys, folder / "v1", "sft")
    except ValueError as error:
        found["v1 error"] = str(error)
    if public:
        from neftune_llamafactory import NEFTuneV1Callback
        found["v1"] = shown(train_v1(base_config(model, "v1"), folder / "v1_callback", NEFTuneV1Callback(alpha=5)))
print("FOUND", json.dumps(found))
"""
)


def train_classic(config: dict, folder: Path, *callbacks) -> Run:
    """`run_exp` with callbacks, the public way."""
    from llamafactory.train.tuner import run_exp

    recorder = KeepingRecorder()
    with clean_process(LineHandler()):
        run_exp({"output_dir": str(folder / "out"), **config}, callbacks=[*callbacks, recorder])
    recorder.finish()
    return Run(calls=recorder.probe.calls, **recorder.record)


def train_v1(config: dict, folder: Path, *callbacks) -> Run:
    """What `run_sft` of V1 does, with callbacks for the trainer."""
    with v1_world(config, folder) as (world, recorder):
        world["SFTTrainer"](**{name: world[name] for name in V1_ARGUMENTS}, callbacks=list(callbacks)).fit()
    recorder.finish()
    return Run(calls=recorder.probe.calls, **recorder.record)


V1_ARGUMENTS = ("args", "model", "renderer", "train_dataset")


@contextlib.contextmanager
def v1_world(config: dict, folder: Path):
    """What V1's trainer is made of, by name, and a recorder of its training."""
    from llamafactory.v1.accelerator.interface import DistributedInterface
    from llamafactory.v1.config import get_args
    from llamafactory.v1.core.base_trainer import BaseTrainer
    from llamafactory.v1.core.data_engine import DataEngine
    from llamafactory.v1.core.model_engine import ModelEngine
    from llamafactory.v1.trainers.sft_trainer import SFTTrainer

    recorder = KeepingRecorder()
    with clean_process(LineHandler()), contextlib.ExitStack() as stack:
        stack.callback(record_v1(BaseTrainer, lambda: recorder))
        model_args, data_args, training_args, _ = get_args({"output_dir": str(folder / "out"), **config})
        DistributedInterface(training_args.dist_config)
        engine = ModelEngine(model_args, is_train=True)
        made = (training_args, engine.model, engine.renderer, DataEngine(data_args.train_dataset))
        yield {"SFTTrainer": SFTTrainer, **dict(zip(V1_ARGUMENTS, made, strict=True))}, recorder


@pytest.fixture(scope="module")
def elsewhere(driver, run, tmp_path_factory):
    """`elsewhere(variable)`: what is found in a process where the environment variable is 0."""

    @functools.cache
    def elsewhere(variable: str) -> dict:
        arguments = run("sft", **KEYS, neftune_noise_type="gaussian").saved / "training_args.bin"
        folder, public = tmp_path_factory.mktemp("elsewhere"), variable == AUTOLOAD
        given = json.dumps([str(driver.model), str(arguments), str(folder), HAS_V1, public])
        env = {**os.environ, **ENVIRONMENT, variable: "0", "PYTHONPATH": str(ROOT)}
        result = cold([sys.executable, "-c", ELSEWHERE, given], cwd=ROOT, env=env)
        assert result.returncode == 0, result.stdout
        return json.loads(result.stdout.split("FOUND ")[-1].splitlines()[0])

    return elsewhere


@pytest.mark.parametrize("variable", ["NEFTUNE_PLUGINS", AUTOLOAD])
def test_switched_off_llamafactory_is_as_it_comes(driver, run, elsewhere, variable):
    found, stock = elsewhere(variable), run("sft", stock=True, **KEYS)
    assert [hook.rsplit(".", 1)[1] for hook in found["stock"]["hooks"]] == [driver.native_hook]
    assert found["stock"]["losses"] == stock.losses
    assert found["stock"]["weights"] == stock.weights
    if HAS_V1:
        assert "Some keys are not used by the HfArgumentParser: ['neftune_noise_alpha']" in found["v1 error"]


@both_paths
def test_without_the_autoload_our_callback_does_what_the_key_does_with_it(run, elsewhere, mode):
    found, with_key = elsewhere(AUTOLOAD)[mode], run(mode, **KEYS)
    assert [hook for hook in found["hooks"] if "neftune" in hook] == OURS
    assert found["losses"] == with_key.losses
    assert found["weights"] == with_key.weights


def test_training_arguments_load_where_the_package_is_absent(elsewhere):
    shown = ["llamafactory.hparams.training_args.TrainingArguments", 5, "gaussian", None]
    assert elsewhere(AUTOLOAD)["arguments"] == shown


@pytest.mark.parametrize("key", [{}, KEYS], ids=["alone", "with the same key"])
def test_our_callback_is_one_noise(driver, run, key, tmp_path):
    from neftune_llamafactory import NEFTuneCallback

    found = train_classic(base_config(driver.model, "sft") | key, tmp_path, NEFTuneCallback(alpha=5))
    assert_specified_noise(found, driver)
    assert found.weights == run("sft", **KEYS).weights


@needs_v1
def test_the_example_of_v1_s_callback_trains_with_noise(driver, run, tmp_path):
    from neftune_llamafactory import NEFTuneV1Callback

    with v1_world(base_config(driver.model, "v1"), tmp_path) as (world, recorder):
        run_example("NEFTuneV1Callback", NEFTuneV1Callback, {**world, "NEFTuneV1Callback": NEFTuneV1Callback})
    recorder.finish()
    assert recorder.record["weights"] == run("v1", **KEYS).weights


@needs_v1
@pytest.mark.parametrize("key", [{}, KEYS], ids=["alone", "with the same key"])
def test_our_callback_of_v1_is_one_noise(driver, run, key, tmp_path):
    from neftune_llamafactory import NEFTuneV1Callback

    found = train_v1(base_config(driver.model, "v1") | key, tmp_path, NEFTuneV1Callback(alpha=5))
    assert_specified_noise(found, driver)
    assert found.weights == run("v1", **KEYS).weights


@both_paths
def test_our_callback_and_another_key_are_an_error(driver, mode, tmp_path):
    import neftune_llamafactory

    name, train = ("NEFTuneCallback", train_classic) if mode == "sft" else ("NEFTuneV1Callback", train_v1)
    callback = getattr(neftune_llamafactory, name)(alpha=10)
    message = "neftune_noise_alpha: 5 in the configuration, but 10 in NEFTuneCallback; give it in one place"
    with pytest.raises(NoiseConfigError, match=message):
        train(base_config(driver.model, mode) | KEYS, tmp_path, callback)


def test_the_page_in_python(driver, tmp_path):
    lines, code = LineHandler(), shown("docs/llamafactory.md", "python")
    with clean_process(lines):
        exec(code, {"args": base_config(driver.model, "sft") | {"output_dir": str(tmp_path)}})
    assert sum(APPLIED in line for line in lines.lines) == 1


def test_companions_without_alpha_are_named(tmp_path):
    from llamafactory.hparams.training_args import TrainingArguments

    message = "^neftune_noise_seed without neftune_noise_alpha has no effect; set neftune_noise_alpha"
    with pytest.raises(NoiseConfigError, match=message):
        TrainingArguments(output_dir=str(tmp_path), neftune_noise_seed=3)


ORDERS = {
    # The arguments are patched before the trainers are there, and our callback brings them.
    "arguments, then callback": """
        from llamafactory.hparams.training_args import TrainingArguments
        import sys
        assert "transformers.trainer" not in sys.modules
        from neftune_llamafactory import NEFTuneCallback
        TrainingArguments(output_dir="out", neftune_noise_alpha=5, use_cpu=True)
        from neftune_plugins.autoload import unpatched
        import transformers.trainer
        assert unpatched("neftune_llamafactory") == ""
        assert sum(issubclass(one, NEFTuneCallback) for one in transformers.trainer.DEFAULT_CALLBACKS) == 1
        import importlib, llamafactory.hparams.training_args
        importlib.reload(llamafactory.hparams.training_args)
        assert sum(issubclass(one, NEFTuneCallback) for one in transformers.trainer.DEFAULT_CALLBACKS) == 1
    """,
    # The parser of V1 is imported before torch.
    "V1's arguments": """
        from llamafactory.v1.config import get_args
        from neftune_plugins import NoiseConfigError
        from neftune_plugins.autoload import unpatched
        assert unpatched("neftune_llamafactory") == ""
        config = {"output_dir": "out", "neftune_noise_alpha": 5}
        *_, arguments, _ = get_args(config)
        assert arguments.neftune_noise_alpha == 5
        try:
            get_args(config | {"dist_config": {"name": "x", "neftune_noise_alpha": 5}})
        except NoiseConfigError as error:
            assert "dist_config.neftune_noise_alpha: 5 has no effect there" in str(error)
        else:
            raise AssertionError
    """,
    # Its own import brings torch, and its patch comes too late: then the key must not pass.
    "V1's trainer": """
        from llamafactory.v1.core.base_trainer import BaseTrainer
        from llamafactory.v1.config import TrainingArguments
        TrainingArguments()
        try:
            TrainingArguments(neftune_noise_alpha=5)
        except Exception as error:
            message = str(error)
        assert "neftune_noise_alpha would have no effect" in message and "import torch first" in message, message
    """,
}


@pytest.mark.parametrize("order", [name if name[0] != "V" else pytest.param(name, marks=needs_v1) for name in ORDERS])
def test_whatever_is_imported_first(order, tmp_path):
    code = inspect.cleandoc(ORDERS[order])
    result = cold([sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, **ENVIRONMENT})
    assert result.returncode == 0, result.stdout
    assert ("could not be patched" in result.stdout) == (order == "V1's trainer")


# --- Training methods ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "native"), [("dpo_lora", 2), ("kto_lora", 4), ("kto", 2)])
def test_one_forward_of_a_step_is_noisy(run, mode, native):
    """Of policy, reference and KL forwards, which are the same modules."""
    assert noisy_per_step(run(mode, **KEYS, max_steps=2)) == 1
    assert noisy_per_step(run(mode, stock=True, **KEYS, max_steps=2)) == native


def test_reward_models_with_lora_train(driver, run):
    with pytest.raises(AttributeError, match="'NoneType' object has no attribute 'neftune_noise_alpha'"):
        run("rm_lora", stock=True, **KEYS)
    assert_specified_noise(run("rm_lora", **KEYS), driver)


def test_the_layout_of_neat_packing_with_flash_attention(driver):
    """Such a batch is one row; a mask tells padding and examples, or none is there and the positions tell them."""
    from llamafactory.data import get_template_and_fix_tokenizer
    from llamafactory.data.collator import SFTDataCollatorWith4DAttentionMask
    from llamafactory.data.processor import PackedSupervisedDatasetProcessor
    from llamafactory.hparams import DataArguments
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(driver.model)
    data_args = DataArguments(template="default", neat_packing=True, cutoff_len=128)
    template = get_template_and_fix_tokenizer(tokenizer, data_args)
    texts = ["The tide was out.", "Two gulls argued over a crust.", "A lamp burned."]
    examples = defaultdict(list)
    for text in texts:
        examples["_prompt"].append([{"role": "user", "content": "?"}])
        examples["_response"].append([{"role": "assistant", "content": text}])
        for name in ("_system", "_tools"):
            examples[name].append("")
        for name in ("_images", "_videos", "_audios"):
            examples[name].append(None)
    processor = PackedSupervisedDatasetProcessor(template, tokenizer, None, data_args)
    packed = processor.preprocess_dataset(examples)
    assert len(packed["input_ids"]) == 1
    ids, segments = packed["input_ids"][0], packed["attention_mask"][0]
    lengths = [segments.count(number) for number in (1, 2, 3)]
    assert 0 < sum(lengths) < len(ids)
    has_flag = "neat_packing" in inspect.signature(SFTDataCollatorWith4DAttentionMask).parameters
    flags = {"neat_packing": True} if has_flag else {}
    collate = SFTDataCollatorWith4DAttentionMask(
        tokenizer=tokenizer,
        template=template,
        pad_to_multiple_of=8,
        block_diag_attn=True,
        attn_implementation="flash_attention_2",
        **flags,
    )
    batch = collate([{name: values[0] for name, values in packed.items()}])
    assert batch["input_ids"].shape[0] == 1
    layout = read_layout({**batch, "pad_token_id": tokenizer.pad_token_id})
    real = layout.real_BL[0]
    assert batch["input_ids"][0][real].tolist() == ids[: sum(lengths)]
    assert layout.position_BL[0][real].tolist() == [i for length in lengths for i in range(length)]
    assert layout.length_BL[0][real].tolist() == [length for length in lengths for _ in range(length)]
    assert layout.example_BL[0][real].unique().numel() == 3


# --- The web interface, the examples, and the demo -------------------------------------------------------------------


@pytest.fixture
def runner(monkeypatch):
    """The part of the web interface that makes a run of what is filled in. Gradio itself is not needed for it, and
    the release that LLaMA-Factory wants does not load beside the transformers that it wants."""
    gradio = types.ModuleType("gradio")
    gradio.__spec__ = ModuleSpec("gradio", None)
    monkeypatch.setitem(sys.modules, "gradio", gradio)
    runner = importlib.import_module("llamafactory.webui.runner")
    return runner.Runner(types.SimpleNamespace(get_elem_by_id=lambda name: name))


def filled_in(driver, folder: Path, **fields: object) -> dict:
    """All fields of the web interface, by name."""
    config = base_config(driver.model, "sft")
    from_config = ("dataset_dir", "cutoff_len", "learning_rate", "lr_scheduler_type", "logging_steps")
    values = {f"train.{name}": config[name] for name in from_config}
    values |= {
        "top.lang": "en",
        "top.model_name": "Custom",
        "top.model_path": config["model_name_or_path"],
        "top.finetuning_type": "full",
        "top.template": "default",
        "top.rope_scaling": "none",
        "top.booster": "auto",
        "top.quantization_bit": "none",
        "train.training_stage": "Supervised Fine-Tuning",
        "train.dataset": ["chat"],
        "train.batch_size": 4,
        "train.gradient_accumulation_steps": 1,
        "train.num_train_epochs": "1.0",
        "train.max_samples": "100000",
        "train.max_grad_norm": "1.0",
        "train.save_steps": 100,
        "train.warmup_steps": 0,
        "train.val_size": 0,
        "train.neftune_alpha": 0,
        "train.compute_type": "fp32",
        "train.report_to": "none",
        "train.output_dir": str(folder / "out"),
        "train.ds_stage": "none",
        "train.extra_args": "{}",
    }
    return defaultdict(bool, values | {f"train.{name}": value for name, value in fields.items()})


def test_the_web_interface_hands_our_keys_on(driver, runner, tmp_path):
    from llamafactory.webui.common import gen_cmd, save_cmd

    ours = {"neftune_noise_alpha": 5, "neftune_noise_type": "gaussian"}
    fast = {"max_steps": 2, "use_cpu": True, "save_strategy": "no", "preprocessing_num_workers": 1, "plot_loss": False}
    data = filled_in(driver, tmp_path, extra_args=json.dumps(ours | fast))
    args = runner._parse_train_args(data)
    assert "--neftune_noise_type gaussian" in gen_cmd(args)  # what it previews
    path = Path(save_cmd(args))
    assert ours.items() <= yaml.safe_load(path.read_text()).items()
    assert_specified_noise(launch("train", path), driver, num_steps=2, kind="gaussian")


@pytest.mark.parametrize(("slider", "alpha"), [(0, None), (5, 5)])
def test_the_web_interfaces_own_slider(driver, runner, slider, alpha, tmp_path):
    from llamafactory.webui.common import save_cmd

    path = save_cmd(runner._parse_train_args(filled_in(driver, tmp_path, neftune_alpha=slider)))
    assert yaml.safe_load(Path(path).read_text()).get("neftune_noise_alpha") == alpha


FOLDER = ROOT / "example_configs" / "llamafactory"
NEEDS_095 = ("neat_packing", "v1")
EXAMPLES = [
    pytest.param(
        path,
        id=path.stem,
        marks=pytest.mark.skipif(
            not HAS_V1 and path.stem in NEEDS_095, reason="V1 and neat_packing need LLaMA-Factory 0.9.5"
        ),
    )
    for path in sorted(FOLDER.glob("*.yaml"))
    if path.stem != "v1_dataset"
]


def example_config(path: Path, model: Path) -> dict:
    """The example on a tiny model, whose vocabulary lacks the template's special tokens."""
    config = yaml.safe_load(path.read_text())
    if path.stem == "v1":
        return config | {"model": str(model)}
    return config | {"model_name_or_path": str(model), "template": "default"}


@pytest.mark.parametrize("path", EXAMPLES)
def test_examples_pass_llamafactorys_parser(driver, path, monkeypatch):
    import transformers.training_args

    monkeypatch.setattr(transformers.training_args, "is_torch_bf16_gpu_available", lambda: True)
    config = example_config(path, driver.model)
    with clean_process(LineHandler()):
        if path.stem == "v1":
            from llamafactory.v1.config import get_args

            arguments = get_args(config)
        else:
            from llamafactory.hparams import get_train_args

            arguments = get_train_args(config)
    assert arguments[2].neftune_noise_alpha == 5


@pytest.mark.parametrize("path", [example for example in EXAMPLES if example.id != "qlora"])
def test_examples_train_with_noise(driver, path, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    v1 = path.stem == "v1"
    fast = {"max_steps": 2, "output_dir": str(tmp_path / "out")}
    fast |= {"batching_workers": 0} if v1 else {"use_cpu": True, "cache_dir": str(driver.model.parent / "cache")}
    config = write_config(example_config(path, driver.model) | fast, tmp_path)
    run = launch("sft" if v1 else "train", config, v1=v1)
    assert neftune_hooks(run.steps[0]["hooks"]) == OURS
    trained = [call for call in run.calls if call.training and call.grad_enabled]
    assert len(trained) == 2
    for call in trained:
        for example in per_example(call, driver.pad_id):
            # Standard error of the root mean square of n uniform draws: sqrt(E x^4 / (E x^2)^2 - 1) / (2 sqrt n).
            error = (9 / 5 - 1) ** 0.5 / (2 * example.noise.numel() ** 0.5)
            assert abs(ratio(example, 5) - 1) < 5 * error
    assert all(not call.noise.any() for call in run.calls if not (call.training and call.grad_enabled))


def test_the_demo_trains_and_reports(tmp_path):
    command = [SCRIPTS / "neftune", "demo", "--framework", "llamafactory", "--tiny", "--steps", "4"]
    place = tmp_path / AWKWARD
    place.mkdir()
    result = WARM.run(command, cwd=place, env={**os.environ, **ENVIRONMENT})
    folder = place / "neftune-demo"
    check_demo(result, folder / "llamafactory.yaml", folder / "trained")
