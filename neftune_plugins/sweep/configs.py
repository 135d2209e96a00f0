"""Writes the configuration of a trial: the user's text with new values at some places."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import yaml

from neftune_plugins.config import NoiseConfig, key
from neftune_plugins.errors import NEFTuneError

Place = tuple[str | int, ...]

OURS = tuple(key(field) for field in fields(NoiseConfig))


def noise(keys: Mapping[str, Any], owners: Sequence[Place]) -> dict[Place, Any]:
    """Return the new values of our keys by place. Without an alpha all keys are removed, because they have no
    effect."""
    if keys["neftune_noise_alpha"] is None:
        keys = dict.fromkeys(OURS)
    return {(*owner, name): value for owner in owners for name, value in keys.items()}


def changed(text: str, values: Mapping[Place, Any]) -> str:
    """Return a YAML document with these values at their places; None removes the key.

    Other scalars keep their spelling, because YAML 1.1, YAML 1.2 and OmegaConf disagree about which are numbers.

    Raises NEFTuneError if a place is inside something other than a mapping.
    """
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    for place, value in values.items():
        _put(root, place, value)
    return str(yaml.serialize(root, Dumper=yaml.SafeDumper, allow_unicode=True, width=10**6))


def _put(node: Any, place: Place, value: Any) -> None:
    name, *rest = place
    if isinstance(node, yaml.SequenceNode) and isinstance(name, int):
        _put(node.value[name], tuple(rest), value)
        return
    if not isinstance(node, yaml.MappingNode):
        raise NEFTuneError(f"line {node.start_mark.line + 1}: {name} belongs here, so this must be a mapping of keys")
    items = {key.value: number for number, (key, _) in enumerate(node.value)}
    if not rest:
        new = [] if value is None else [(_node(name), _node(value))]
        at = items.get(name, len(node.value))
        node.value[at : at + 1] = new
        return
    if name not in items or node.value[items[name]][1].tag == _NULL:
        if value is None:
            return
        at = items.setdefault(name, len(node.value))
        node.value[at : at + 1] = [(_node(name), _node({}))]
    _put(node.value[items[name]][1], tuple(rest), value)


_NULL = "tag:yaml.org,2002:null"


def _node(value: Any) -> Any:
    return yaml.SafeDumper("").represent_data(value)
