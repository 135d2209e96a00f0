"""Check the text of a configuration file against the description of its framework.

The checks: which framework the file is for; whether our keys are in the right places, spelt correctly, not repeated,
and valid; and whether the run trains at all.
"""

import dataclasses
import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from neftune_plugins.commands.reading import CannotReadError, Source
from neftune_plugins.config import (
    BUILT_IN_TYPES,
    NoiseConfig,
    Place,
    is_like_ours,
    looks_like_ours,
    refuse_misplaced,
    unknown_choice,
)
from neftune_plugins.errors import NoiseConfigError
from neftune_plugins.plugins.framework import Framework
from neftune_plugins.plugins.places import value_at

_ALPHA = "neftune_noise_alpha"


@dataclasses.dataclass(frozen=True)
class Judged:
    """A file without errors in our keys.

    configs: the noise configuration at each place that may have our keys; None if no noise is asked for there.
    notes: remarks that are not errors.
    """

    configs: Mapping[Place, NoiseConfig | None]
    notes: Sequence[str]


def judge(source: Source, framework: Framework) -> Judged:
    """Check our keys in a framework's file. Raises CannotReadError, with the line, for the first error."""
    notes = list(_repeated(source))
    config = _as_read(source, framework)
    _stop_if_misplaced(source, framework, config)
    searched = any(name in source.config for name in framework.searched)
    configs = {place: _config(source, config, place, searched) for place in framework.places_in(config)}
    wanted = next((place for place, config in configs.items() if config is not None), None)
    if wanted is not None and (reason := framework.no_training(source.config)):
        problem = f"{_ALPHA} has no effect, because nothing trains: {reason}, or remove the key"
        raise CannotReadError(problem, line=_first_line(source, wanted))
    return Judged(configs, notes)


def check_type_by_name(source: Source, judged: Judged) -> list[str]:
    """Notes on noise types that are not built in, without loading plugins. Raises CannotReadError for a misspelling."""
    notes = []
    for place, config in judged.configs.items():
        if config is None or config.type in BUILT_IN_TYPES:
            continue
        line = source.lines.get((*place, "neftune_noise_type"))
        if difflib.get_close_matches(config.type, BUILT_IN_TYPES, n=1):
            raise CannotReadError(str(unknown_choice("type", config.type, BUILT_IN_TYPES)), line=line)
        notes.append(
            f"line {line}: neftune_noise_type: {config.type} is not built in; its plugin must be installed where the "
            "training runs"
        )
    return notes


def recognised(source: Source, known: Mapping[str, Framework], name: str | None) -> Framework:
    """The named framework, or the one whose keys the file has. Raises CannotReadError unless exactly one fits."""
    if name is not None:
        if name not in known:
            problem = f"--framework {name}: there is no such adapter; choose one of: {', '.join(known)}"
            raise CannotReadError(problem, status=2)
        return known[name]
    fitting = [one for one in known.values() if any(sign <= source.config.keys() for sign in one.signs)]
    if len(fitting) != 1:
        signs = "; ".join(
            f"{one.name} has " + " or ".join(" and ".join(sorted(sign)) for sign in one.signs)
            for one in fitting or known.values()
        )
        of = "more than one framework" if fitting else "no known framework"
        raise CannotReadError(f"the keys fit {of} ({signs}); name it with --framework NAME", status=2)
    return fitting[0]


def line_of(message: str, lines: Mapping[Place, int]) -> int | None:
    """The line of the key that a message is about.

    This is one of our keys if the message names one, otherwise the key whose full path it begins with, otherwise the
    key that it names first. A name without underscores must be in quotes, because it may be an ordinary word.
    """
    found = []
    for place, line in lines.items():
        if not isinstance(place[-1], str) or place[-1] not in message:
            continue
        name, whole = re.escape(place[-1]), ".".join(map(str, place))
        pattern = rf"(?<!\w){name}(?!\w)" if "_" in name else rf"['\"`]{name}['\"`]"
        named = re.search(pattern, message)
        at_start = message.startswith(f"{whole}:")
        if named or at_start:
            start = 0 if named is None else named.start()
            found.append((not looks_like_ours(place[-1]), not at_start, start, line))
    return min(found)[-1] if found else None


def dotted(place: Place) -> str:
    return ".".join(map(str, place))


def _repeated(source: Source) -> Iterator[str]:
    """Notes on keys that are repeated in one mapping, of which YAML uses the last. Raises CannotReadError if such a
    key is ours or contains ours."""
    ours = {
        entry.place[:end] for entry in source.entries if is_like_ours(entry.name) for end in range(len(entry.place) + 1)
    }
    for entry in source.entries:
        if entry.again is None:
            continue
        where = f" in {dotted(entry.place[:-1])}" if entry.place[1:] else ""
        said = f"{entry.name} is written twice{where}, in lines {entry.line} and {entry.again}; YAML uses the last"
        if entry.place in ours:
            raise CannotReadError(f"{said} and silently drops the first; remove one of them", line=entry.again)
        yield said


def _stop_if_misplaced(source: Source, framework: Framework, config: Mapping[Any, Any]) -> None:
    places = framework.places_in(config)
    names: Iterable[str] = map(dotted, places) if places else map(str, framework.places)
    home = " or ".join(f"in {name}" if name else "at the top level" for name in dict.fromkeys(names))
    try:
        refuse_misplaced(config, places, home)
    except NoiseConfigError as error:
        message = str(error)
        where = tuple(message.partition(": ")[0].split("."))[:-1]
        raise CannotReadError(message + _why(framework, config, where), line=line_of(message, source.lines)) from None


def _as_read(source: Source, framework: Framework) -> dict[Any, Any]:
    """The configuration as the framework reads it, with the older names of our keys replaced by the current ones."""
    config = {name: value for name, value in source.config.items() if name not in framework.searched}
    for older, ours in framework.older_names.items():
        value = config.pop(older, None)
        if value is not None and config.get(ours) is None:
            config[ours] = value
    return config


def _why(framework: Framework, config: Mapping[Any, Any], place: Sequence[str]) -> str:
    """The end of an error about a place with the right path: the neighbouring key that has another value."""
    for known in framework.places:
        for candidate, holder in known.candidates(config):
            if known.beside is not None and list(map(str, candidate)) == list(place):
                name, value = known.beside
                return f"; {name} is {holder.get(name, 'left out')}, not {value}"
    return ""


def _config(source: Source, config: Mapping[Any, Any], place: Place, searched: bool) -> NoiseConfig | None:
    """The noise configuration at a place.

    searched: whether a hyperparameter search may set alpha, so that the other keys are valid without it.
    """
    mapping = value_at(config, place)
    if not isinstance(mapping, Mapping):
        return None
    lines = {(*place, name): source.lines[*place, name] for name in mapping if (*place, name) in source.lines}
    try:
        return NoiseConfig.from_keys(
            mapping if not searched or mapping.get(_ALPHA) is not None else {**mapping, _ALPHA: 0}
        )
    except NoiseConfigError as error:
        raise CannotReadError(str(error), line=line_of(str(error), lines)) from None


def _first_line(source: Source, place: Place) -> int | None:
    """The line of our first key in the mapping at a place."""
    return min((e.line for e in source.entries if e.place[:-1] == place and is_like_ours(e.name)), default=None)


def keys_of(source: Source, place: Place) -> dict[str, Any]:
    """Our keys at a place: the value as written, and the line of each."""
    mapping = value_at(source.config, place)
    lines = {name: source.lines.get((*place, name)) for name in mapping or () if looks_like_ours(name)}
    return {str(name): {"value": mapping[name], "source": f"line {line}"} for name, line in lines.items()}
