"""The adapter in ms-swift: its command line, what it refuses, multimodal templates and packed rows, several processes,
what a run leaves behind, our callback, the configurations that we show, and the demo."""

import dataclasses
import functools
import importlib
import inspect
import json
import os
import re
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from neftune_plugins import NoiseConfig, NoiseConfigError
from neftune_plugins.config import key, looks_like_ours
from neftune_plugins.noise.layout import read_layout
from tests.support.bad_values import BAD_KEYS, MISPLACED
from tests.support.demo import AWKWARD, check_demo
from tests.support.documentation import shown
from tests.support.logs import LineHandler
from tests.support.noise import OURS, assert_papers_noise, assert_specified_noise, neftune_modules, noisy_per_step
from tests.support.recorder import KeepingRecorder, Run, neftune_hooks, remembered, trained
from tests.support.texts import answer, question
from tests.support.warm import cold
from tests.swift.configs import LORA, base_config, command
from tests.swift.driver import make_driver
from tests.swift.multimodal import make_tiny_qwen2_vl, write_image
from tests.swift.runs import (
    ENVIRONMENT,
    PLUGIN,
    ROOT,
    SCRIPTS,
    WARM,
    clean_process,
    recorded_by,
    swift_cli,
    swift_torchrun,
    words_of,
)

KEYS = {"neftune_noise_alpha": 5}
ZERO = "neftune_noise_alpha: 0 asks for no noise"
APPLIED = "neftune_noise_alpha: 5 is applied by neftune-plugins, the native hook is off"


@pytest.fixture(scope="module")
def driver():
    torch.set_num_threads(1)
    return make_driver()


@pytest.fixture(scope="module")
def run(driver, tmp_path_factory):
    return remembered(driver.train, tmp_path_factory)


def launch(words: list[str], folder: Path, name: str = "sft") -> Run:
    """What `swift sft` does with these arguments, in this process."""
    from swift import pipelines

    recorder, lines = KeepingRecorder(), LineHandler()
    main = {"sft": "sft_main", "pt": "pretrain_main", "rlhf": "rlhf_main"}[name]
    with recorded_by(recorder, lines):
        getattr(pipelines, main)([*words, "--callbacks", "recorder", "--output_dir", str(folder / "out")])
    recorder.finish()
    return Run(calls=recorder.probe.calls, **recorder.record, output="\n".join(lines.lines), saved=folder / "out")


# --- The command line ------------------------------------------------------------------------------------------------


def test_the_command_line_with_one_key(driver, run, tmp_path):
    cli = swift_cli(base_config(driver.model, "sft") | KEYS, tmp_path, execute=cold)
    assert cli.returncode == 0, cli.output
    assert cli.output.count(APPLIED) == 1
    assert_specified_noise(cli, driver)
    assert [hook for hook in cli.hooks_after if "neftune" in hook] == []
    assert cli.weights == run("sft", **KEYS).weights
    logged = [json.loads(line) for line in (tmp_path / "out" / "logging.jsonl").read_text().splitlines()]
    assert [line["neftune/sequences"] for line in logged if "neftune/alpha" in line] == [4] * 5


@pytest.mark.parametrize("mode", ["sft", "pt", "dpo", "infonce"])
def test_the_key_on_the_command_line(driver, run, mode, tmp_path):
    words = words_of(base_config(driver.model, mode))
    flagged = launch([*words, "--neftune_noise_alpha", "5"], tmp_path, command(mode))
    assert flagged.weights == run(mode, **KEYS).weights is not None
    assert flagged.output.count(APPLIED) == 1


def test_companion_keys_on_the_command_line(driver, tmp_path):
    words = words_of(base_config(driver.model, "sft"))
    given = ["--neftune-noise-alpha", "5", "--neftune_noise_type", "gaussian", "--neftune_noise_sched", "cosine"]
    assert_specified_noise(launch([*words, *given], tmp_path), driver, kind="gaussian", schedule="cosine")


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
def test_flags_of_another_type_are_refused_by_the_parser(driver, flags, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        launch([*words_of(base_config(driver.model, "sft")), *flags], tmp_path)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("mode", ["sft", "dpo"])
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--neftune_noise_alpha=-1"], "neftune_noise_alpha: -1.0 must be finite and above 0"),
        (["--neftune_noise_alpha", "nan"], "neftune_noise_alpha: nan must be finite and above 0"),
        (["--neftune_noise_type", "gaussian"], "neftune_noise_type without neftune_noise_alpha has no effect"),
        (["--neftune_noise_alhpa", "5"], "there is no such option (value 5); did you mean --neftune_noise_alpha?"),
        (["--neft_alpha=5"], "--neft_alpha: there is no such option (value 5); did you mean --neftune_noise_alpha?"),
        (["neftune_noise_alpha=5"], "neftune_noise_alpha=5 is not read; write --neftune_noise_alpha 5"),
        (["--model_kwargs", '{"neftune_noise_alpha": 5}'], "model_kwargs.neftune_noise_alpha: 5 has no effect there"),
    ],
    ids=str,
)
def test_bad_flags_stop_the_run_before_the_model_loads(driver, mode, flags, message, tmp_path):
    """Also where ms-swift is told to drop what it does not know."""
    words = [*words_of(base_config(driver.model, mode)), "--ignore_args_error", "true"]
    with driver.loads_model() as loaded, pytest.raises(NoiseConfigError, match=re.escape(message)):
        launch([*words, *flags], tmp_path, command(mode))
    assert loaded == []


# The items of a list are words of their own, which ms-swift writes as Python does, not as JSON.
UNREAD = [keys for keys, _ in [*BAD_KEYS, *MISPLACED] if not isinstance(next(iter(keys.values())), list)]


@pytest.mark.parametrize("keys", UNREAD, ids=lambda keys: str(keys)[:50])
def test_keys_that_nothing_reads_stop_the_run(driver, keys, tmp_path):
    words = words_of(base_config(driver.model, "sft") | {"ignore_args_error": True} | keys)
    # The parser itself refuses --neftune, which may be short for several of our options.
    with driver.loads_model() as loaded, pytest.raises((NoiseConfigError, SystemExit)):
        launch(words, tmp_path)
    assert loaded == []


def test_zero_is_the_run_without_noise(driver, run, tmp_path):
    for given in ({"neftune_noise_alpha": 0}, {"neftune_noise_alpha": 0.0, "neftune_noise_type": "gaussian"}):
        found = launch(words_of(base_config(driver.model, "sft") | given), tmp_path)
        assert not any(call.noise.any() for call in found.calls)
        assert not neftune_hooks(found.steps[0]["hooks"])
        assert found.weights == run("sft").weights is not None
        assert found.output.count(ZERO) == 1
    assert ZERO not in run("sft").output


@pytest.mark.parametrize("name", ["SftArguments", "PretrainArguments", "RLHFArguments"])
def test_no_argument_of_swift_looks_like_ours(name):
    from swift import arguments

    names = [field.name for field in dataclasses.fields(getattr(arguments, name))]
    assert len(names) > 200
    assert set(filter(looks_like_ours, names)) == {key(field) for field in dataclasses.fields(NoiseConfig)}


@pytest.mark.parametrize("name", ["sft", "pt", "rlhf"])
def test_the_help_has_each_key_once(name, tmp_path, capsys):
    from swift.arguments import SftArguments

    with pytest.raises(SystemExit) as caught:
        launch(["--help"], tmp_path, name)
    assert caught.value.code in (0, None)
    text = capsys.readouterr().out
    for option in map(key, dataclasses.fields(NoiseConfig)):
        assert len(re.findall(rf"^ +--{option}\b", text, re.MULTILINE)) == 1
        assert " ".join(text.split()).count(SftArguments.__dataclass_fields__[option].metadata["help"]) == 1


def test_whatever_is_imported_first(tmp_path):
    """`import swift` itself imports torch."""
    for first in ("swift.trainers", "trl"):  # other tests begin with torch, and the command line with swift
        code = (
            f"import {first}\nfrom swift.arguments import RLHFArguments\nfrom swift.rlhf_trainers import DPOConfig\n"
            "import swift.trainers.mixin, transformers.trainer\nfrom neftune_plugins.autoload import unpatched\n"
            "names = [one.__module__ for one in transformers.trainer.DEFAULT_CALLBACKS]\n"
            "assert unpatched('neftune_swift') == '' and names.count('neftune_swift.callback') == 1, names\n"
            "assert all('neftune_noise_type' in one.__dataclass_fields__ for one in (RLHFArguments, DPOConfig))"
        )
        result = cold([sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, **ENVIRONMENT})
        assert result.returncode == 0, (first, result.stdout)


# --- What is refused -------------------------------------------------------------------------------------------------


def test_sequence_parallelism_is_refused_before_the_model_loads(driver, tmp_path):
    message = r"^sequence_parallel_size: 2 cannot be"
    for mode in ("sft", "dpo"):
        config = base_config(driver.model, mode) | {"sequence_parallel_size": 2}
        with driver.loads_model() as loaded, pytest.raises(NoiseConfigError, match=message):
            launch(words_of(config | KEYS), tmp_path, command(mode))
        assert loaded == []


def test_the_tuner_neftune_is_refused_before_the_model_loads(driver, tmp_path):
    with driver.loads_model() as loaded, pytest.raises(NoiseConfigError, match=r"beside tuner_type: neftune"):
        driver.train("sft", KEYS | {"tuner_type": "neftune"}, folder=tmp_path)
    assert loaded == []


@pytest.fixture
def noisy_tuner():
    """A tuner plugin that adds the noise of `swift.tuners.NEFTune`."""
    from swift.tuner_plugin import Tuner, tuners_map
    from swift.tuners import Swift
    from swift.tuners.neftune import NEFTuneConfig

    class NoisyTuner(Tuner):
        @staticmethod
        def prepare_model(args, model):
            return Swift.prepare_model(model, NEFTuneConfig(noise_alpha=5))

        @staticmethod
        def from_pretrained(model, model_id, **kwargs):
            raise NotImplementedError

        @staticmethod
        def save_pretrained(model, save_directory, **kwargs):
            raise NotImplementedError

    tuners_map["noisy"] = NoisyTuner
    yield "noisy"
    del tuners_map["noisy"]


def test_the_tuner_swift_neftune_is_refused_beside_ours(driver, noisy_tuner, tmp_path):
    alone = driver.train("sft", {"tuner_type": noisy_tuner}, folder=tmp_path / "alone")
    assert all(call.noise.any() for call in alone.calls)
    with pytest.raises(NoiseConfigError, match=r"swift\.tuners\.NEFTune.*embed_tokens"):
        driver.train("sft", KEYS | {"tuner_type": noisy_tuner}, folder=tmp_path / "both")


# --- Several processes -----------------------------------------------------------------------------------------------


def test_two_processes(driver, run, tmp_path):
    # Without use_cpu, accelerate does not average the gradients of processes on CPUs.
    config = base_config(driver.model, "sft") | KEYS | {"max_steps": 2, "ddp_backend": "gloo", "use_cpu": True}
    ranks = swift_torchrun(config, tmp_path, cold)
    assert ranks[0].returncode == 0, ranks[0].output
    assert ranks[0].output.count(APPLIED) == 1  # said by one
    seen = [assert_specified_noise(rank, driver, num_steps=2) for rank in ranks]
    assert seen[0] != seen[1]
    assert ranks[0].weights == ranks[1].weights is not None
    for rank in ranks:
        assert [hook for hook in rank.hooks_after if "neftune" in hook] == []


# --- What a run leaves behind ----------------------------------------------------------------------------------------


class TrainingStoppedError(Exception):
    pass


@pytest.mark.parametrize("mode", ["sft", "dpo_lora"])
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


def test_export_and_inference_are_untouched(driver, tmp_path):
    from swift import arguments, pipelines

    for name in ("ExportArguments", "InferArguments"):
        fields = getattr(arguments, name).__dataclass_fields__
        assert not {key(field) for field in dataclasses.fields(NoiseConfig)} & set(fields)
    adapter = driver.train("lora", KEYS, folder=tmp_path, save=True).saved
    exported, common = tmp_path / "exported", ["--model_type", "llama", "--torch_dtype", "float32", "--use_hf", "true"]
    with clean_process(LineHandler()):
        merging = ["--adapters", str(adapter), "--merge_lora", "true", "--output_dir", str(exported)]
        pipelines.export_main(["--model", str(driver.model), "--template", "chatml", *common, *merging])
    base, merged = load_file(driver.model / "model.safetensors"), load_file(exported / "model.safetensors")
    lora = load_file(adapter / "adapter_model.safetensors")
    assert merged.keys() == base.keys()
    for name, weight in merged.items():
        module, want = f"base_model.model.{name.removesuffix('.weight')}", base[name]
        if f"{module}.lora_A.weight" in lora:
            scale = LORA["lora_alpha"] / LORA["lora_rank"]
            want = want + scale * lora[f"{module}.lora_B.weight"] @ lora[f"{module}.lora_A.weight"]
        torch.testing.assert_close(weight, want, rtol=0, atol=1e-6)

    asked = tmp_path / "asked.jsonl"
    asked.write_text(json.dumps({"messages": [{"role": "user", "content": "What did you see?"}]}) + "\n")
    with clean_process(LineHandler()):
        given = ["--val_dataset", str(asked), "--max_new_tokens", "4", "--result_path", str(tmp_path / "result.jsonl")]
        (result,) = pipelines.infer_main(["--model", str(exported), "--template", "chatml", *common, *given])
    assert "response" in result


# --- Switched off, and our callback ----------------------------------------------------------------------------------

PACKAGES = ["neftune_plugins.autoload", "neftune_plugins", "neftune_swift", "neftune_transformers"]


@pytest.mark.parametrize("variable", ["NEFTUNE_PLUGINS", "TORCH_DEVICE_BACKEND_AUTOLOAD"])
def test_switched_off_swift_is_as_it_comes(driver, run, variable, tmp_path):
    config, stock = base_config(driver.model, "sft") | KEYS, run("sft", stock=True, **KEYS)
    found = swift_cli(config, tmp_path, env={variable: "0"}, execute=cold)
    assert found.returncode == 0, found.output
    assert [hook.rsplit(".", 1)[1] for hook in neftune_hooks(found.steps[0]["hooks"])] == [driver.native_hook]
    assert (found.losses, found.weights) == (stock.losses, stock.weights)


def test_without_the_autoload_the_plugin_of_the_page_does_what_the_key_does_with_it(driver, run, tmp_path):
    """A test of the command line cannot have two files of `--external_plugins` with callbacks of its own."""
    plugin = tmp_path / "plugin.py"
    plugin.write_text(shown("docs/swift.md", "python") + PLUGIN.read_text())
    config = base_config(driver.model, "sft") | KEYS
    config |= {"external_plugins": [str(plugin)], "callbacks": ["neftune", "recorder"]}
    found = swift_cli(config, tmp_path / "off", env={"TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}, execute=cold)
    assert found.returncode == 0, found.output
    assert_specified_noise(found, driver)
    assert found.weights == run("sft", **KEYS).weights


@pytest.mark.parametrize("arguments", [{}, {"alpha": 5}], ids=["the key", "the same alpha"])
def test_our_callback_is_one_noise(driver, run, arguments, tmp_path):
    from neftune_swift import NEFTuneCallback
    from swift.callbacks import callbacks_map

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(callbacks_map, "neftune", functools.partial(NEFTuneCallback, **arguments))
        found = driver.train("sft", KEYS | {"callbacks": ["neftune", "recorder"]}, folder=tmp_path)
    assert_specified_noise(found, driver)
    assert found.weights == run("sft", **KEYS).weights


def test_training_arguments_load_where_the_package_is_absent(driver, tmp_path):
    saved = driver.train("dpo_lora", KEYS | {"neftune_noise_type": "gaussian"}, folder=tmp_path, save=True).saved
    code = (
        "import os, sys; os.environ['TORCH_DEVICE_BACKEND_AUTOLOAD'] = '0';"
        f"sys.modules.update(dict.fromkeys({PACKAGES})); import torch;"
        f"loaded = torch.load({str(saved / 'training_args.bin')!r}, weights_only=False);"
        "assert type(loaded).__qualname__ == 'DPOConfig' and loaded.neftune_noise_alpha == 5, loaded"
    )
    result = cold([sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, **ENVIRONMENT})
    assert result.returncode == 0, result.stdout


# --- Training methods ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "native"), [("dpo_lora", 2), ("kto", 2), ("kto_lora", 4), ("rm", 1)])
def test_one_forward_of_a_step_is_noisy(run, mode, native):
    """Of policy, reference and KL forwards, which are the same modules."""
    assert noisy_per_step(run(mode, **KEYS, max_steps=2)) == 1
    assert noisy_per_step(run(mode, stock=True, **KEYS, max_steps=2)) == native


@pytest.fixture(scope="module")
def template(driver):
    from swift.model import get_processor
    from swift.template import get_template

    processor = get_processor(str(driver.model), model_type="llama", use_hf=True)
    made = get_template(processor, template_type="chatml", padding_free=True)
    made.set_mode("train")
    return made


def test_the_layout_of_padding_free_batches_and_packed_rows(driver, template):
    """They need flash attention to train. A row is without padding, and the positions separate its examples."""
    chats = [
        [{"role": "user", "content": question(i)}, {"role": "assistant", "content": answer(i, 1 + i)}] for i in range(3)
    ]
    encoded = [template.encode({"messages": chat}, return_length=True) for chat in chats]
    ids = [one["input_ids"] for one in encoded]
    free = template.data_collator(list(encoded))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(template, "packing", True)  # then an item of the dataset is a list of examples
        packed = template.data_collator([list(encoded)])
    for batch in (free, packed):
        assert batch["input_ids"].shape == (1, sum(map(len, ids))) and "attention_mask" not in batch
        layout = read_layout({**batch, "pad_token_id": driver.pad_id})
        assert layout.real_BL.all()
        assert layout.position_BL[0].tolist() == [i for example in ids for i in range(len(example))]
        assert layout.length_BL[0].tolist() == [len(example) for example in ids for _ in example]
        assert layout.example_BL[0].unique().numel() == 3


@pytest.fixture(scope="module")
def qwen2_vl(tmp_path_factory) -> Path:
    return make_tiny_qwen2_vl(tmp_path_factory.mktemp("qwen2_vl") / "model")


@pytest.mark.parametrize("tuner", ["full", "lora"])
@pytest.mark.parametrize("images", [False, True], ids=["text alone", "images"])
def test_a_multimodal_template_that_looks_tokens_up_before_the_model(driver, qwen2_vl, images, tuner, tmp_path):
    """Its hook gives the model embeddings with the images' features in them: the audit compares what enters the first
    block with the specification, and stops a run that is not so."""
    from swift import SftArguments, sft_main

    rows = [
        {"messages": [{"role": "user", "content": question(i)}, {"role": "assistant", "content": answer(i, 1 + i % 4)}]}
        for i in range(12)
    ]
    for row in rows[::2] if images else []:
        row["messages"][0]["content"] = "<image>" + row["messages"][0]["content"]
        row["images"] = [str(write_image(tmp_path / "image.png"))]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = base_config(driver.model, "sft") | {"model": str(qwen2_vl), "model_type": "qwen2_vl", "max_steps": 2}
    config |= {"template": "qwen2_vl", "dataset": [str(data)], "tuner_type": tuner, "output_dir": str(tmp_path / "out")}
    with clean_process(LineHandler()):
        log = sft_main(SftArguments(**config, **KEYS, neftune_audit="stop"))["log_history"]
    logged = [entry for entry in log if "neftune/alpha" in entry]
    assert len(logged) == 2
    paper = 5 / 3**0.5
    for entry in logged:
        assert entry["neftune/sequences"] == 4
        assert entry["neftune/noise_norm"] == pytest.approx(entry["neftune/noise_norm_expected"], rel=0.03)
    # Tokens of images have no noise, so that an example's norm is below the paper's.
    assert (logged[0]["neftune/noise_norm_expected"] < 0.9999 * paper) == images


# --- The examples, and the demo --------------------------------------------------------------------------------------

FOLDER = ROOT / "example_configs" / "swift"


@pytest.mark.parametrize("path", [path for path in sorted(FOLDER.glob("*.yaml")) if path.stem != "packing"])
def test_examples_train_with_noise(driver, path, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    name = path.read_text().split()[2]  # the command in its first line
    config = yaml.safe_load(path.read_text()) | {"model": str(driver.model), "max_steps": 2}
    run = launch(words_of(config | {"dataloader_num_workers": 0}), tmp_path, name)
    assert neftune_hooks(run.steps[0]["hooks"]) == OURS
    assert len(trained(run)) == 2
    assert_papers_noise(trained(run), driver.pad_id)
    assert all(not call.noise.any() for call in run.calls if not (call.training and call.grad_enabled))


def test_the_demo_trains_and_reports(tmp_path):
    place = tmp_path / AWKWARD
    place.mkdir()
    demo = [SCRIPTS / "neftune", "demo", "--framework", "swift", "--tiny", "--steps", "4"]
    result = WARM.run(demo, cwd=place, env={**os.environ, **ENVIRONMENT})
    folder = place / "neftune-demo"
    check_demo(result, folder / "swift.yaml", folder / "trained" / "checkpoint-4")


def test_the_autoload_page_names_the_modules(tmp_path):
    page = (ROOT / "docs" / "autoload.md").read_text()
    source = inspect.getsource(importlib.import_module("neftune_swift.autoload"))
    names = re.findall(r'"(swift\.[\w.]+)"', source)
    assert len(names) == 5 and all(f"`{name}`" in page for name in names)
