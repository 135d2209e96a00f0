"""Wrong keys, and what the error must say. Stated once for the core and for every adapter."""

import math
from typing import Any

BAD_VALUES: list[tuple[dict[str, Any], str]] = [
    ({"neftune_noise_alpha": 0}, "neftune_noise_alpha: 0 must be finite and above 0"),
    ({"neftune_noise_alpha": -1}, "neftune_noise_alpha: -1 must be finite and above 0"),
    ({"neftune_noise_alpha": math.nan}, "neftune_noise_alpha: nan must be finite and above 0"),
    ({"neftune_noise_alpha": math.inf}, "neftune_noise_alpha: inf must be finite and above 0"),
    ({"neftune_noise_alpha": True}, "neftune_noise_alpha: True must be a number"),
    ({"neftune_noise_alpha": "abc"}, "neftune_noise_alpha: 'abc' must be a number, without quotes"),
    ({"neftune_noise_alpha": "5"}, "neftune_noise_alpha: '5' must be a number, without quotes"),
    ({"neftune_noise_alpha": {"a": 1}}, "neftune_noise_alpha: {'a': 1} must be a number"),
    ({"neftune_noise_alpha": 10**400}, "0000 must be finite and above 0"),
    (
        {"neftune_noise_alpha": 5, "neftune_noise_type": "gausian"},
        "neftune_noise_type: 'gausian' must be one of: uniform, gaussian, bernoulli",
    ),
    (
        {"neftune_noise_alpha": 5, "neftune_noise_length": "packed"},
        "neftune_noise_length: 'packed' must be one of: sequence, padded",
    ),
    (
        {"neftune_noise_alpha": 5, "neftune_noise_schedule": "cosin"},
        "neftune_noise_schedule: 'cosin' must be one of: constant, linear, cosine",
    ),
    ({"neftune_noise_alpha": 5, "neftune_noise_seed": -1}, "neftune_noise_seed: -1 must be an integer from 0"),
    (
        {"neftune_noise_alpha": 5, "neftune_clean_loss_steps": 0},
        "neftune_clean_loss_steps: 0 must be an integer of at least 1",
    ),
    ({"neftune_noise_alpha": 5, "neftune_metrics": "no way"}, "neftune_metrics: 'no way' must be true or false"),
    ({"neftune_noise_type": "uniform"}, "without neftune_noise_alpha has no effect"),
]

BAD_KEYS: list[tuple[dict[str, Any], str]] = [
    (
        {"neftune_noise_alpha": 5, "neftune_nois_type": "uniform"},
        "neftune_nois_type: there is no such key (value 'uniform'); did you mean neftune_noise_type?",
    ),
    (
        {"netfune_noise_alpha": 5},
        "netfune_noise_alpha: there is no such key (value 5); did you mean neftune_noise_alpha?",
    ),
    ({"NEFTUNE_NOISE_ALPHA": 5}, "NEFTUNE_NOISE_ALPHA: there is no such key"),
]
