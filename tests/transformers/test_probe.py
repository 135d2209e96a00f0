"""`neftune probe` on Trainer and TRL, in one process and in two."""

import json
import os
import re
import sys
from pathlib import Path

import pytest
import yaml
from neftune_transformers.tiny import make_tiny_model

from benchmarks.probe import command
from tests.support.documentation import shown
from tests.support.probing import assert_is_the_native_hooks, assert_is_the_papers, probed
from tests.support.texts import answer, question

SCRIPTS = Path(sys.executable).parent


def test_a_script_with_the_callback(tmp_path):
    ended, found = probed(command("transformers", "trainer", tmp_path, native=False), tmp_path)
    assert_is_the_papers(ended, found)
    assert (found["alpha"], found["alpha_source"]) == (5, "the trainer's arguments")


def test_a_script_with_the_native_hook(tmp_path):
    ended, found = probed(command("transformers", "trainer", tmp_path, native=True), tmp_path, NEFTUNE_PLUGINS="0")
    assert_is_the_native_hooks(ended, found)
    assert_shows(ended.stdout, shown("docs/proof.md", "text"))


def assert_shows(output: str, page: str) -> None:
    """The same words, and numbers that differ by rounding and the draw alone."""
    printed = output[output.rindex("3 optimisation steps") :]
    words = [re.split(r"[\s()]+", text.strip()) for text in (printed, page)]
    for one, other in zip(*words, strict=True):
        if re.fullmatch(r"\d\.\d+", other):
            assert float(one) == pytest.approx(float(other), abs=0.03), printed
        else:
            assert one == other, printed


def test_a_reference_without_adapters(tmp_path):
    """DPO with LoRA: the native hook noises the reference, which is the model with its adapters off."""
    verdicts = {}
    for native in (True, False):
        ended, found = probed(command("transformers", "dpo_lora", tmp_path, native=native), tmp_path)
        [reference] = [kind for kind in found["kinds"] if kind["caller"] == "reference"]
        assert (reference["adapters"], reference["mode"], reference["grad"]) == ("off", "training", False)
        verdicts[native] = any(example["ratio"] for example in reference["examples"]), ended.returncode
    assert verdicts == {True: (True, 1), False: (False, 0)}


def trl(folder: Path, **more: object) -> list[str]:
    rows = [{"prompt": question(i), "completion": answer(i, 1 + i // 2 % 4)} for i in list(range(12)) * 2]
    (folder / "rows").mkdir()
    (folder / "rows" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "model_name_or_path": str(make_tiny_model(folder / "model")),
        "dataset_name": str(folder / "rows"),
        "output_dir": str(folder / "out"),
        "neftune_noise_alpha": 5,
        "per_device_train_batch_size": 4,
        "max_steps": 6,
        "learning_rate": 0.001,
        "bf16": False,
        "use_cpu": True,
        "report_to": "none",
        **more,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return [str(SCRIPTS / "trl"), "sft", "--config", str(folder / "config.yaml")]


def path() -> str:

    return f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}"


def test_trl_sft(tmp_path):
    """It starts `accelerate launch` inside of its own process."""
    ended, found = probed(trl(tmp_path), tmp_path, PATH=path())
    assert_is_the_papers(ended, found)
    assert found["alpha_source"] == str(tmp_path / "config.yaml")


def test_two_processes(tmp_path):
    """Both end at the same step, and the launcher with them."""
    script = tmp_path / "train.py"
    script.write_text("from benchmarks.probe import main\nmain(['--train', 'trainer'])\n")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", script]
    ended, found = probed(torchrun, tmp_path, ACCELERATE_USE_CPU="true")
    assert_is_the_papers(ended, found)
    assert found["processes"] == 2
    [trained] = found["kinds"]
    assert (trained["model"], trained["forwards"], len(trained["examples"])) == ("LlamaForCausalLM", 6, 24)


def test_accelerate_launch(tmp_path):
    launch = [
        str(SCRIPTS / "accelerate"),
        "launch",
        "--cpu",
        "--num_processes=1",
        "-m",
        "benchmarks.probe",
        "--train",
        "trainer",
    ]
    ended, found = probed(launch, tmp_path)
    assert_is_the_papers(ended, found)
