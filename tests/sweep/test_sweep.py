"""What `neftune sweep` runs, records and says; with a training that learns nothing."""

import itertools
import re
import shlex
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
import yaml
from neftune_axolotl.training import TRAINING as AXOLOTL
from neftune_llamafactory.training import TRAINING as LLAMAFACTORY
from neftune_ludwig.training import TRAINING as LUDWIG
from neftune_swift.training import TRAINING as SWIFT
from optuna.trial import TrialState

from neftune_plugins import NEFTuneError
from neftune_plugins import curve as recorder
from neftune_plugins.sweep import configs, curve, runs
from neftune_plugins.sweep.study import AXES
from tests.support.commands import on_a_terminal
from tests.support.documentation import ROOT, snippets
from tests.sweep.results import study
from tests.sweep.training import BROKEN, STEPS, loss
from tests.sweep.workers import TRAINING, events, trials

NOISES = [(type, length) for type in ("uniform", "gaussian") for length in ("padded", "sequence")]
SIZE = f"size={sys.executable} -c 'import sys; print(1); print(len(open(sys.argv[1]).read()))' {{model}}/weights"


def test_a_grid_with_trials_that_fail(sweep, tmp_path):
    arguments = ("--alpha", "0,13,5", "--type", "uniform,gaussian", "--length", "padded,sequence")
    arguments += ("--seeds", "2", "--metric", SIZE)
    arguments += ("--objective", "size", "--direction", "maximize", "--discard-models", "--", "--more", "a b")
    status, shown, _ = sweep(*arguments)
    assert status == 0
    expected = [
        (alpha, *noise, seed)
        for alpha, noises in ((0.0, [("none", "none")]), (BROKEN, NOISES), (5.0, NOISES))
        for noise in noises
        for seed in (0, 1)
    ]
    # A setting that has failed waits with its other seeds for the others.
    expected.sort(key=lambda cell: cell[0] == BROKEN and cell[-1] == 1)
    found = study(tmp_path)
    assert (found["framework"], found["objective"], found["direction"]) == ("python", "size", "maximize")
    assert [(one["alpha"], one["type"], one["length"], one["seed"]) for one in found["trials"]] == expected
    begins = events(tmp_path / "ledger.jsonl", "begin", more="a b")
    told = [
        (one["neftune_noise_alpha"], *(one[f"neftune_noise_{axis}"] or "none" for axis in AXES), one["seed"])
        for one in begins
    ]
    assert told == expected
    for trial in found["trials"]:
        log = Path(trial["log"])
        if trial["alpha"] == BROKEN:
            assert trial["state"] == "failed"
            assert trial["error"].startswith("the training ended with status 1: 13 brings bad luck\n")
            assert trial["error"].endswith("13 brings bad luck")
            assert "13 brings bad luck" in log.read_text()
            continue
        assert trial["state"] == "complete"
        assert trial["values"]["size"] == trial["alpha"]
        clean = [loss(trial["alpha"], trial["seed"], step) for step in range(1, STEPS + 1)]
        assert [point["clean_loss"] for point in trial["curve"]] == clean
        assert [point["loss"] for point in trial["curve"]] == [one + trial["alpha"] for one in clean]
        assert (trial["values"]["train_loss"], trial["values"]["clean_loss"]) == (clean[-1] + trial["alpha"], clean[-1])
        assert not (log.parent / "output").exists()

    lines = shown.splitlines()
    assert re.fullmatch(
        r"\[7/18, about \d+ s left\] trial 6  alpha 5, uniform, padded, seed 0  complete in \d+ s, size 5", lines[6]
    )
    assert "failed in" in lines[2] and "the training ended with status 1: 13 brings bad luck, " in lines[2]
    table = [line.split() for line in lines if line.startswith((" ", "alpha"))]
    assert table == [
        ["alpha", "type", "length", "size", "spread", "seeds", "failed", "pruned"],
        ["0", "-", "-", "0", "0", "2", "0", "0"],
        *(["5", *noise, "5", "0", "2", "0", "0"] for noise in sorted(NOISES)),
        *(["13", *noise, "-", "-", "0", "2", "0"] for noise in sorted(NOISES)),
    ]
    assert lines[-1] == str(tmp_path / "neftune-sweep" / "report.html")
    assert "\r" not in shown and "\033" not in shown

    assert sweep(*arguments)[0] == 0
    assert len(events(tmp_path / "ledger.jsonl", "begin")) == len(expected)  # nothing is run again
    status, _, problem = sweep(*arguments[:-1], "another")
    assert status == 1
    assert "(arguments for the framework: ['--more', 'a b'], now ['--more', 'another'])" in problem


def test_drawn_points_are_trained_with_every_seed_and_pruned_by_their_clean_losses(sweep, tmp_path, monkeypatch):
    """Those that are given come first; Optuna's pruner by the median wants five that are complete."""
    monkeypatch.setattr("neftune_plugins.sweep.process.LOOK", 0.2)
    given = ("--alpha", "6,5.5,5,20..21", "--trials", "1", "--seeds", "2", "--pruner", "MedianPruner")
    monkeypatch.setenv("SECONDS", "1.6")
    status, shown, _ = sweep(*given, "--sampler", "RandomSampler")
    assert status == 0, shown
    found = study(tmp_path)["trials"]
    assert [trial["state"] for trial in found] == ["complete"] * 6 + ["pruned"] * 2
    drawn = found[6:]
    assert drawn[0]["alpha"] == drawn[1]["alpha"] and 20 <= drawn[0]["alpha"] <= 21
    assert [trial["seed"] for trial in drawn] == [0, 1]
    assert all(0 < len(trial["curve"]) < STEPS for trial in drawn)
    assert not events(tmp_path / "ledger.jsonl", "end", neftune_noise_alpha=drawn[0]["alpha"])
    optuna_s = trials(f"sqlite:///{tmp_path}/neftune-sweep/study.db")
    assert [trial.state for trial in optuna_s] == [TrialState.COMPLETE] * 6 + [TrialState.PRUNED] * 2
    assert [trial.params.get("alpha") for trial in optuna_s] == [None] * 6 + [drawn[0]["alpha"]] * 2


def test_the_commands_of_the_page(sweep, tmp_path):
    """All of them are understood; those with a Python file are run with one."""
    lines = "".join(snippets(ROOT / "docs" / "sweep.md", "bash")).splitlines()
    commands = [shlex.split(line)[2:] for line in lines if line.startswith("neftune sweep")]
    shutil.copy(TRAINING, tmp_path / "train.py")
    for file, *arguments in commands:
        if file == "train.py":
            assert sweep(*arguments, file=Path(file))[0] == 0
        else:
            assert "there is no such file" in sweep(*arguments, file=Path(file))[2]
    begins = events(tmp_path / "ledger.jsonl", "begin")
    assert [(one["neftune_noise_alpha"], one["seed"]) for one in begins] == [
        (alpha, seed) for alpha in (0, 5, 10) for seed in (0, 1)
    ]


def test_a_study_of_something_else_is_left_alone(sweep, tmp_path):
    url = f"sqlite:///{tmp_path}/study.db"
    optuna.create_study(storage=url, study_name="training").ask()
    _, _, problem = sweep("--alpha", "5", "--storage", url)
    assert "the study 'training' is not a sweep's" in problem


WRONG = {
    "no file": (["--alpha", "5"], "gone.py: there is no such file", "gone.py"),
    "negative": (["--alpha", "0,-1"], "neftune_noise_alpha: -1.0 must be finite and above 0", None),
    "type": (["--alpha", "5", "--type", "gausian"], "did you mean gaussian?", None),
    "length": (["--alpha", "5", "--length", "paded"], "did you mean padded?", None),
    "no trials": (["--alpha", "1..5"], "--alpha LOW..HIGH and --trials N go together", None),
    "no range": (["--alpha", "1,5", "--trials", "3"], "--alpha LOW..HIGH and --trials N go together", None),
    "sampler": (["--alpha", "5", "--sampler", "Tpe"], "--sampler Tpe: optuna.samplers has no such class", None),
    "arguments": (["--alpha", "5", "--sampler", "GridSampler"], "cannot be made without arguments", None),
    "pruner": (
        ["--alpha", "5", "--pruner", "MedianPruner", "--direction", "maximize"],
        "so it needs --direction minimize",
        None,
    ),
    "rows": (["--alpha", "5", "--held-out", "gone.jsonl"], "gone.jsonl: there is no such file", None),
    "storage": (["--alpha", "5", "--storage", "nosuch://x"], "--storage nosuch://x: ", None),
    "framework": (["--alpha", "5"], "the keys fit no known framework", "other.yaml"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_done_is_said_before_anything_runs(sweep, tmp_path, monkeypatch, name):
    monkeypatch.setattr("neftune_plugins.sweep.storage.TRIES", 1)
    arguments, message, file = WRONG[name]
    (tmp_path / "other.yaml").write_text("a: 1\n")
    status, _, problem = sweep(*arguments, file=TRAINING if file is None else tmp_path / file)
    assert (status, problem.startswith("neftune: ")) == (1, True)
    assert message in problem
    assert not (tmp_path / "ledger.jsonl").exists()


def test_the_extra_is_named_where_it_is_missing(sweep, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    for name in [name for name in sys.modules if name.startswith("neftune_plugins.sweep.")]:
        monkeypatch.delitem(sys.modules, name)
    _, _, problem = sweep("--alpha", "5")
    assert problem.rstrip().endswith('install: pip install "neftune-plugins[sweep]"')


def test_a_terminal_shows_a_bar(tmp_path):
    options = ("--alpha", "5,6", "--output", str(tmp_path / "out"))
    shown = on_a_terminal(
        "sweep", str(TRAINING), *options, LEDGER=str(tmp_path / "ledger.jsonl"), SECONDS="1.2", NO_COLOR="1"
    )
    assert "[------------------------] 0/2, trial 0: alpha 5, uniform, sequence, seed 0 ... 1 s" in shown
    assert re.search(
        r"\[############------------\] 1/2, about \d s left, trial 1: alpha 6, uniform, sequence, seed 0", shown
    )


def test_the_first_model_of_a_configuration_says_what_is_not_varied(tmp_path, monkeypatch):
    encoder = {"type": "llm", "base_model": "some/model"}
    inputs = [
        {"name": name, "type": "text", "encoder": encoder | {"model_parameters": {"neftune_noise_type": type}}}
        for name, type in (("question", "gaussian"), ("answer", "bernoulli"))
    ]
    (tmp_path / "two.yaml").write_text(yaml.safe_dump({"input_features": inputs}))
    monkeypatch.setattr(runs, "framework_of", lambda *_: SimpleNamespace(name="ludwig", training=LUDWIG))
    assert runs.ConfigFile(tmp_path / "two.yaml", None, ()).noise == {"type": "gaussian", "length": "sequence"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "base: &base {neftune_noise_alpha: 5}\nmodel_type: llm\nmodel_parameters: {<<: *base}",
            "through YAML's merge key",
        ),
        ("model_type: llm\nmodel_parameters: [1]", "line 2: neftune_noise_alpha belongs here"),
        ("model_type: llm\nmodel_parameters: yes", "line 2: neftune_noise_alpha belongs here"),
        ("- a", "it has no keys at its top level"),
    ],
)
def test_a_configuration_that_a_sweep_cannot_change_is_refused(tmp_path, monkeypatch, text, said):
    (tmp_path / "mine.yaml").write_text(text)
    monkeypatch.setattr(runs, "framework_of", lambda *_: SimpleNamespace(name="ludwig", training=LUDWIG))
    with pytest.raises(NEFTuneError, match=said):
        runs.ConfigFile(tmp_path / "mine.yaml", None, ())


def test_a_key_without_a_value_is_a_place_for_ours(tmp_path):
    changed = configs.changed("a: 1\nmodel_parameters:\n", {("model_parameters", "neftune_noise_alpha"): 5.0})
    assert yaml.safe_load(changed) == {"a": 1, "model_parameters": {"neftune_noise_alpha": 5.0}}


def test_the_trained_model_is_the_last_checkpoint_if_there_are_only_checkpoints(tmp_path):
    run = runs.Run(["true"], tmp_path)
    assert run.model == tmp_path
    for name in ("checkpoint-9", "checkpoint-10", "checkpoint-best", "runs"):
        (tmp_path / name).mkdir()
    assert run.model == tmp_path / "checkpoint-10"
    (tmp_path / "adapter_config.json").touch()
    assert run.model == tmp_path


EXAMPLES = {
    path: training
    for folder, training in (("axolotl", AXOLOTL), ("llamafactory", LLAMAFACTORY), ("ludwig", LUDWIG), ("swift", SWIFT))
    for path in sorted((ROOT / "example_configs" / folder).glob("*.y*ml"))
    if path.stem != "v1_dataset"
}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_trial_has_the_configuration_with_our_keys_its_folder_and_its_seed_changed(path):
    training, text = EXAMPLES[path], path.read_text()
    owners = training.owners(yaml.safe_load(text))
    settings = {(name,): value for name, value in training.settings(7, Path("there")).items()}

    def at(config: object, place: configs.Place) -> object:
        for name in place:
            config = config[name]
        return config

    def parsed(text: str) -> object:
        return yaml.load(text, yaml.BaseLoader)  # scalars as they are written

    for alpha in (None, 7.5):
        changed = configs.changed(text, configs.noise({"neftune_noise_alpha": alpha}, owners) | settings)
        before, after = parsed(text), parsed(changed)
        for place, value in settings.items():
            assert after.pop(place[0]) == (str(value).lower() if isinstance(value, bool) else str(value))
            before.pop(place[0], None)
        for owner in owners:
            assert at(after, owner).pop("neftune_noise_alpha", None) == (alpha and str(alpha))
            at(before, owner).pop("neftune_noise_alpha")
        assert after == before


def test_a_curve_is_read_while_it_is_written(tmp_path, monkeypatch):
    file = tmp_path / "curve.jsonl"
    assert curve.read(file, noisy=True) == []
    monkeypatch.setenv(recorder.VARIABLE, str(file))
    for step in (1, 2):
        recorder.record(step, {"loss": 2.0 / step, "neftune/clean_loss": 1.0 / step, "text": "x"})
    recorder.record(2, {"train_runtime": 3})
    with file.open("a") as half:
        half.write('{"step": 3, "lo')
    points = [vars(point) for point in curve.read(file, noisy=True)]
    assert points == [{"step": step, "loss": 2.0 / step, "clean_loss": 1.0 / step} for step in (1, 2)]
    monkeypatch.setenv("RANK", "1")
    assert not recorder.wanted()
    many = [SimpleNamespace(step=step) for step in range(1, 1202)]
    thin = curve.thinned(many)
    assert len(thin) <= curve.LONGEST and thin[-1].step == 1201
    assert {after.step - before.step for before, after in itertools.pairwise(thin)} == {3}
