"""The keys and their errors."""

import math
import re

import pytest

from neftune_plugins import NoiseConfig, NoiseConfigError

BAD_VALUES = [
    ({"neftune_noise_alpha": 0}, "neftune_noise_alpha: 0 must be finite and above 0"),
    ({"neftune_noise_alpha": -1}, "neftune_noise_alpha: -1 must be finite and above 0"),
    ({"neftune_noise_alpha": math.nan}, "neftune_noise_alpha: nan must be finite and above 0"),
    ({"neftune_noise_alpha": math.inf}, "neftune_noise_alpha: inf must be finite and above 0"),
    ({"neftune_noise_alpha": True}, "neftune_noise_alpha: True must be a number"),
    ({"neftune_noise_alpha": "abc"}, "neftune_noise_alpha: 'abc' must be a number, without quotes"),
    ({"neftune_noise_alpha": "5"}, "neftune_noise_alpha: '5' must be a number, without quotes"),
    ({"neftune_noise_alpha": {"a": 1}}, "neftune_noise_alpha: {'a': 1} must be a number"),
    ({"neftune_noise_alpha": 10**400}, "neftune_noise_alpha: "),
    (
        {"neftune_noise_alpha": 5, "neftune_noise_type": "gausian"},
        "neftune_noise_type: 'gausian' must be one of: uniform, gaussian, bernoulli; did you mean gaussian?",
    ),
    ({"neftune_noise_alpha": 5, "neftune_noise_type": ["uniform"]}, "neftune_noise_type: ['uniform'] must be one of"),
    (
        {"neftune_noise_alpha": 5, "neftune_noise_length": "packed"},
        "neftune_noise_length: 'packed' must be one of: sequence, padded",
    ),
    ({"neftune_noise_alpha": 5, "neftune_noise_seed": -1}, "neftune_noise_seed: -1 must be an integer from 0"),
    ({"neftune_noise_alpha": 5, "neftune_noise_seed": 1.5}, "neftune_noise_seed: 1.5 must be an integer from 0"),
    (
        {"neftune_noise_alpha": 5, "neftune_nois_type": "uniform"},
        "neftune_nois_type: there is no such key (value 'uniform'); did you mean neftune_noise_type?",
    ),
    (
        {"netfune_noise_alpha": 5},
        "netfune_noise_alpha: there is no such key (value 5); did you mean neftune_noise_alpha?",
    ),
    ({"NEFTUNE_NOISE_ALPHA": 5}, "NEFTUNE_NOISE_ALPHA: there is no such key"),
    ({"neftune_noise_type": "uniform"}, "neftune_noise_type without neftune_noise_alpha has no effect"),
]


@pytest.mark.parametrize(("keys", "message"), BAD_VALUES, ids=lambda x: str(x)[:60])
def test_bad_values_name_key_value_and_remedy(keys, message):
    with pytest.raises(NoiseConfigError, match=re.escape(message)):
        NoiseConfig.from_keys({"learning_rate": 1.0, **keys})


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
            "neftune_noise_seed": 0,
        }
    )
    assert config == NoiseConfig(alpha=5, type="gaussian", length="padded", seed=0)
