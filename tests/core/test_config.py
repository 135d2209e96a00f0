"""The keys and their errors."""

import fractions
import re
import sys
from pathlib import Path

import pytest
import torch
import yaml

from neftune_plugins import (
    NoiseConfig,
    NoiseConfigError,
    install,
    keys_in,
    no_noise_line,
    refuse_misplaced,
    refuse_options,
    resolve,
)
from neftune_plugins.config import looks_like_ours
from tests.support.bad_values import BAD_KEYS, BAD_VALUES, MISPLACED, ZEROS
from tests.support.models import ToyModel

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("keys", "message"), [*BAD_VALUES, *BAD_KEYS], ids=lambda x: str(x)[:60])
def test_bad_values_name_key_value_and_remedy(keys, message):
    with pytest.raises(NoiseConfigError, match=re.escape(message)):
        resolve({"learning_rate": 1.0, **keys})


def test_a_misspelt_type_is_told_its_neighbour():
    with pytest.raises(NoiseConfigError, match=r"did you mean gaussian\?"):
        install(ToyModel(), NoiseConfig(alpha=5, type="gausian"))


def test_keys_that_are_not_ours_are_left_alone():
    assert NoiseConfig.from_keys({"noise": 5, "seed": "x", "alpha": -1}) is None


@pytest.mark.parametrize("keys", [{}, {"neftune_noise_alpha": None}, {"neftune_noise_type": None}])
def test_absent_or_null_is_off(keys):
    assert NoiseConfig.from_keys(keys) is None
    assert no_noise_line(keys) == ""


@pytest.mark.parametrize("companions", [{}, {"neftune_noise_type": "gaussian", "neftune_clean_loss_steps": 3}], ids=str)
@pytest.mark.parametrize("zero", [*ZEROS, torch.tensor(0.0)], ids=repr)
def test_zero_is_no_noise_and_says_so(zero, companions):
    keys = {"neftune_noise_alpha": zero, **companions}
    assert NoiseConfig.from_keys(keys) is None
    assert resolve(keys) is None
    assert resolve({}, {"alpha": zero}) is None
    line = "neftune_noise_alpha: 0 asks for no noise: the embeddings are left as they are"
    assert no_noise_line(keys) == no_noise_line({}, {"alpha": zero}) == line


def test_zero_does_not_hide_a_wrong_companion():
    with pytest.raises(NoiseConfigError, match=r"neftune_noise_seed: -1 must be an integer"):
        resolve({"neftune_noise_alpha": 0, "neftune_noise_seed": -1})
    with pytest.raises(NoiseConfigError, match=r"neftune_noise_type: 'gausian' must be one of"):
        resolve({"neftune_noise_alpha": 0, "neftune_noise_type": "gausian"})


class Scalar:
    """As NumPy has them: no subclass of Python's numbers."""

    shape = ()

    def __init__(self, value):
        self.value = value

    def item(self):
        return self.value


@pytest.mark.parametrize(
    ("written", "number"),
    [
        ("7.5", 7.5),
        ("5", 5),
        ("+5", 5),
        ("1e1", 10.0),
        ("1E1", 10.0),
        ("2.5e-1", 0.25),
        (".5", 0.5),
        ("5.", 5.0),
        (Scalar(5), 5),
        (Scalar(2.5), 2.5),
        (torch.tensor(5), 5),
        (torch.tensor(2.5, dtype=torch.bfloat16), 2.5),
        (fractions.Fraction(5, 2), 2.5),
    ],
    ids=repr,
)
def test_whatever_says_a_number_is_that_number(written, number):
    config = NoiseConfig.from_keys({"neftune_noise_alpha": written})
    assert (config.alpha, type(config.alpha)) == (number, type(number))
    assert keys_in({"neftune_noise_alpha": written, "seed": 1}) == {"neftune_noise_alpha": number}
    assert resolve({"neftune_noise_alpha": written}, {"alpha": number}) == config


@pytest.mark.parametrize("written", ["3", "+3", Scalar(3), torch.tensor(3)], ids=repr)
def test_whatever_says_an_integer_is_that_integer(written):
    config = NoiseConfig(alpha=5, seed=written, clean_loss_steps=written)
    assert (config.seed, config.clean_loss_steps) == (3, 3)
    assert type(config.seed) is type(config.clean_loss_steps) is int


@pytest.mark.parametrize(("written", "truth"), [("true", True), ("False", False), (Scalar(True), True)], ids=repr)
def test_whatever_says_true_or_false(written, truth):
    assert NoiseConfig(alpha=5, metrics=written).metrics is truth


@pytest.mark.parametrize(
    "written",
    [True, "true", "", " 5", "5 ", "5x", "1_0", "0x5", "inf", "1e", "٥", "five", [5], Scalar(True), torch.ones(2)],
    ids=repr,
)
def test_what_is_no_number_is_refused(written):
    with pytest.raises(NoiseConfigError, match=r"^neftune_noise_alpha: .* must be a number, such as 5"):
        NoiseConfig.from_keys({"neftune_noise_alpha": written})


@pytest.mark.parametrize("written", [True, "3.0", 3.0, "true", Scalar(True), Scalar(3.0)], ids=repr)
def test_what_is_no_integer_is_refused(written):
    for name in ("seed", "clean_loss_steps"):
        with pytest.raises(NoiseConfigError, match=rf"^neftune_(noise_)?{name}: .* must be an integer"):
            NoiseConfig(alpha=5, **{name: written})


@pytest.mark.parametrize(
    "argument", ["neftune_noise_alpha=abc", "--neftune_noise_alpha=abc", "--neftune-noise-alpha"], ids=str
)
def test_an_error_says_where_the_value_is_from(argument, monkeypatch):
    keys = {"neftune_noise_alpha": "abc", "neftune_noise_seed": None}
    message = "neftune_noise_alpha: 'abc' must be a number, such as 5; it is text"
    monkeypatch.setattr(sys, "argv", ["train", "config.yaml", "--seed", "3"])
    with pytest.raises(NoiseConfigError, match=f"^{message}$"):
        resolve(keys)
    monkeypatch.setattr(sys, "argv", ["train", "config.yaml", argument, "abc"])
    with pytest.raises(NoiseConfigError, match=f"^{message} \\(from the command line\\)$"):
        resolve(keys)
    with pytest.raises(NoiseConfigError, match=f"^{message} \\(given to NEFTuneCallback\\)$"):
        resolve({}, {"alpha": "abc"})


def test_all_keys():
    config = NoiseConfig.from_keys(
        {
            "neftune_noise_alpha": 5,
            "neftune_noise_type": "gaussian",
            "neftune_noise_length": "padded",
            "neftune_noise_schedule": "cosine",
            "neftune_noise_seed": 0,
            "neftune_metrics": False,
            "neftune_clean_loss_steps": 10,
        }
    )
    assert config == NoiseConfig(
        alpha=5, type="gaussian", length="padded", schedule="cosine", seed=0, metrics=False, clean_loss_steps=10
    )


@pytest.mark.parametrize(
    ("keys", "given", "want"),
    [
        ({}, {}, None),
        ({"learning_rate": 1.0, "neftune_noise_alpha": None}, {"alpha": None, "seed": None}, None),
        ({"neftune_noise_alpha": 5}, {"alpha": None}, NoiseConfig(alpha=5)),
        ({}, {"alpha": 5, "type": "gaussian"}, NoiseConfig(alpha=5, type="gaussian")),
        ({"neftune_noise_alpha": 5}, {"seed": 7}, NoiseConfig(alpha=5, seed=7)),
        ({"neftune_noise_alpha": 5}, {"alpha": 5.0}, NoiseConfig(alpha=5)),
        ({"neftune_noise_alpha": "5"}, {"alpha": 5.0}, NoiseConfig(alpha=5)),
        ({"neftune_noise_alpha": 0}, {"alpha": 0.0, "type": "gaussian"}, None),
    ],
)
def test_keys_and_what_a_callback_was_given_are_one_configuration(keys, given, want):
    assert resolve(keys, given) == want


@pytest.mark.parametrize(
    ("keys", "given", "message"),
    [
        (
            {"neftune_noise_alpha": 5},
            {"alpha": 7},
            "neftune_noise_alpha: 5 in the configuration, but 7 in NEFTuneCallback; give it in one place",
        ),
        (
            {"neftune_noise_alpha": 0},
            {"alpha": 5},
            "neftune_noise_alpha: 0 in the configuration, but 5 in NEFTuneCallback; give it in one place",
        ),
        (
            {"neftune_noise_alpha": 5},
            {"alpha": 0},
            "neftune_noise_alpha: 5 in the configuration, but 0 in NEFTuneCallback; give it in one place",
        ),
        ({}, {"type": "gaussian"}, "neftune_noise_type without neftune_noise_alpha has no effect"),
        ({}, {"alpha": -1}, "neftune_noise_alpha: -1 must be finite and above 0"),
    ],
)
def test_what_keys_and_a_callback_cannot_say(keys, given, message):
    with pytest.raises(NoiseConfigError, match=re.escape(message)):
        resolve(keys, given)


def test_a_misspelt_argument_of_a_callback_is_told_the_right_ones():
    with pytest.raises(
        TypeError,
        match=r"has no argument 'sead'; it has alpha, type, length, schedule, seed, metrics, clean_loss_steps",
    ):
        resolve({}, {"alpha": 5, "sead": 1})


# --- Places ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("config", "message"), [*BAD_KEYS, *MISPLACED], ids=lambda x: str(x)[:60])
def test_keys_that_nothing_reads_are_refused_wherever_they_are(config, message):
    with pytest.raises(NoiseConfigError, match=re.escape(message)):
        refuse_misplaced({"learning_rate": 1.0, **config})


def test_the_owners_say_where_the_keys_belong():
    config = {"model_parameters": {"neftune_noise_alpha": 5}, "features": [{"encoder": {"neftune_noise_seed": 3}}]}
    owner = ("features", 0, "encoder")
    refuse_misplaced(config, [("model_parameters",), owner], home="in model_parameters")
    with pytest.raises(NoiseConfigError) as caught:
        refuse_misplaced(config, [("model_parameters",)], home="in model_parameters")
    assert str(caught.value) == (
        "features.0.encoder.neftune_noise_seed: 3 has no effect there; write neftune_noise_seed: 3 in model_parameters"
    )
    with pytest.raises(NoiseConfigError, match=r"at the top level has no effect there; write .* in model_parameters"):
        refuse_misplaced({"neftune_noise_alpha": 5}, [("model_parameters",)], home="in model_parameters")


def test_a_key_that_anchors_and_merges_repeat_is_no_key_in_a_wrong_place():
    text = "shared: &shared {neftune_noise_alpha: %s, neftune_noise_type: gaussian}\n%s\nlearning_rate: 1.0\n"
    refuse_misplaced(yaml.safe_load(text % (5, "<<: *shared")))
    for written in (text % (5, "x: *shared"), text % (5, "<<: *shared\nneftune_noise_alpha: 10")):
        with pytest.raises(NoiseConfigError, match=r"^shared\.neftune_noise_alpha: 5 has no effect there"):
            refuse_misplaced(yaml.safe_load(written))
    beside = {"neftune_noise_alpha": 5, "trl": {"neftune_noise_alpha": 5, "beta": 0.1}}
    with pytest.raises(NoiseConfigError, match=r"^trl\.neftune_noise_alpha: 5 has no effect there"):
        refuse_misplaced(beside)
    features = {"a": {"neftune_noise_alpha": 5}, "b": {"neftune_noise_alpha": 5}}  # who wants noise in two places
    with pytest.raises(NoiseConfigError, match=r"^b\.neftune_noise_alpha: 5 has no effect there"):
        refuse_misplaced(features, [("a",)], home="in a")


def test_one_mapping_in_two_places_is_wrong_in_the_wrong_one():
    shared = {"neftune_noise_alpha": 5}
    for config in ({"right": shared, "wrong": shared}, {"wrong": shared, "right": shared}):
        with pytest.raises(NoiseConfigError, match=r"^wrong\.neftune_noise_alpha: 5 has no effect there"):
            refuse_misplaced(config, [("right",)], home="in right")


@pytest.mark.parametrize(
    "config",
    [
        {"trl": {"neftune_noise_alpha": None}},
        {"input_features": [{"name": "noise", "type": "number"}, {"name": "noise_alpha", "type": "text"}]},
        {"datasets": [{"path": "neftune/alpaca", "field": "noise", "neftune_prompt": "prompt"}]},
        {"system": "Say neftune_noise_alpha: 5 and neftune.", "run_name": "neftune_noise_alpha=5", "tags": ["neftune"]},
        {"train_dataset": {"neftune_ablation": {"path": "a.jsonl"}, "neftune": {"path": "b.jsonl"}}},
        {"noise": 5, "noise_alpha": 5, "noise_std": 0.1, "input_noise": 0.5, "embedding_noise": 1, "lora_alpha": 16},
        {"label_smoothing": 0.1, "alpha": 5, "left_alpha": 3, "nef": 1, "eaft_alpha": 1.0, "dft_alpha": 1.0},
        {"neptune_project": "a/b", "neptune_metrics": True, "neptune_run_name": "x"},
        {"metrics": ["neftune"], "seed": 3, "type": "uniform", "noise_type": "gaussian", "noise_seed": 7},
        {1: {2.5: {None: {True: 3}}}, ("a", "b"): 5, "": ""},
        {"text": "{", "json": '{"a": 1}', "broken": '{"neftune_noise_alpha": 5'},
    ],
    ids=lambda config: str(config)[:60],
)
def test_ordinary_configurations_pass(config):
    refuse_misplaced(config)


EXAMPLES = sorted((ROOT / "example_configs").rglob("*.y*ml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_the_examples_pass(path):
    config = yaml.safe_load(path.read_text())
    owners = {"ludwig": [("model_parameters",), ("input_features", 0, "encoder", "model_parameters")]}
    refuse_misplaced(config, owners.get(path.parent.name, [()]))


def test_any_shape_is_looked_at_in_bounded_time():
    """Cycles, an exponential number of aliases, depth beyond the interpreter's stack, and many keys."""
    cycle: dict = {"a": []}
    cycle["a"] += [cycle, cycle["a"]]
    refuse_misplaced(cycle)
    aliases: list = ["x"]
    for _ in range(64):
        aliases = [aliases] * 8
    refuse_misplaced({"a": aliases})
    deep: dict = {}
    innermost = deep
    for _ in range(100_000):
        innermost["a"] = {}
        innermost = innermost["a"]
    refuse_misplaced(deep)
    refuse_misplaced({"str2idx": {f"neighbour_{number}": number for number in range(20_000)}})
    with pytest.raises(NoiseConfigError):
        refuse_misplaced({"a": aliases, "b": cycle, "c": {"neftune_noise_alpha": 5}})


@pytest.mark.parametrize(
    "name", ["neftune_noise_alpha", "neftune-noise-alpha", "NEFTUNE_NOISE_ALPHA", "neft_alpha", "neptune_noise_alpha"]
)
def test_names_that_mean_ours(name):
    assert looks_like_ours(name)


# --- The command line ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--neftune_noise_alhpa", "5"], "--neftune_noise_alhpa: there is no such option (value 5); did you mean "
         "--neftune-noise-alpha?"),
        (["--neftune-noise-alhpa=5"], "--neftune-noise-alhpa: there is no such option (value 5); did you mean"),
        (["--neft_alpha", "5"], "--neft_alpha: there is no such option (value 5); did you mean --neftune-noise-alpha?"),
        (["--neftune-noise-type", "gaussian"], "--neftune-noise-type: this command line has no such option (value "
         "gaussian); write neftune_noise_type: gaussian in the configuration file"),
        (["--neftune_noise_alpha=5"], "--neftune_noise_alpha: this command line has no such option (value 5); write "
         "--neftune-noise-alpha 5"),
        (["--trl.neftune-noise-alpha", "5"], "--trl.neftune-noise-alpha: 5 has no effect there; write "
         "--neftune-noise-alpha 5"),
        (["--trl__neftune_noise_alpha=5"], "--trl__neftune_noise_alpha: 5 has no effect there"),
        (["neftune_noise_alpha=5"], "neftune_noise_alpha=5 is not read; write --neftune-noise-alpha 5"),
        (["--", "--neftune-noise-alpha", "5"], "--neftune-noise-alpha: after -- it is not read; write it before --"),
    ],
    ids=lambda x: str(x)[:50],
)  # fmt: skip
def test_options_that_nothing_reads_are_refused(arguments, message):
    with pytest.raises(NoiseConfigError, match=re.escape(message)):
        refuse_options(["--seed", "3", *arguments], read=["--neftune-noise-alpha"])


@pytest.mark.parametrize(
    "arguments",
    [
        ["--neftune-noise-alpha", "5"],
        ["--neftune-noise-alpha=5", "--noise", "3"],
        ["--run-name", "neftune", "neftune.yml", "--output-dir=neftune_noise_alpha", "--neptune-project", "x"],
        ["--wandb-name", "neftune_noise_alpha=5"],
        ["--launcher", "torchrun", "--", "--standalone"],
        [],
    ],
    ids=str,
)
def test_ordinary_command_lines_pass(arguments):
    refuse_options(arguments, read=["--neftune-noise-alpha"])


def test_off_is_off_as_yaml_reads_it():
    """YAML 1.1 reads off without quotes as false."""
    keys = yaml.safe_load("neftune_noise_alpha: 5\nneftune_audit: off")
    assert keys["neftune_audit"] is False
    assert NoiseConfig.from_keys(keys).audit == "off"
    assert keys_in(keys)["neftune_audit"] == "off"
    assert NoiseConfig(alpha=5, audit=False).audit == "off"
