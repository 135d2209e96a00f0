"""Makes the noise configuration from a framework's keys and checks that its noise type exists."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from neftune_plugins.config import NoiseConfig, key, unknown_choice
from neftune_plugins.errors import NoiseConfigError
from neftune_plugins.plugins.manager import noise_types


def resolve(keys: Mapping[str, Any], given: Mapping[str, Any] | None = None) -> NoiseConfig | None:
    """Make the configuration from a framework's `keys` and from the arguments `given` to a callback.

    >>> resolve({"neftune_noise_alpha": 5, "learning_rate": 1e-4}).alpha
    5

    given: values by the names of the fields of NoiseConfig.
    Returns None if neither asks for noise. Raises NoiseConfigError like `NoiseConfig.from_keys`, if the two disagree,
    and for a noise type that no plugin provides. Raises TypeError for a name that is not a field.
    """
    given = {} if given is None else given
    fields = {field.name: key(field) for field in dataclasses.fields(NoiseConfig)}
    for name, value in given.items():
        if name not in fields:
            raise TypeError(f"NEFTuneCallback has no argument {name!r}; it has {', '.join(fields)}")
        found = keys.get(fields[name])
        if found is not None and value is not None and found != value:
            raise NoiseConfigError(
                f"{fields[name]}: {found!r} in the configuration, but {value!r} in NEFTuneCallback; give it in one "
                "place"
            )
    explicit = {fields[name]: value for name, value in given.items() if value is not None}
    config = NoiseConfig.from_keys({**keys, **explicit})
    if config is not None:
        check_type(config)
    return config


def check_type(config: NoiseConfig) -> None:
    """Raise NoiseConfigError if no plugin provides the noise type. Loads the plugins."""
    choices = tuple(noise_types())
    if config.type not in choices:
        raise unknown_choice("type", config.type, choices)
