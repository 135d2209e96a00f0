"""Wrong keys, and what the error must say. Stated once for the core and for every adapter."""

import math
from typing import Any

BAD_VALUES: list[tuple[dict[str, Any], str]] = [
    ({"neftune_noise_alpha": -1}, "neftune_noise_alpha: -1 must be finite and above 0"),
    ({"neftune_noise_alpha": math.nan}, "neftune_noise_alpha: nan must be finite and above 0"),
    ({"neftune_noise_alpha": math.inf}, "neftune_noise_alpha: inf must be finite and above 0"),
    ({"neftune_noise_alpha": True}, "neftune_noise_alpha: True must be a number, such as 5; YAML reads yes and on as"),
    ({"neftune_noise_alpha": "abc"}, "neftune_noise_alpha: 'abc' must be a number, such as 5; it is text"),
    ({"neftune_noise_alpha": "5,5"}, "neftune_noise_alpha: '5,5' must be a number, such as 5; it is text"),
    ({"neftune_noise_alpha": "nan"}, "neftune_noise_alpha: 'nan' must be a number, such as 5; it is text"),
    ({"neftune_noise_alpha": "-1e1"}, "neftune_noise_alpha: -10.0 must be finite and above 0"),
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
    ({"neftune_noise_alpha": 5, "neftune_noise_seed": 1.5}, "neftune_noise_seed: 1.5 must be an integer from 0"),
    (
        {"neftune_noise_alpha": 5, "neftune_clean_loss_steps": 0},
        "neftune_clean_loss_steps: 0 must be an integer of at least 1",
    ),
    ({"neftune_noise_alpha": 5, "neftune_metrics": "no way"}, "neftune_metrics: 'no way' must be true or false"),
    ({"neftune_noise_type": "uniform"}, "without neftune_noise_alpha has no effect"),
]

ZEROS: list[Any] = [0, 0.0, -0.0, "0", "0.0"]
"""Values of neftune_noise_alpha that ask for no noise."""

BAD_KEYS: list[tuple[dict[str, Any], str]] = [
    (
        {"neftune_noise_alpha": 5, "neftune_nois_type": "uniform"},
        "neftune_nois_type: there is no such key (value 'uniform'); did you mean neftune_noise_type?",
    ),
    (
        {"netfune_noise_alpha": 5},
        "netfune_noise_alpha: there is no such key (value 5); did you mean neftune_noise_alpha?",
    ),
    (
        {"NEFTUNE_NOISE_ALPHA": 5},
        "NEFTUNE_NOISE_ALPHA: there is no such key (value 5); did you mean neftune_noise_alpha?",
    ),
    (
        {"neftune": {"alpha": 5, "type": "gaussian"}},
        "neftune: there is no such key (value {'alpha': 5, 'type': 'gaussian'}); the keys are flat: write "
        "neftune_noise_alpha: 5 and neftune_noise_type: gaussian",
    ),
    ({"neftune": 5}, "neftune: there is no such key (value 5); did you mean neftune_noise_alpha?"),
    ({"neft_alpha": 5}, "neft_alpha: there is no such key (value 5); did you mean neftune_noise_alpha?"),
    (
        {"noisy_embeddings_alpha": 5},
        "noisy_embeddings_alpha: there is no such key (value 5); did you mean neftune_noise_alpha?",
    ),
]

MISPLACED: list[tuple[dict[str, Any], str]] = [
    (
        {"trl": {"neftune_noise_alpha": 5}},
        "trl.neftune_noise_alpha: 5 has no effect there; write neftune_noise_alpha: 5 at the top level",
    ),
    (
        {"a": [{"b": 1}, {"b": {"neftune_nois_type": "gaussian"}}]},
        "a.1.b.neftune_nois_type: 'gaussian' has no effect there, and there is no such key; did you mean "
        "neftune_noise_type? Write it at the top level",
    ),
    (
        {"training": {"neftune": {"alpha": 5}}},
        "training.neftune: {'alpha': 5} has no effect there, and there is no such key; the keys are flat: write "
        "neftune_noise_alpha: 5 at the top level",
    ),
    (
        {"kwargs": '{"name": "fsdp2", "neft_alpha": 5}'},
        "kwargs.neft_alpha: 5 has no effect there, and there is no such key; did you mean neftune_noise_alpha?",
    ),
]
"""Keys that are in a wrong place of a configuration whose keys are at the top level."""
