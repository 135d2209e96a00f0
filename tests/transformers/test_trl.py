"""TRL's own commands: the key alone, in flags and in YAML."""

import copy
import dataclasses
import os
import pickle
import runpy
import shutil
import sys
from pathlib import Path

import pytest
import torch
import transformers.trainer
import trl.scripts
import yaml
from accelerate.state import AcceleratorState
from datasets import Dataset
from neftune_transformers import NEFTuneCallback
from neftune_transformers.defaults import FromArguments
from neftune_trl.training import COMMANDS, arguments
from transformers import AutoTokenizer
from trl import ModelConfig, ScriptArguments, SFTConfig, SFTTrainer, TrlParser

from neftune_plugins import NEFTuneError, NoiseConfig, NoiseConfigError
from neftune_plugins.config import key
from tests.support.commands import (
    assert_healthy,
    break_each,
    checked,
    line_of,
)
from tests.support.probe import padding_noise, per_example, ratio
from tests.support.recorder import Recorder, Run, generated, neftune_hooks, read_run, trained
from tests.support.shell import arguments_of
from tests.support.texts import answer, question
from tests.support.warm import cold
from tests.transformers.driver import TransformersDriver, make_driver

ROOT = Path(__file__).parents[2]
SITE = Path(__file__).parent / "site"
SCRIPTS = Path(trl.scripts.__file__).parent
FOLDER = ROOT / "example_configs" / "trl"
EXAMPLES = [path for path in sorted(FOLDER.glob("*.yaml")) if (SCRIPTS / f"{path.stem}.py").exists()]
IS_OLD = not (SCRIPTS / "rloo.py").exists()
ON_A_CPU = ["--use_cpu", "--bf16", "false"]


@pytest.fixture(scope="module")
def driver() -> TransformersDriver:
    torch.set_num_threads(1)
    return make_driver()


@pytest.fixture(autouse=True)
def as_new(monkeypatch):
    """Each run has the Trainer's own defaults, and the folder in which the examples are run."""
    monkeypatch.setattr(transformers.trainer, "DEFAULT_CALLBACKS", list(transformers.trainer.DEFAULT_CALLBACKS))
    monkeypatch.setattr("trl.scripts.utils.os.environ", os.environ)
    monkeypatch.setenv("TRL_COMMAND", "")  # so that a file's `env` is undone
    monkeypatch.chdir(ROOT)
    AcceleratorState._reset_state(reset_partial_state=True)


def script(command: str, *words: object) -> Run:
    """What a process that `trl COMMAND` launches does, in this one."""
    recorder = Recorder()
    transformers.trainer.DEFAULT_CALLBACKS.append(recorder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [command, *map(str, words)])
        runpy.run_path(str(SCRIPTS / f"{command}.py"), run_name="__main__")
    return Run(calls=recorder.probe.calls, **recorder.record)


def fast(driver, folder: Path) -> list[object]:
    """Flags: two steps of the tiny model, on a CPU."""
    return ["--model_name_or_path", driver.model, "--output_dir", folder / "out", "--max_steps", 2, *ON_A_CPU]


def owners(run: Run) -> list[str]:
    """The packages that the NEFTune hooks of the first step came from."""
    return [hook.split(".")[0] for hook in neftune_hooks(run.steps[0]["hooks"])]


def assert_right(run: Run, driver, *, kind: str = "uniform") -> None:
    """Every training forward has the paper's noise, padding and all other forwards have none; one hook, ours."""
    assert owners(run) == ["neftune_plugins"]
    noised = trained(run)
    assert len(noised) >= 2
    rms = 1 if kind == "uniform" else 3**0.5
    for call in noised:
        assert not padding_noise(call, driver.pad_id).any()
        for example in per_example(call, driver.pad_id):
            spread = 9 / 5 if kind == "uniform" else 3
            error = (spread - 1) ** 0.5 / (2 * example.noise.numel() ** 0.5)
            assert abs(ratio(example, 5) / rms - 1) < 5 * error
    others = [call for call in run.calls if not (call.training and call.grad_enabled)]
    assert not any(call.noise.any() for call in others if call.noise is not None)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_train_with_noise(driver, path, tmp_path):
    more = []
    if path.stem == "grpo" and IS_OLD:  # it trains with a reward model alone
        reward = shutil.copytree(driver.model, tmp_path / "reward")
        names = ["input_ids", "attention_mask"]
        AutoTokenizer.from_pretrained(driver.model, model_input_names=names).save_pretrained(reward)
        more = ["--reward_model_name_or_path", reward]
    run = script(path.stem, "--config", path, *fast(driver, tmp_path), *more)
    assert_right(run, driver)
    if path.stem in ("grpo", "rloo"):
        assert generated(run)


def test_the_command_from_nothing_with_flags_over_yaml(driver, tmp_path):
    """`trl sft` parses, launches a process through accelerate, and that parses again."""
    paths = [str(SITE), str(ROOT), os.environ.get("PYTHONPATH")]
    env = {
        **os.environ,
        "NEFTUNE_TEST_RECORD_DIR": str(tmp_path),
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
    }
    words = ["--config", FOLDER / "sft.yaml", "--neftune_noise_type", "gaussian", *fast(driver, tmp_path)]
    command = [*arguments(FOLDER / "sft.yaml")[:2], *map(str, words)]
    process = cold(command, cwd=ROOT, env=env)
    assert process.returncode == 0, process.stdout
    assert_right(read_run(tmp_path), driver, kind="gaussian")
    saved = torch.load(tmp_path / "out" / "training_args.bin", weights_only=False)
    assert (type(saved).__name__, saved.neftune_noise_type) == ("SFTConfig", "gaussian")
    assert "is left to the Trainer's own hook" not in process.stdout


def test_the_trl_process_itself_refuses_a_wrong_value(driver, tmp_path):
    words = ["--config", str(FOLDER / "sft.yaml"), "--neftune_noise_alpha", "-1"]
    process = cold([*arguments(FOLDER / "sft.yaml")[:2], *words], cwd=ROOT, env=dict(os.environ))
    assert process.returncode != 0
    assert "neftune_noise_alpha: -1.0 must be finite and above 0" in process.stdout
    assert "Loading" not in process.stdout


WRONG_FLAGS = {
    "--neftune_noise_alpha=-1": "neftune_noise_alpha: -1.0 must be finite and above 0",
    "--neftune_nois_type=gaussian": "did you mean --neftune_noise_type",
    "--neftune_noise_type=gausian": "did you mean gaussian?",
    "--neftune_noise_seed=-1": "neftune_noise_seed: -1 must be an integer from 0",
    "--neft_alpha=5": "neftune_noise_alpha",
}
WRONG_YAML = {
    "neftune_noise_alpha: yes": "neftune_noise_alpha: True must be a number",
    "neftune_nois_alpha: 5": "did you mean neftune_noise_alpha?",
    "neftune_noise_type: gaussian": "neftune_noise_type without neftune_noise_alpha has no effect",
    "noisy_embedding_alpha: 5": "neftune_noise_alpha",
    "model_init_kwargs: {neftune_noise_alpha: 5}": "model_init_kwargs.neftune_noise_alpha: 5 has no effect there",
}


@pytest.mark.parametrize("flag", WRONG_FLAGS)
def test_wrong_flags_are_refused_before_the_model_loads(flag, tmp_path):
    with pytest.raises(NoiseConfigError, match=WRONG_FLAGS[flag].replace("?", r"\?")):
        script("sft", "--config", FOLDER / "sft.yaml", "--model_name_or_path", tmp_path / "no model", *ON_A_CPU, flag)


@pytest.mark.parametrize("line", WRONG_YAML)
def test_wrong_yaml_is_refused_before_the_model_loads(line, tmp_path):
    path = tmp_path / "cfg.yaml"
    path.write_text((FOLDER / "sft.yaml").read_text().replace("neftune_noise_alpha: 5", line))
    with pytest.raises(NoiseConfigError, match=WRONG_YAML[line].replace("?", r"\?")):
        script("sft", "--config", path, "--model_name_or_path", tmp_path / "no model", *ON_A_CPU)


@pytest.mark.parametrize("command", [path.stem for path in EXAMPLES])
def test_the_help_lists_the_keys(command, capsys):
    with pytest.raises(SystemExit):
        script(command, "--help")
    shown = capsys.readouterr().out
    for field in dataclasses.fields(NoiseConfig):
        assert f"--{key(field)}" in shown


def test_zero_is_no_noise(driver, tmp_path):
    words = ["--config", FOLDER / "sft.yaml", "--neftune_noise_alpha", 0, *fast(driver, tmp_path)]
    run = script("sft", *words)
    assert owners(run) == []
    assert not any(call.noise.any() for call in run.calls)


def test_without_the_key_nothing_is_there(driver, tmp_path):
    path = tmp_path / "cfg.yaml"
    path.write_text((FOLDER / "sft.yaml").read_text().replace("neftune_noise_alpha: 5", ""))
    run = script("sft", "--config", path, *fast(driver, tmp_path))
    assert owners(run) == []
    assert FromArguments not in transformers.trainer.DEFAULT_CALLBACKS


def test_the_switch_leaves_the_native_hook(driver, tmp_path, monkeypatch):
    monkeypatch.setenv("NEFTUNE_PLUGINS", "0")
    run = script("sft", "--config", FOLDER / "sft.yaml", *fast(driver, tmp_path))
    assert owners(run) == ["transformers"]


def parsed(driver, folder: Path, *words: object) -> SFTConfig:
    """The arguments of somebody's own script."""
    parser = TrlParser((ScriptArguments, SFTConfig, ModelConfig))
    words = (*fast(driver, folder), "--report_to", "none", *words)
    return parser.parse_args_and_config(list(map(str, words)))[1]


def test_a_script_with_the_parser_may_give_the_callback_itself(driver, tmp_path):
    config = parsed(driver, tmp_path, "--neftune_noise_alpha", 5)
    recorder = Recorder()
    data = Dataset.from_list([{"text": f"{question(i)} {answer(i, 1 + i % 5)}"} for i in range(16)])
    trainer = SFTTrainer(
        str(driver.model), args=config, train_dataset=data, callbacks=[NEFTuneCallback(type="gaussian"), recorder]
    )
    trainer.train()
    assert_right(Run(calls=recorder.probe.calls, **recorder.record), driver, kind="gaussian")
    assert not [one for one in trainer.callback_handler.callbacks if isinstance(one, FromArguments)]


def test_trainers_with_other_arguments_are_left_alone(driver, tmp_path):
    parsed(driver, tmp_path, "--neftune_noise_alpha", 5)
    recorder = Recorder()
    driver.trainer("trainer", {"neftune_noise_alpha": 5.0}, tmp_path, callbacks=[recorder], stock=True).train()
    assert owners(Run(**recorder.record)) == ["transformers"]


def test_the_arguments_are_pickled_and_copied(driver, tmp_path):
    """And so are those of the class that TRL itself has, beside them."""
    config = parsed(driver, tmp_path, "--neftune_noise_alpha", 5, "--neftune_noise_schedule", "cosine")
    loaded = pickle.loads(pickle.dumps(config, protocol=2))
    assert type(loaded) is SFTConfig
    assert loaded.neftune_noise_schedule == "cosine"
    assert pickle.loads(pickle.dumps(loaded)).to_dict() == loaded.to_dict()
    for copied in (copy.copy(config), copy.deepcopy(config), dataclasses.replace(config, max_steps=3)):
        assert type(copied) is type(config)
        assert copied.neftune_noise_schedule == "cosine"


def test_the_doctor_finds_it_healthy():
    assert_healthy("trl")


def test_check_knows_the_right_and_the_wrong(tmp_path):
    good = (FOLDER / "sft.yaml").read_text()
    launched = tmp_path / "launched.yaml"
    launched.write_text(good.replace("  TRL_COMMAND: sft", "  A: b") + "num_processes: 2\naccelerate_config: zero3\n")
    unknown = good.replace("max_length:", "max_len:")
    others = {
        "unknown_key": (unknown, line_of(unknown, "max_len"), "max_len: neither trl sft nor accelerate launch"),
        "other_command": (
            good.replace("COMMAND: sft", "COMMAND: ppo"),
            5,
            "env.TRL_COMMAND: 'ppo' is no command of TRL",
        ),
    }
    broken = break_each(good, tmp_path, ".yaml", others)
    broken.pop(tmp_path / "quoted.yaml", None)  # text that says a number is one
    status, results = checked(*EXAMPLES, launched, *broken)
    assert status == 1
    for result in results[: len(EXAMPLES) + 1]:
        assert (result["status"], result["problem"]) == (0, ""), result
        assert result["framework"].startswith("trl ")
        [model] = result["models"]
        assert model["keys"]["neftune_noise_alpha"]["value"] == 5
    for result in results[len(EXAMPLES) + 1 :]:
        _, message = broken[Path(result["file"])]
        assert result["status"] == 1, result
        assert message in result["problem"] or "neftune" in message, result


def test_a_sweep_runs_the_command_that_the_file_names(tmp_path):
    for path in FOLDER.glob("*.yaml"):
        assert arguments(path)[1:] == [path.stem, "--config", str(path)]
    unnamed = tmp_path / "cfg.yaml"
    unnamed.write_text("model_name_or_path: a\n")
    assert arguments(unnamed)[1] == "sft"
    unnamed.write_text(yaml.safe_dump({"env": {"TRL_COMMAND": "ppo"}}))
    with pytest.raises(NEFTuneError, match=r"env.TRL_COMMAND: 'ppo' is no comm"):
        arguments(unnamed)


def test_the_command_lines_that_the_pages_show_are_those_that_train_the_examples():
    for command, *words in arguments_of("trl"):
        assert command in COMMANDS
        assert words[0] == "--config" and (ROOT / words[1]).exists()
