"""Describes where our keys are in a framework's configuration, for `neftune check`, editors and sweeps."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from neftune_plugins.config import Place


@dataclass(frozen=True)
class KeyPlace:
    """A mapping in a framework's configuration files that may hold our keys.

    path: the keys that lead to it; `*` stands for each member of a list or mapping. Empty is the top level.
    beside: a key in the same mapping as the last one of the path, and its required value, such as ("type", "llm").
    """

    path: tuple[str, ...] = ()
    beside: tuple[str, str] | None = None

    def __str__(self) -> str:
        if not self.path:
            return "the top level"
        where = "" if self.beside is None else f" (where {self.beside[0]} is {self.beside[1]})"
        return ".".join(self.path) + where

    def found(self, config: object) -> list[Place]:
        """Return the places in a configuration where our keys belong. The mapping at a place may be missing."""
        return [place for place, holder in self.candidates(config) if self.holds(holder)]

    def candidates(self, config: object) -> Iterator[tuple[Place, Any]]:
        """Yield each place with that path, whether or not it `holds`, and the mapping that has the path's last key."""
        if not self.path:
            yield (), config
            return
        *way, last = self.path
        reached: list[tuple[Place, Any]] = [((), config)]
        for name in way:
            reached = [
                ((*place, child), value)
                for place, parent in reached
                for child, value in _children(parent)
                if name in ("*", child)
            ]
        for place, holder in reached:
            if isinstance(holder, Mapping):
                yield (*place, last), holder

    def holds(self, holder: object) -> bool:
        """Whether the key next to the path's last one has its required value."""
        if self.beside is None:
            return True
        name, value = self.beside
        return isinstance(holder, Mapping) and holder.get(name) == value


def value_at(config: object, place: Place) -> Any:
    """Return the value at a place; None if it is missing."""
    for name in place:
        config = dict(_children(config)).get(name)
    return config


def _children(value: object) -> list[tuple[Any, Any]]:
    if isinstance(value, Mapping):
        return list(value.items())
    return list(enumerate(value)) if isinstance(value, list | tuple) else []
