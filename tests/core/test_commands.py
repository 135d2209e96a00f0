"""`neftune doctor`, `check`, `frameworks` and `noise-types`, with a small framework that is healthy or broken."""

import dataclasses
import html
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import pytest

from neftune_plugins import NoiseConfig
from neftune_plugins.commands.checked import Checked, report
from neftune_plugins.config import key
from tests.support.commands import neftune, on_a_terminal
from tests.support.documentation import ROOT, shown
from tests.support.little import PLUGIN, distribution


def findings(environment: dict[str, str], about: str = "little") -> tuple[int, dict[str, dict]]:
    """Exit status of the doctor, and what it found about one thing."""
    result = neftune("doctor", "--json", **environment)
    report = json.loads(result.stdout)
    assert report["status"] == result.returncode
    return result.returncode, {one["what"]: one for one in report["findings"] if one["about"] == about}


def test_the_doctor_on_a_healthy_framework(little):
    status, found = findings(little())
    assert status == 0
    assert {name: (one["state"], one["found"]) for name, one in found.items()} == {
        "little": ("ok", "1.5, tested with <2,>=1"),
        "import": ("ok", "little"),
        "adapter": ("ok", "by hand"),
        "native hook": ("info", "little:hook, turned off while the adapter adds its noise"),
    }


@pytest.mark.parametrize(
    ("module", "problem"),
    [
        ("raise RuntimeError('compiled for\\nanother torch')", "little: RuntimeError: compiled for another torch"),
        ("import absent_module", "little: ModuleNotFoundError: No module named 'absent_module'"),
        ("import os, sys; print('last words'); sys.stdout.flush(); os._exit(9)", "ended with status 9: last words"),
    ],
    ids=["raises", "lacks a module", "crashes"],
)
def test_the_doctor_on_a_framework_that_does_not_import(little, module, problem):
    status, found = findings(little(module))
    assert status == 1
    assert (found["import"]["state"], problem in found["import"]["found"]) == ("wrong", True)
    assert found["import"]["remedy"] == 'pip install --force-reinstall "little-adapter[little]"'


def test_the_doctor_on_a_release_that_is_not_tested(little, tmp_path):
    """What goes with that release alone has to be changed too."""
    environment = little("raise RuntimeError('too new')", version="2.0")
    distribution(tmp_path / "site", "little-audio", "2.0", ("little==2.0",))
    status, found = findings(environment)
    assert status == 1
    assert found["little"]["found"] == "2.0, tested with <2,>=1"
    remedy = 'pip install "little-adapter[little]" little-audio'
    assert found["little"]["remedy"] == found["import"]["remedy"] == remedy


def test_the_doctor_on_an_adapter_that_is_not_active(little):
    status, found = findings(little("patched = False"))
    assert status == 1
    assert "little is not patched" in found["adapter"]["found"]
    assert found["native hook"]["found"] == "this version has none"


@pytest.mark.parametrize(
    ("variable", "value", "why"),
    [
        ("NEFTUNE_PLUGINS", "0", ""),
        ("TORCH_DEVICE_BACKEND_AUTOLOAD", "0", ""),
        ("TORCH_DEVICE_BACKEND_AUTOLOAD", "true", ", and torch treats every value except 1 as off"),
        ("TORCH_DEVICE_BACKEND_AUTOLOAD", "", ", and torch treats every value except 1 as off"),
    ],
)
def test_the_doctor_tells_what_is_switched_off(little, variable, value, why):
    environment = little() | {variable: value}
    status, found = findings(environment, "environment")
    assert status == 1
    said = f"off: {variable}={value}{why}"
    assert (found["autoload"]["found"], found["autoload"]["remedy"]) == (said, f"unset {variable}")
    if variable == "NEFTUNE_PLUGINS":
        assert findings(environment)[1]["adapter"]["remedy"] == "unset NEFTUNE_PLUGINS"


def test_torch_takes_everything_but_1_as_off():
    """As the doctor says."""
    script = "import sys, torch; print('neftune_ludwig.autoload' in sys.modules)"
    for value, loaded in {"1": True, "0": False, "true": False, "": False}.items():
        environment = {**os.environ, "TORCH_DEVICE_BACKEND_AUTOLOAD": value}
        result = subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
        )
        assert result.stdout.strip() == str(loaded), value


@pytest.mark.parametrize(("variable", "value"), [("NEFTUNE_PLUGINS", "1"), ("TORCH_DEVICE_BACKEND_AUTOLOAD", "1")])
def test_the_doctor_tells_what_is_on(little, variable, value):
    assert findings(little() | {variable: value}, "environment")[1]["autoload"]["found"] == "on"


def test_the_doctor_on_a_plugin_that_does_not_load(little):
    status, found = findings(little(plugin="import absent_module"), "environment")
    assert status == 1
    assert "little of little-adapter does not load" in found["plugin"]["found"]
    assert "No module named 'absent_module'" in found["plugin"]["found"]
    assert found["plugin"]["remedy"] == "update it, or pip uninstall little-adapter"


def test_the_doctor_on_two_plugins_with_one_name(little, tmp_path):
    environment = little()
    distribution(tmp_path / "site", "tiny-adapter", "1.0", points="[neftune_plugins]\ntiny = tiny_adapter\n")
    (tmp_path / "site" / "tiny_adapter.py").write_text(PLUGIN)
    status, found = findings(environment, "environment")
    assert status == 1
    assert found["plugin"]["found"] == "ValueError: two plugins provide a framework named 'little'"
    assert re.fullmatch(r"update it, or pip uninstall .*little-adapter.* or tiny-adapter", found["plugin"]["remedy"])


def test_the_other_commands_point_at_a_plugin_that_does_not_load(little):
    result = neftune("noise-types", **little(plugin="import absent_module"))
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("neftune: a plugin does not work: little_adapter: ModuleNotFoundError: No module")
    assert result.stderr.endswith("`neftune doctor` says what to do\n")


def test_a_torch_that_does_not_load(tmp_path):
    (tmp_path / "torch.py").write_text("raise OSError('libtorch_cpu.so: cannot open shared object file')")
    environment = {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    exact = f'"torch=={version("torch")}"'
    status, found = findings(environment, "environment")
    assert status == 1
    assert found["torch"]["found"].endswith(
        "does not load: torch: OSError: libtorch_cpu.so: cannot open shared object file"
    )
    assert found["torch"]["remedy"] == f"pip install --force-reinstall {exact}"
    listing = neftune("frameworks", **environment)
    assert (listing.returncode, listing.stdout) == (2, "")
    assert listing.stderr.startswith(f"neftune: torch {version('torch')} does not load: torch: OSError: libtorch")
    assert listing.stderr.endswith(f"; remedy: {found['torch']['remedy']}\n")
    assert neftune("--help", **environment).returncode == 0  # which does not wait for torch


def test_the_listings_have_those_of_plugins(little):
    environment = little()
    rows = [line.split() for line in neftune("frameworks", **environment).stdout.splitlines()]
    assert ["little", "1.5", "<2,>=1", "little-adapter"] in rows
    assert {row[0] for row in rows} >= {"axolotl", "ludwig", "llamafactory", "swift", "transformers"}
    listing = neftune("noise-types").stdout
    rows = [line.split() for line in listing.splitlines()]
    assert listing.startswith(shown("docs/commands.md", "text", 4))  # users do not have the tests' example plugin
    assert {row[0]: (row[1], row[-1]) for row in rows[1:]} == {
        "uniform": ("0.5774", "neftune-plugins"),
        "gaussian": ("1.0000", "neftune-plugins"),
        "bernoulli": ("1.0000", "neftune-plugins"),
        "triangular": ("0.4082", "neftune-triangular"),
    }


CONFIG = """\
# a comment
seed: 7
little_model: m
noise:
  neftune_noise_alpha: 5
  neftune_noise_type: gaussian
"""

RIGHT = {
    "gaussian": CONFIG,
    "padded": CONFIG.replace("gaussian", "uniform") + "  neftune_noise_length: padded\n",
    "falling": CONFIG.replace("seed: 7\n", "") + "  neftune_noise_schedule: linear\n",
    "zero": CONFIG.replace("alpha: 5", "alpha: 0"),
    "quiet": "little_model: m\nnoise: {}\n",
    "idle": "little_model: m\nnoise: {}\nepochs: 0\n",
    "noted": "seed: 1\n" + CONFIG,
    "json": json.dumps({"little_model": "m", "noise": {"neftune_noise_alpha": 5}}),
}
# Each with the exit status, the line and the message.
WRONG = {
    "negative": (CONFIG.replace("alpha: 5", "alpha: -1"), 1, 5, "neftune_noise_alpha: -1 must be finite and above 0"),
    "value": (CONFIG.replace("gaussian", "gausian"), 1, 6, "did you mean gaussian?"),
    "key": (CONFIG.replace("type", "tipe"), 1, 6, "did you mean neftune_noise_type?"),
    "theirs": (CONFIG.replace(": m", ": gone"), 1, 3, "little_model is gone"),
    "no_yaml": (CONFIG.replace("alpha: 5", "alpha: [5"), 1, 6, "this is not YAML: expected ',' or ']'"),
    "twice": (
        CONFIG + "  neftune_noise_alpha: 6\n",
        1,
        7,
        "is written twice in noise, in lines 5 and 7; YAML uses the last",
    ),
    "lost": (CONFIG + "noise:\n  x: 1\n", 1, 7, "noise is written twice, in lines 4 and 7; YAML uses the last"),
    "misplaced": (
        CONFIG + "trl: {neftune_noise_seed: 5}\n",
        1,
        7,
        "trl.neftune_noise_seed: 5 has no effect there; write neftune_noise_seed: 5 in noise",
    ),
    "idle": (CONFIG + "epochs: 0\n", 1, 5, "no effect, because nothing trains: epochs is 0; set epochs: 1, or remove"),
    "unknown": ("a: 1\n", 2, None, "the keys fit no known framework ("),
    "empty": ("", 2, None, "the file is empty; a configuration has keys"),
    "both": (CONFIG + "base_model: m\ndatasets: []\n", 2, None, "the keys fit more than one framework ("),
}


def check(folder: Path, texts: Mapping[str, str], environment: dict[str, str], *options: str) -> tuple[int, dict]:
    """Exit status, and the results by the files' stems."""
    for name, text in texts.items():
        (folder / f"{name}.yaml").write_text(text)
    files = [folder / f"{name}.yaml" for name in texts]
    result = neftune("check", "--json", *options, *files, **environment)
    assert result.stdout, result.stderr
    results = json.loads(result.stdout)
    assert result.returncode == max(one["status"] for one in results)
    return result.returncode, {Path(one["file"]).stem: one for one in results}


def test_check_tells_keys_sources_and_noise(little, tmp_path):
    status, results = check(tmp_path, RIGHT, little(), "--lengths", "4,16")
    assert status == 0
    assert results["gaussian"]["framework"] == "little 1.5"
    [model] = results["gaussian"]["models"]
    assert model["place"] == "noise"
    assert model["keys"]["neftune_noise_alpha"] == {"value": 5, "source": "line 5"}
    assert model["keys"]["neftune_noise_type"] == {"value": "gaussian", "source": "line 6"}
    assert model["keys"]["neftune_noise_seed"] == {"value": 7, "source": "the run's seed, line 2"}
    assert set(model["keys"]) == {key(field) for field in dataclasses.fields(NoiseConfig)}
    assert [norm["noise"] for norm in model["lengths"]] == [5 / 4**0.5, 5 / 16**0.5]
    native = [5 / (3 * 16) ** 0.5] * 2  # of the longest, for all
    assert [norm["native"] for norm in model["lengths"]] == pytest.approx(native)
    assert [norm["noise"] for norm in results["padded"]["models"][0]["lengths"]] == pytest.approx(native)
    [falling] = results["falling"]["models"]
    assert falling["alphas"] == [5, 3.75, 2.5, 1.25, 0]
    assert falling["lengths"][0]["noise"] == model["lengths"][0]["noise"]
    assert falling["keys"]["neftune_noise_seed"]["source"] == "the run's seed, the framework's default"
    shown = report([Checked(**results["falling"])])
    assert shown.endswith("the first step. Alpha after each quarter of the run: 3.75, 2.5, 1.25, 0.")
    assert "Alpha after" not in report([Checked(**results["gaussian"])])
    assert results["quiet"]["models"][0]["keys"] == {}
    assert results["zero"]["models"][0]["keys"] == {}
    assert results["noted"]["notes"] == ["seed is written twice, in lines 1 and 3; YAML uses the last"]
    assert results["json"]["models"][0]["keys"]["neftune_noise_alpha"] == {"value": 5, "source": "line 1"}


def test_check_tells_what_is_wrong_and_in_which_line(little, tmp_path):
    environment = little()
    _, results = check(tmp_path, {name: text for name, (text, *_) in WRONG.items()}, environment)
    for name, (_, *expected, message) in WRONG.items():
        assert [results[name]["status"], results[name]["line"]] == expected, name
        assert message in results[name]["problem"]
    shown = neftune("check", tmp_path / "negative.yaml", tmp_path / "unknown.yaml", **environment)
    assert shown.returncode == 2
    assert shown.stdout.startswith(f"{tmp_path}/negative.yaml:5: neftune_noise_alpha: -1 must be")
    assert f"\n\n{tmp_path}/unknown.yaml: the keys" in shown.stdout


def test_check_with_a_framework_that_is_unknown_broken_or_not_there(little, tmp_path):
    environment = little("raise RuntimeError('broken')")
    one = {"config": CONFIG}
    status, results = check(tmp_path, one, environment)
    assert status == 2
    assert "RuntimeError: broken); `neftune doctor` says what to do" in results["config"]["problem"]
    status, results = check(tmp_path, one, environment, "--framework", "litle")
    assert status == 2
    assert "--framework litle: there is no such adapter; choose one of: " in results["config"]["problem"]
    shutil.rmtree(tmp_path / "site" / "little-1.5.dist-info")
    status, results = check(tmp_path, one, environment)
    assert status == 2
    assert 'which is not installed; run pip install "little-adapter[little]"' in results["config"]["problem"]


def test_check_with_the_package_switched_off(little, tmp_path):
    status, results = check(tmp_path, {"config": CONFIG}, little() | {"NEFTUNE_PLUGINS": "0"})
    assert status == 1
    assert "unset NEFTUNE_PLUGINS" in results["config"]["problem"]


def test_a_terminal_has_colour_and_progress_and_a_pipe_has_neither(little):
    environment = little("import time; time.sleep(1.5); hook = None")
    shown = on_a_terminal("doctor", **environment)
    assert "\033[32mok   \033[0m  little " in shown
    assert "importing" in shown and " ... 1 s" in shown
    assert "\r\033[K" in shown
    narrow = on_a_terminal("doctor", columns=60, **environment, NO_COLOR="1").rpartition("\033[K")[2]
    assert "WRONG" not in narrow and "\033" not in narrow
    assert max(map(len, narrow.splitlines())) <= 60
    piped = neftune("doctor", **environment)
    assert "  ok     little " in piped.stdout
    assert "\033" not in piped.stdout + piped.stderr and "\r" not in piped.stdout + piped.stderr


def test_the_pictures_show_what_the_page_shows():
    """As tests/support/capture.py takes them, in the environments of which the page speaks."""
    page = ROOT / "docs" / "commands.md"
    for name, block in (
        ("doctor", shown("docs/commands.md", "text", 0)),
        ("check", shown("docs/commands.md", "text", 1)),
    ):
        picture = (ROOT / "docs" / "images" / f"{name}.svg").read_text()
        prompt, *words = map(html.unescape, re.findall(r">([^<]+)</text>", picture))
        assert prompt.startswith(f"$ neftune {name}")
        assert "".join("".join(words).split()) == "".join(block.split())
        assert f"(images/{name}.svg)" in page.read_text()
