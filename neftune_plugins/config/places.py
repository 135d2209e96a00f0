"""Refuses our keys in places that nothing reads."""

import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from neftune_plugins.config import names
from neftune_plugins.config.keys import KEYS, is_like_ours, refuse_unknown
from neftune_plugins.errors import NoiseConfigError

Place = tuple[str | int, ...]
"""A path in a configuration: names in mappings and indices in lists, outermost first."""

_DEEPEST = 500  # levels; deeper than the parsers of YAML and JSON go
_LONGEST = 100_000  # characters of a text that may be JSON


def refuse_misplaced(config: Any, owners: Collection[Place] = ((),), home: str = "at the top level") -> None:
    """Raise NoiseConfigError for a key that nothing reads, at any depth of the raw configuration: a misspelt key, an
    older name, or a key in a wrong place.

    owners: the places of the mappings that the keys belong to.
    home: the same in words, such as "at the top level", for the message.

    Values are not checked. A key in a wrong place is ignored if its value is null, or if it is in a mapping that was
    merged into the top level, where the keys belong, and has the same value there.
    """
    merged = config if set(owners) == {()} and isinstance(config, Mapping) else {}
    for place, mapping in _mappings(config, owners):
        if place in owners:
            refuse_unknown(mapping)
            continue
        for name, value in mapping.items():
            is_copy = name in KEYS and mapping.keys() <= merged.keys() and merged[name] == value
            if value is not None and not is_copy and _asks_for_noise(name, value):
                raise NoiseConfigError(_message(place, name, value, home))


def _asks_for_noise(name: object, value: Any) -> bool:
    return is_like_ours(name) or (names.begins_like_ours(name) and names.could_ask_for_noise(value))


def _message(place: Place, name: object, value: Any, home: str) -> str:
    where = ".".join(map(str, (*place, name))) + ": " if place else f"{name}: "
    at = "" if place else " at the top level"
    start = f"{where}{names.brief(value)}{at} has no effect there"
    if name in KEYS:
        return f"{start}; write {name}: {names.shown(value)} {home}"
    remedy = names.remedy(KEYS, name, value)
    if remedy.endswith("?"):
        return f"{start}, and there is no such key{remedy} Write it {home}"
    return f"{start}, and there is no such key{remedy} {home}" if remedy else f"{start}; the keys belong {home}"


def _mappings(config: Any, owners: Collection[Place]) -> Iterator[tuple[Place, Mapping[Any, Any]]]:
    """Yield the mappings of a configuration, each once as an owner and once as a mapping that is not one."""
    waiting: list[tuple[Place, Any]] = [((), config)]
    seen: set[tuple[int, bool]] = set()
    while waiting:
        place, value = waiting.pop()
        mark = (id(value), place in owners)
        if mark in seen or len(place) > _DEEPEST:
            continue
        if isinstance(value, str):
            value = _parsed(value)
        if isinstance(value, Mapping):
            seen.add(mark)
            yield place, value
            children: Any = list(value.items())
        elif isinstance(value, list | tuple):
            seen.add(mark)
            children = list(enumerate(value))
        else:
            continue
        waiting += [((*place, name), child) for name, child in reversed(children) if _has_parts(child)]


def _has_parts(value: Any) -> bool:
    return isinstance(value, Mapping | list | tuple) or (isinstance(value, str) and value.startswith("{"))


def _parsed(text: str) -> Any:
    """Return the mapping in a text of JSON that may hold one of our keys; command lines pass mappings as JSON."""
    if len(text) > _LONGEST or not any(part in text.lower() for part in ("neft", "nois")):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
