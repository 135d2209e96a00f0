"""`neftune probe` on loops of torch alone."""

import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import yaml

from neftune_plugins.probing.alpha import alpha_of
from neftune_plugins.probing.callers import caller
from neftune_plugins.probing.command import inject
from neftune_plugins.probing.findings import Findings
from tests.support.commands import ENVIRONMENT, neftune
from tests.support.probing import ROOT, assert_is_the_native_hooks, assert_is_the_papers, probed

LOOP = [sys.executable, "-m", "tests.support.probed_loop"]


def of(found: dict, caller: str) -> dict:
    [kind] = [kind for kind in found["kinds"] if kind["caller"] == caller]
    return kind


def test_the_papers_noise(tmp_path):
    ended, found = probed([*LOOP, "ours"], tmp_path, "--alpha", "5")
    assert_is_the_papers(ended, found)
    trained, evaluated = of(found, "trainer"), of(found, "evaluation")
    assert (trained["model"], trained["mode"], trained["forwards"]) == ("Little", "training", 3)
    assert sorted(example["length"] for example in trained["examples"]) == [10] * 3 + [20] * 3 + [40] * 3
    assert (evaluated["mode"], evaluated["grad"], evaluated["forwards"]) == ("evaluation", False, 2)
    assert {example["ratio"] for example in evaluated["examples"]} == {0}
    assert ended.stdout.count("loss") == 2  # the third step ended the run
    assert ended.stdout.splitlines()[-1] == found["verdict"]


def test_the_native_hooks_noise(tmp_path):
    ended, found = probed([*LOOP, "native"], tmp_path, "--alpha", "5")
    assert_is_the_native_hooks(ended, found)
    for example in of(found, "trainer")["examples"]:
        assert example["ratio"] == pytest.approx((example["length"] / 40) ** 0.5, rel=0.1)


def test_a_run_without_noise(tmp_path):
    _, found = probed(LOOP, tmp_path, "--alpha", "5")
    assert found["verdict"] == "wrong: trainer (Little, training mode, with gradients) has no noise"


@pytest.mark.parametrize(("what", "caller"), [(["native", "evaluated"], "evaluation"), (["reference"], "reference")])
def test_noise_where_none_belongs(tmp_path, what, caller):
    ours = [] if "native" in what else ["ours"]
    ended, found = probed([*LOOP, *what, *ours], tmp_path, "--alpha", "5")
    assert ended.returncode == 1
    assert f"{caller} (Little, evaluation mode, no gradients) has noise, up to 1.0" in found["verdict"]


def test_a_compiled_model_is_left_alone_and_said(tmp_path):
    ended, found = probed([*LOOP, "ours", "compiled"], tmp_path, "--alpha", "5")
    assert ended.returncode == 1
    assert found["verdict"] == (
        "no verdict: the noise could not be measured: Little is compiled; run once without compilation"
    )


@pytest.mark.parametrize("what", ["ours", "native"])
def test_a_run_that_goes_on_is_the_run_without_the_probe(tmp_path, what):
    alone = subprocess.run([*LOOP, what], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    ended, found = probed([*LOOP, what], tmp_path, "--alpha", "5", "--go-on", "--steps", "2")
    assert found["steps"] == 2
    shown = ended.stdout.splitlines()
    assert [line for line in alone if line.startswith(("loss", "random"))] == shown[: len(alone) - 1]
    [loaded] = [line for line in shown if line.startswith("loaded")]
    assert "neftune_plugins.proof.measure" in loaded
    assert ("neftune_plugins.model" in loaded, "neftune_plugins.noise" in loaded) == ((what == "ours"),) * 2


@pytest.mark.parametrize("what", ["ours", "native"])
def test_a_sharded_model_in_two_processes(tmp_path, what):
    """FSDP2: losses to the bit as without the probe, whose forward passes are between the forward and the backward."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*torchrun, "-m", "tests.support.probed_loop", what, "sharded"]
    ended, found = probed(command, tmp_path, "--alpha", "5", "--go-on")
    (assert_is_the_papers if what == "ours" else assert_is_the_native_hooks)(ended, found)
    assert found["processes"] == 2
    alone = subprocess.run(command, cwd=ROOT, env=os.environ | ENVIRONMENT, capture_output=True, text=True, check=True)
    # Lines of two processes may mix.
    losses = [sorted(re.findall(r"loss \d \S+?p[-+]\d", run.stdout)) for run in (alone, ended)]
    assert losses[0] == losses[1] and len(losses[0]) == 10


def test_processes_that_do_not_train_report_nothing(tmp_path):
    _, found = probed([*LOOP, "ours", "workers"], tmp_path, "--alpha", "5")
    assert (found["verdict"][:5], found["processes"]) == ("right", 1)


def test_a_command_that_fails_keeps_its_status(tmp_path):
    ended, found = probed([*LOOP, "fails"], tmp_path, "--alpha", "5")
    assert ended.returncode == found["command_status"] == 7
    assert found["verdict"].startswith("no verdict: ") and "ended with status 7" in found["verdict"]


def test_a_command_that_ends_earlier_has_a_verdict_on_what_it_did(tmp_path):
    ended, found = probed([*LOOP, "ours"], tmp_path, "--alpha", "5", "--steps", "50")
    assert (ended.returncode, found["steps"], of(found, "trainer")["forwards"]) == (0, 5, 5)


@pytest.mark.parametrize("missing", ["sitecustomize", "entry point"])
def test_either_way_in_is_enough(tmp_path, missing):
    """Another `sitecustomize` comes first in the path of a few distributions; torch's autoload may be off."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text("print('another sitecustomize')\n")
    switch = {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0"} if missing == "entry point" else {}
    paths = [str(site), str(ROOT)]
    command = [*LOOP, "ours"]
    if missing == "sitecustomize":  # the shell's path is read before that of the probe
        command = ["sh", "-c", f'PYTHONPATH="{site}:$PYTHONPATH" exec "$@"', "sh", *command]
    ended, found = probed(command, tmp_path, "--alpha", "5", PYTHONPATH=":".join(paths), **switch)
    assert_is_the_papers(ended, found)
    assert ended.stdout.count("another sitecustomize") == 2  # `neftune` itself, and the command


def test_a_python_that_reads_no_environment_is_said(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(f"import sys; sys.path.insert(0, {str(ROOT)!r}); sys.argv = ['', 'ours']\n")
    script.write_text(
        script.read_text() + "import runpy; runpy.run_module('tests.support.probed_loop', run_name='__main__')\n"
    )
    ended, found = probed([sys.executable, "-I", script], tmp_path, "--alpha", "5")
    assert ended.returncode == 1
    assert "python -I, -E and -S keep it out" in found["verdict"]


def test_an_environment_without_this_package(tmp_path):
    """The probe brings itself along."""
    inject(tmp_path)
    code = (
        "import importlib.util as u, sys; find = u.find_spec\n"
        "u.find_spec = lambda name, *more: None if name == 'neftune_plugins' else find(name, *more)\n"
        "sys.modules.pop('neftune_plugins', None); import neftune_probe\n"
        f"neftune_probe._find({str(ROOT / 'neftune_plugins')!r})\n"
        "import neftune_plugins.proof as proof; print(proof.__file__)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert ended.stdout.strip() == str(ROOT / "neftune_plugins" / "proof" / "__init__.py"), ended.stderr


def test_without_a_command():
    ended = neftune("probe")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "there is no command; name it after --" in ended.stderr


def test_a_command_that_does_not_exist():
    ended = neftune("probe", "--", "no-such-program")
    assert (ended.returncode, ended.stderr) == (
        1,
        "neftune: no-such-program cannot be run: No such file or directory\n",
    )


def test_the_picture_has_a_point_for_each_example(tmp_path):
    picture = tmp_path / "probe.svg"
    _, found = probed([*LOOP, "native"], tmp_path, "--alpha", "5", "--picture", str(picture))
    root = ElementTree.parse(picture).getroot()
    titles = [title.text or "" for title in root.iter("{http://www.w3.org/2000/svg}title")]
    examples = [example for kind in found["kinds"] for example in kind["examples"]]
    assert len([title for title in titles if title.endswith("of the paper's noise")]) == len(examples)


def test_alpha_is_found(tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"trainer": [{"neftune_noise_alpha": 7}]}))
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: b: c")
    trainer = [{"alpha": None}, {"alpha": 3.0}]
    assert alpha_of(["train", "--neftune-noise-alpha", "5", str(config)], None, trainer) == (5, "the command")
    assert alpha_of(["train", "--neftune_noise_alpha=5"], None, []) == (5, "the command")
    assert alpha_of(["train", str(broken), f"--config={config}"], None, trainer) == (7, str(config))
    assert alpha_of(["train", str(config)], 2.0, trainer) == (2, "--alpha")
    assert alpha_of(["train"], None, trainer) == (3, "the trainer's arguments")
    assert alpha_of(["train"], None, []) == (None, "")


def report(**values: object) -> dict:
    kind = {
        "model": "M",
        "mode": "training",
        "grad": True,
        "adapters": "-",
        "caller": "trainer",
        "forwards": 1,
        "measured": 1,
        "padding": 0.0,
        "examples": [[20, 64, 5.0, 20, 0]],
        "doubts": {},
        "blind": {},
    }
    return {"rank": 0, "steps": 3, "alpha": None, "kinds": [kind | values]}


def test_all_processes_count(tmp_path):
    good, bad = report(), report(examples=[[20, 64, 10.0, 20, 0]])
    assert Findings(["train"], 0, 3, [good, good], 5.0, "").status == 0
    both = Findings(["train"], 0, 3, [good, bad], 5.0, "")
    assert both.status == 1 and "1 of 2 examples" in both.verdict and both.processes == 2


def test_without_alpha_there_is_no_verdict():
    found = Findings(["train"], 0, 3, [report()], None, "")
    assert found.status == 1 and found.verdict.startswith("no verdict: alpha is not known")


def test_noise_on_padding_is_wrong():
    found = Findings(["train"], 0, 3, [report(padding=4.0)], 5.0, "")
    assert (
        found.verdict
        == "wrong: padding of trainer (M, training mode, with gradients) has noise, up to 0.80 of the paper's bound"
    )


def test_log_probabilities_of_the_policy_may_have_noise_or_none():
    for ratio in (0.0, 5.0):
        policy = report(grad=False, examples=[[20, 64, ratio, 20, 0]])
        assert Findings(["train"], 0, 3, [report(), policy], 5.0, "").status == 0


def test_a_run_that_only_evaluates_has_no_verdict():
    found = Findings(["train"], 0, 3, [report(caller="evaluation", mode="evaluation")], 5.0, "")
    assert found.verdict == "no verdict: no forward pass in training mode with gradients was seen"


def test_the_command_is_described():
    ended = neftune("probe", "--help")
    assert ended.returncode == 0
    assert {"--steps", "--go-on", "--alpha", "--json", "--picture"} <= set(ended.stdout.replace(",", " ").split())


def test_the_folder_that_is_injected_holds_no_more_than_the_way_in(tmp_path):
    inject(tmp_path / "path")
    files = sorted(
        str(file.relative_to(tmp_path / "path")) for file in Path(tmp_path, "path").rglob("*") if file.is_file()
    )
    assert files == [
        "neftune_probe-0.dist-info/METADATA",
        "neftune_probe-0.dist-info/entry_points.txt",
        "neftune_probe.py",
        "sitecustomize.py",
    ]


class Owner:
    """Calls `caller` from functions with the names that trainers give them."""

    def __init__(self) -> None:
        self.model, self.ref_model, self.teacher_model = object(), object(), object()

    def training_step(self, model: object, **about: object) -> str:
        return caller(model, **{"trained": model is self.model, "adapters": "-", **about})

    def generate(self, **about: object) -> str:
        return self.training_step(self.model, **about)

    def _generate_and_score_completions(self, model: object) -> str:
        return self.training_step(model)

    def evaluation_loop(self, model: object) -> str:
        return self.training_step(model)


def test_who_called_the_model():
    owner = Owner()
    assert owner.training_step(owner.model) == "trainer"
    assert owner.training_step(owner.model, adapters="on") == "trainer"
    assert owner.training_step(owner.model, adapters="off") == "reference"
    assert owner.training_step(owner.ref_model) == "reference"
    assert owner.training_step(owner.teacher_model) == "teacher"
    assert owner.generate() == "rollout"
    assert owner.generate(adapters="off") == "reference"
    assert owner._generate_and_score_completions(owner.model) == "trainer"
    assert owner._generate_and_score_completions(owner.ref_model) == "reference"
    assert owner.evaluation_loop(owner.model) == "evaluation"
