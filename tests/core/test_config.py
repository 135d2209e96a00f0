"""The keys and their errors."""

import re

import pytest

from neftune_plugins import NoiseConfig, NoiseConfigError, install, resolve
from tests.support.bad_values import BAD_KEYS, BAD_VALUES
from tests.support.models import ToyModel


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
