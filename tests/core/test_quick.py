"""`neftune check --quick`: keys, places, values and spelling, without a framework and without torch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from neftune_plugins import KeyPlace
from neftune_plugins.commands import quick
from neftune_plugins.config import BUILT_IN_TYPES
from neftune_plugins.plugins.manager import frameworks, frameworks_without_torch, noise_types, plugin_manager
from tests.support.commands import neftune
from tests.support.documentation import ROOT, shown

AXOLOTL = "base_model: m\ndatasets: []\n"
LLAMAFACTORY = "model_name_or_path: m\nstage: sft\ndo_train: true\n"
V1 = "model: m\ntrain_dataset: d\n"
LUDWIG = "model_type: llm\ninput_features: []\noutput_features: []\ntrainer: {type: finetune}\n"
ENCODERS = """\
input_features:
  - {name: a, type: text, encoder: {type: llm, model_parameters: {neftune_noise_alpha: 5}}}
output_features: []
"""
ALPHA = "neftune_noise_alpha: 5\n"

RIGHT = {
    "axolotl": (AXOLOTL + ALPHA, {"the top level": {"neftune_noise_alpha": 5}}),
    "llamafactory": (LLAMAFACTORY + ALPHA, {"the top level": {"neftune_noise_alpha": 5}}),
    "v1": (V1 + ALPHA, {"the top level": {"neftune_noise_alpha": 5}}),
    "ludwig": (LUDWIG + "model_parameters: {neftune_noise_alpha: 5}", {"model_parameters": {"neftune_noise_alpha": 5}}),
    "encoders": (ENCODERS, {"input_features.0.encoder.model_parameters": {"neftune_noise_alpha": 5}}),
    "hyperopt": (
        LUDWIG + "hyperopt: {parameters: {neftune_noise_alpha: {space: choice}}}",
        {"model_parameters": {}},
    ),
    "companion of a search": (
        LUDWIG
        + "model_parameters: {neftune_noise_type: gaussian}\n"
        + "hyperopt: {parameters: {model_parameters.neftune_noise_alpha: {space: choice}}}",
        None,
    ),
    "older name": (AXOLOTL + "noisy_embedding_alpha: 5\n", None),
    "exponent": (LLAMAFACTORY + "neftune_noise_alpha: 1e1\n", {"the top level": {"neftune_noise_alpha": 10.0}}),
    "null": (AXOLOTL + "neftune_noise_alpha:\nneftune_noise_type:\n", None),
    "merge": (
        AXOLOTL + "shared: &shared {neftune_noise_alpha: 5}\n<<: *shared\n",
        {"the top level": {"neftune_noise_alpha": 5}},
    ),
    "strange keys": (AXOLOTL + "~: 1\n1: 2\nyes: 3\n? 2024-01-01\n: 4\n" + ALPHA, None),
    "no training, no keys": (LLAMAFACTORY.replace("true", "false"), None),
    "column": (AXOLOTL.replace("[]", "[{path: p, field: neptune_notes}]"), None),
}

# Each with the line and what the problem says.
WRONG: dict[str, tuple[str, int, str]] = {
    "value": (AXOLOTL + "neftune_noise_alpha: -1\n", 3, "neftune_noise_alpha: -1 must be finite and above 0"),
    "spelling": (AXOLOTL + ALPHA + "neftune_nois_type: gaussian\n", 4, "did you mean neftune_noise_type?"),
    "spelling of the first letters": (AXOLOTL + "netfune_noise_alpha: 5\n", 3, "did you mean neftune_noise_alpha?"),
    "spelling of a value": (AXOLOTL + ALPHA + "neftune_noise_type: gausian\n", 4, "did you mean gaussian?"),
    "companion": (AXOLOTL + "neftune_noise_type: gaussian\n", 3, "without neftune_noise_alpha has no effect"),
    "twice": (AXOLOTL + ALPHA + "x: 1\n" + ALPHA, 5, "neftune_noise_alpha is written twice, in lines 3 and 5"),
    "twice in JSON": (
        '{"base_model": "m", "datasets": [],\n"neftune_noise_alpha": 5,\n"neftune_noise_alpha": 6}',
        3,
        "in lines 2 and 3; YAML uses the last",
    ),
    "lost with its mapping": (
        LUDWIG + "model_parameters: {neftune_noise_alpha: 5}\nmodel_parameters: {rope_scaling: null}\n",
        6,
        "model_parameters is written twice, in lines 5 and 6",
    ),
    "trl": (
        AXOLOTL + "trl: {neftune_noise_alpha: 5}\n",
        3,
        "trl.neftune_noise_alpha: 5 has no effect there; write neftune_noise_alpha: 5 at the top level",
    ),
    "in a list": (
        AXOLOTL.replace("[]", "\n  - path: p\n    opts: [{neftune_noise_seed: 5}]"),
        4,
        "datasets.0.opts.0.neftune_noise_seed: 5 has no effect there",
    ),
    "top level of Ludwig": (
        LUDWIG + ALPHA,
        5,
        "neftune_noise_alpha: 5 at the top level has no effect there; write neftune_noise_alpha: 5 in model_parameters",
    ),
    "trainer of Ludwig": (
        LUDWIG.replace("finetune", "finetune, neftune_noise_alpha: 5"),
        4,
        "trainer.neftune_noise_alpha: 5 has no effect",
    ),
    "ecd": (
        ENCODERS + "model_type: ecd\nmodel_parameters: {neftune_noise_alpha: 5}\n",
        5,
        "in input_features.0.encoder.model_parameters; model_type is ecd, not llm",
    ),
    "bert": (
        ENCODERS.replace("type: llm", "type: bert"),
        2,
        "(where type is llm); type is bert, not llm",
    ),
    "do_train": (
        LLAMAFACTORY.replace("true", "false") + ALPHA,
        4,
        "nothing trains: do_train is false; set do_train: true",
    ),
    "no do_train": (LLAMAFACTORY.replace("do_train: true\n", "") + ALPHA, 3, "nothing trains: do_train is left out"),
    "none": (
        LUDWIG.replace("finetune", "none") + "model_parameters: {neftune_noise_alpha: 5}\n",
        5,
        "nothing trains: trainer.type is none; set trainer: {type: finetune}",
    ),
    "Ludwig's default": (
        LUDWIG.replace("trainer: {type: finetune}\n", "") + "model_parameters: {neftune_noise_alpha: 5}\n",
        4,
        "nothing trains: trainer.type is left out, which is none for model_type llm",
    ),
    "exponent": (AXOLOTL + "neftune_noise_alpha: five\n", 3, "'five' must be a number"),
}


def checked(folder: Path, texts: dict[str, str], *options: str) -> dict[str, dict]:
    for name, text in texts.items():
        (folder / f"{name}.yaml").write_text(text)
    result = neftune("check", "--quick", "--json", *options, *(folder / f"{name}.yaml" for name in texts))
    assert result.stderr == ""
    found = {Path(one["file"]).stem: one for one in json.loads(result.stdout)}
    assert result.returncode == max(one["status"] for one in found.values())
    return found


def test_what_is_right(tmp_path):
    results = checked(tmp_path, {name: text for name, (text, _) in RIGHT.items()})
    for name, (_, places) in RIGHT.items():
        result = results[name]
        assert (result["status"], result["problem"], result["quick"]) == (0, "", True), (name, result)
        if places is not None:
            found = {
                model["place"] or "the top level": {key: one["value"] for key, one in model["keys"].items()}
                for model in result["models"]
            }
            assert found == places, name


def test_what_is_wrong(tmp_path):
    results = checked(tmp_path, {name: text for name, (text, *_) in WRONG.items()})
    for name, (_, line, problem) in WRONG.items():
        assert problem in results[name]["problem"], (name, results[name])
        assert (results[name]["status"], results[name]["line"]) == (1, line), name
        assert "\n" not in results[name]["problem"]


def test_it_finds_nothing_else_wrong_than_the_whole_check(tmp_path):
    """Both say the same of what the text tells; the frameworks are not asked for that."""
    for name, (text, *_) in WRONG.items():
        if name == "spelling of a value":  # which the plugins tell the whole check
            continue
        (tmp_path / f"{name}.yaml").write_text(text)
    files = sorted(tmp_path.iterdir())
    whole, alone = (json.loads(neftune("check", "--json", *options, *files).stdout) for options in ((), ("--quick",)))
    for one, other in zip(whole, alone, strict=True):
        assert [one[name] for name in ("problem", "line", "status")] == [
            other[name] for name in ("problem", "line", "status")
        ]


def test_a_noise_type_of_a_plugin_is_noted(tmp_path):
    [result] = checked(tmp_path, {"a": AXOLOTL + ALPHA + "neftune_noise_type: triangular\n"}).values()
    assert result["status"] == 0
    assert result["notes"] == [
        "line 4: neftune_noise_type: triangular is not built in; its plugin must be installed where the training runs"
    ]


def test_what_the_page_shows(tmp_path):
    misplaced, twice = shown("docs/commands.md", "text", 3).splitlines()
    texts = {"misplaced": AXOLOTL + "trl:\n  " + ALPHA, "twice": AXOLOTL + ALPHA + "# a comment\n" * 5 + ALPHA}
    results = checked(tmp_path, texts)
    for line, result in zip((misplaced, twice), results.values(), strict=True):
        assert line == f"my.yml:{result['line']}: {result['problem']}"


def test_files_without_our_keys_can_be_left_out(tmp_path):
    others = {
        "workflow": "on: push\njobs: {}\n",
        "no yaml": "a: [\n",
        "template": "{{ if }}\na: {{ b }}\n",
        "documents": "a: 1\n---\nb: 2\n",
        "empty": "",
    }
    ours = {"ours": "on: push\nwith:\n  neftune_noise_alpha: 5\n", "ours in no yaml": "neftune_noise_alpha: [\n"}
    results = checked(tmp_path, others | ours, "--ignore-others")
    for name in others:
        assert (results[name]["status"], results[name]["framework"]) == (0, None), name
    assert all(results[name]["status"] for name in ours)
    assert all(one["status"] for one in checked(tmp_path, others | ours).values())
    shown = neftune("check", "--quick", "--ignore-others", tmp_path / "empty.yaml").stdout
    assert shown == f"{tmp_path}/empty.yaml: right, it has none of our keys\n"


def test_it_imports_neither_torch_nor_a_framework_and_is_quick(tmp_path):
    """Although a plugin is installed that imports torch."""
    (tmp_path / "torch.py").write_text("raise RuntimeError('torch was imported')")
    script = (
        "import resource, sys; from neftune_plugins.commands.cli import main\n"
        "try: main()\n"
        "finally:\n"
        "    print(resource.getrusage(resource.RUSAGE_SELF).ru_utime, file=sys.stderr)\n"
        "    heavy = {'torch', 'transformers', 'axolotl', 'ludwig', 'llamafactory', 'swift', 'numpy'}\n"
        "    assert not heavy & set(sys.modules)\n"
    )
    files = [str(file) for file in sorted(ROOT.glob("example_configs/*/*.y*ml")) if file.stem != "v1_dataset"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    for arguments in (["check", "--quick", *files], ["schema", "axolotl"]):
        command = [sys.executable, "-c", script, *arguments]
        result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert result.returncode == 0, result.stdout + result.stderr
        assert float(result.stderr) < 1  # second of CPU, of which a tenth is ours


def test_the_frameworks_are_the_same_with_and_without_torch():
    assert list(frameworks_without_torch()) == list(frameworks())
    script = (
        "import sys; from neftune_plugins.plugins.manager import frameworks_without_torch as f; print(*f());"
        "assert 'torch' not in sys.modules; import torch; print(torch.ones(1).item())"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.split() == [*frameworks(), "1.0"]


def test_the_built_in_types_are_those_that_are_registered():
    manager = plugin_manager()
    built_in = [kind.name for kind in manager.get_plugin("builtin").neftune_noise_types()]
    assert tuple(built_in) == BUILT_IN_TYPES
    assert set(BUILT_IN_TYPES) <= set(noise_types())


def test_where_keys_belong():
    place = KeyPlace(("features", "*", "encoder", "parameters"), beside=("type", "llm"))
    assert str(place) == "features.*.encoder.parameters (where type is llm)"
    assert str(KeyPlace()) == "the top level"
    encoder = {"type": "llm", "parameters": {}}
    config = {"features": [{"encoder": encoder}, {"encoder": {"type": "bert"}}, {}, None, {"encoder": {"type": "llm"}}]}
    wanted = [("features", number, "encoder", "parameters") for number in (0, 4)]
    assert place.found(config) == wanted
    assert place.found({"features": {"text": {"encoder": encoder}}}) == [("features", "text", "encoder", "parameters")]
    for odd in (None, [], "text", {"features": None}, {"features": "text"}, {"features": [[], "x", {"encoder": []}]}):
        assert place.found(odd) == []
    assert KeyPlace().found(config) == [()]


# --- The hook for pre-commit -----------------------------------------------------------------------------------------


def test_the_hook_runs_the_command_on_the_files_that_are_committed(tmp_path):
    [hook] = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    repository = tmp_path / "repository"
    repository.mkdir()
    (repository / "good.yml").write_text(AXOLOTL + ALPHA)
    (repository / "workflow.yaml").write_text("on: push\n")
    (repository / "readme.txt").write_text("neftune_noise_alpha: -1\n")

    def run(*command: str, cwd: Path = repository) -> "subprocess.CompletedProcess[str]":
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        git = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
        identity = {f"GIT_{who}_{what}": "a@b.c" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
        home = {"PRE_COMMIT_HOME": str(tmp_path / "home"), "PATH": path}
        environment = {**os.environ, **git, **identity, **home}
        return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)

    run("git", "init", "--quiet")
    # The hook from a repository that has nothing else: it runs the command that is installed.
    source = tmp_path / "source"
    source.mkdir()
    (source / ".pre-commit-hooks.yaml").write_text((ROOT / ".pre-commit-hooks.yaml").read_text())
    for command in (("init", "--quiet"), ("add", "."), ("commit", "--quiet", "-m", "hooks"), ("tag", "v0.1.0")):
        assert run("git", *command, cwd=source).returncode == 0
    page = yaml.safe_load(shown("docs/commands.md", "yaml", 0))
    [told] = page["repos"]
    assert [one["id"] for one in told["hooks"]] == [hook["id"]]
    told["repo"] = str(source)
    (repository / ".pre-commit-config.yaml").write_text(yaml.safe_dump(page))
    run("git", "add", ".")
    good = run(sys.executable, "-m", "pre_commit", "run")
    assert good.returncode == 0, good.stdout + good.stderr
    assert "Passed" in good.stdout
    (repository / "bad.yml").write_text(AXOLOTL + "trl:\n  " + ALPHA)
    run("git", "add", ".")
    bad = run(sys.executable, "-m", "pre_commit", "run")
    assert bad.returncode == 1
    assert "bad.yml:4: trl.neftune_noise_alpha: 5 has no effect there" in bad.stdout
    assert "readme" not in bad.stdout


# --- neftune schema --------------------------------------------------------------------------------------------------


def schema_of(name: str) -> dict:
    result = neftune("schema", name)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def validators() -> dict:
    from jsonschema import Draft202012Validator

    found = {name: schema_of(name) for name in ("axolotl", "llamafactory", "ludwig", "swift", "trl")}
    for one in found.values():
        Draft202012Validator.check_schema(one)
        assert one["$schema"] == Draft202012Validator.META_SCHEMA["$id"]
    return {name: Draft202012Validator(one) for name, one in found.items()}


def test_the_examples_are_right_by_the_schema(validators):
    examples = sorted(ROOT.glob("example_configs/*/*.y*ml"))
    assert len(examples) > 15
    for path in examples:
        errors = list(validators[path.parent.name].iter_errors(yaml.safe_load(path.read_text())))
        assert not errors, path


def test_the_schema_and_the_check_agree(validators, tmp_path):
    """On what the schema can say: it does not know numbers in quotes, keys far from their place, or what trains."""
    beyond = {"trl", "in a list", "twice", "twice in JSON", "lost with its mapping", "trainer of Ludwig", "do_train"}
    beyond |= {"no do_train", "none", "Ludwig's default", "spelling of a value", "spelling of the first letters"}
    known = frameworks_without_torch()
    for name, (text, *rest) in (RIGHT | WRONG).items():
        path = tmp_path / "config.yaml"
        path.write_text(text)
        [result] = quick.quick([path], known, None)
        if name in beyond or name in ("exponent", "strange keys"):
            continue
        valid = validators[result.framework].is_valid(json.loads(json.dumps(yaml.safe_load(text), default=str)))
        assert valid == (result.status == 0) == (len(rest) == 1), name


@pytest.mark.parametrize(
    ("keys", "right"),
    [
        ("neftune_noise_alpha: 5", True),
        ("neftune_noise_alpha: 0.5", True),
        ("neftune_noise_alpha: -1", False),
        ("neftune_noise_alpha: text", False),
        ("neftune_noise_alpha: 1.0e+31", False),
        ("neftune_noise_seed: 3", False),
        ("neftune_noise_alpha: 5\nneftune_noise_seed: -1", False),
        ("neftune_noise_alpha: 5\nneftune_noise_seed: 18446744073709551615", True),
        ("neftune_noise_alpha: 5\nneftune_noise_seed: 18446744073709551616", False),
        ("neftune_noise_alpha: 5\nneftune_noise_length: packed", False),
        ("neftune_noise_alpha: 5\nneftune_noise_schedule: cosine", True),
        ("neftune_noise_alpha: 5\nneftune_noise_type: mine", True),
        ("neftune_noise_alpha: 5\nneftune_noise_type: 3", False),
        ("neftune_noise_alpha: 5\nneftune_metrics: 3", False),
        ("neftune_noise_alpha: 5\nneftune_clean_loss_steps: 0", False),
        ("neftune_noise_alpha: 5\nneftune_clean_loss_steps: 10", True),
        ("neftune_noise: 5", False),
        ("NEFTUNE_noise: 5", False),
    ],
)
def test_the_bounds_of_the_schema_are_those_of_the_keys(keys, right, validators, tmp_path):
    for name, text in (("axolotl", AXOLOTL), ("llamafactory", LLAMAFACTORY)):
        path = tmp_path / "config.yaml"
        path.write_text(text + keys + "\n")
        [result] = quick.quick([path], frameworks_without_torch(), name)
        assert (result.status == 0) == right, result
        assert validators[name].is_valid(yaml.safe_load(path.read_text())) == right


def test_a_schema_of_what_is_no_framework():
    result = neftune("schema", "axolottle")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == (
        "neftune: axolottle: there is no such framework; choose one of: axolotl, llamafactory, ludwig, swift, trl\n"
    )
