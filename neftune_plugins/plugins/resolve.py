"""Makes the noise configuration from a framework's keys and checks that its noise type exists."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from neftune_plugins.config import NO_NOISE, NoiseConfig, from_command_line, key, keys_in, read, unknown_choice
from neftune_plugins.errors import NoiseConfigError
from neftune_plugins.plugins.manager import noise_types

_FIELDS = {field.name: key(field) for field in dataclasses.fields(NoiseConfig)}


def resolve(keys: Mapping[str, Any], given: Mapping[str, Any] | None = None) -> NoiseConfig | None:
    """Make the configuration from a framework's `keys` and from the arguments `given` to a callback.

    >>> resolve({"neftune_noise_alpha": 5, "learning_rate": 1e-4}).alpha
    5

    given: values by the names of the fields of NoiseConfig.
    Returns None if neither asks for noise, or if alpha is 0. Raises NoiseConfigError like `NoiseConfig.from_keys`, if
    the two disagree, and for a noise type that no plugin provides. Raises TypeError for a name that is not a field.
    """
    config, is_on = _read(keys, given or {})
    return config if is_on else None


def no_noise_line(keys: Mapping[str, Any], given: Mapping[str, Any] | None = None) -> str:
    """Return the line that a run with an alpha of 0 logs; empty for other values. Raises like `resolve`."""
    config, is_on = _read(keys, given or {})
    if config is None or is_on:
        return ""
    return NO_NOISE


def check_type(config: NoiseConfig) -> None:
    """Raise NoiseConfigError if no plugin provides the noise type. Loads the plugins."""
    choices = tuple(noise_types())
    if config.type not in choices:
        raise unknown_choice("type", config.type, choices)


def _read(keys: Mapping[str, Any], given: Mapping[str, Any]) -> tuple[NoiseConfig | None, bool]:
    for name in given:
        if name not in _FIELDS:
            raise TypeError(f"NEFTuneCallback has no argument {name!r}; it has {', '.join(_FIELDS)}")
    explicit = {_FIELDS[name]: value for name, value in given.items() if value is not None}
    in_keys, in_callback = keys_in(keys), keys_in(explicit)
    for name, value in in_callback.items():
        if name in in_keys and in_keys[name] != value:
            raise NoiseConfigError(
                f"{name}: {in_keys[name]!r} in the configuration, but {value!r} in NEFTuneCallback; give it in one "
                "place"
            )
    try:
        config, is_on = read({**keys, **explicit})
        if config is not None:
            check_type(config)
    except NoiseConfigError as error:
        raise NoiseConfigError(f"{error}{_origin(str(error).partition(':')[0], explicit)}") from None
    return config, is_on


def _origin(name: str, explicit: Mapping[str, Any]) -> str:
    """Return the source of a wrong value for the message; empty for the configuration file, or if it is unknown."""
    if name in explicit:
        return " (given to NEFTuneCallback)"
    return " (from the command line)" if from_command_line(name) else ""
