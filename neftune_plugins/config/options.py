"""Finds our keys on a command line."""

import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from neftune_plugins.config import names
from neftune_plugins.config.keys import KEYS, is_like_ours, looks_like_ours
from neftune_plugins.errors import NoiseConfigError


class _Option(NamedTuple):
    """An option, such as `--trl.neftune-noise-alpha 5`: written `--trl.neftune-noise-alpha`, owner `trl`, name
    `neftune_noise_alpha`, value `5`."""

    written: str
    owner: str
    name: str
    value: str
    behind: bool  # after `--`, which ends the command's own options


def from_command_line(name: str) -> bool:
    """Whether this process's command line gives a key, as an option or as `key=value`."""
    return any(option.name == name and not option.owner for option in _options(sys.argv[1:]))


def refuse_options(arguments: Sequence[str], read: Sequence[str]) -> None:
    """Raise NoiseConfigError for an option that means one of our keys and that nothing reads.

    arguments: those of a framework's command.
    read: the options, exactly as written, that the command reads for our keys as `--key value`. The command does not
        read words of the form `key=value`.
    """
    for option in _options(arguments):
        if (option.written not in read or option.behind) and _means_ours(option):
            raise NoiseConfigError(_message(option, read))


def _means_ours(option: _Option) -> bool:
    is_top_level = option.written.startswith("-") and not option.owner
    return looks_like_ours(option.name) if is_top_level else is_like_ours(option.name)


def _message(option: _Option, read: Sequence[str]) -> str:
    right = next((known for known in read if names.same(known, option.name)), None)
    instead = f"{right} {option.value}" if right else f"{option.name}: {option.value} in the configuration file"
    if option.behind:
        return f"{option.written}: after -- it is not read; write it before --"
    if option.owner:
        return f"{option.written}: {option.value} has no effect there; write {instead}"
    if not option.written.startswith("-"):
        return f"{option.written}={option.value} is not read; write {instead}"
    if right or option.name in KEYS:
        return f"{option.written}: this command line has no such option (value {option.value}); write {instead}"
    remedy = names.remedy([*read, *KEYS], option.name, option.value)
    return f"{option.written}: there is no such option (value {option.value}){remedy}"


def _options(arguments: Sequence[str]) -> Iterator[_Option]:
    """`--name value`, `--name=value` and `name=value`."""
    words, behind = list(arguments), False
    while words:
        word = words.pop(0)
        if word == "--":
            behind = True
            continue
        written, equals, value = word.partition("=")
        if word.startswith("--") and not equals and words and not words[0].startswith("--"):
            value = words.pop(0)
        if word.startswith("--") or equals:
            owner, _, name = written.lstrip("-").replace("-", "_").replace("__", ".").rpartition(".")
            yield _Option(written, owner, name, value, behind)
