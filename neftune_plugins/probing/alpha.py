"""The alpha that a training command asks for, as far as it can be seen from outside."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

_KEY = "neftune_noise_alpha"
_SUFFIXES = (".yaml", ".yml", ".json")


def alpha_of(
    command: Sequence[str], given: float | None, reports: Sequence[Mapping[str, Any]]
) -> tuple[float | None, str]:
    """Alpha and where it was found; None and "" where it is nowhere.

    given: by the user, who is believed. Then the command's arguments, the configuration files among them, and what the
    probe saw of the trainer.
    """
    if given is not None:
        return given, "--alpha"
    for found, source in _in_arguments(command):
        return found, source
    for report in reports:
        if report["alpha"] is not None:
            return report["alpha"], "the trainer's arguments"
    return None, ""


def _in_arguments(command: Sequence[str]) -> Iterator[tuple[float, str]]:
    for place, argument in enumerate(command):
        name, _, value = argument.partition("=")
        if name.lstrip("-").replace("-", "_") == _KEY:
            yield from _number(value or " ".join(command[place + 1 : place + 2]), "the command")
    for argument in command:
        path = Path(argument.partition("=")[2] or argument)
        if path.suffix in _SUFFIXES and path.is_file():
            for value in _in_file(path):
                yield from _number(value, str(path))


def _in_file(path: Path) -> Iterator[Any]:
    try:
        yield from _values(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):  # the command itself says what is wrong with it
        return


def _values(config: Any, depth: int = 20) -> Iterator[Any]:
    """Of the key, at any depth."""
    if not depth:
        return
    if isinstance(config, dict):
        if config.get(_KEY) is not None:
            yield config[_KEY]
        config = list(config.values())
    if isinstance(config, list):
        for one in config:
            yield from _values(one, depth - 1)


def _number(value: Any, source: str) -> Iterator[tuple[float, str]]:
    try:
        yield float(value), source
    except (TypeError, ValueError):
        return
