"""The configuration of a trial: the user's, with other values at some places, and otherwise the same text."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import yaml

from neftune_plugins.config import NoiseConfig, key

Place = tuple[str | int, ...]

OURS = tuple(key(field) for field in fields(NoiseConfig))


def noise(keys: Mapping[str, Any], owners: Sequence[Place]) -> dict[Place, Any]:
    """Where to put these of our keys. Without an alpha none of them may stay: the others have no effect then."""
    if keys["neftune_noise_alpha"] is None:
        keys = dict.fromkeys(OURS)
    return {(*owner, name): value for owner in owners for name, value in keys.items()}


def changed(text: str, values: Mapping[Place, Any]) -> str:
    """A YAML document with these values, each at its place; None takes the key out.

    Scalars stay as they are written: what is a number in YAML 1.1, 1.2 or OmegaConf, and what is not, differs.
    """
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    for place, value in values.items():
        _put(root, place, value)
    return str(yaml.serialize(root, Dumper=yaml.SafeDumper, allow_unicode=True, width=10**6))


def _put(node: Any, place: Place, value: Any) -> None:
    name, *rest = place
    if isinstance(node, yaml.SequenceNode):
        _put(node.value[name], tuple(rest), value)
        return
    items = {key.value: number for number, (key, _) in enumerate(node.value)}
    if not rest:
        new = [] if value is None else [(_node(name), _node(value))]
        at = items.get(name, len(node.value))
        node.value[at : at + 1] = new
        return
    if name not in items:
        if value is None:
            return
        items[name] = len(node.value)
        node.value.append((_node(name), _node({})))
    _put(node.value[items[name]][1], tuple(rest), value)


def _node(value: Any) -> Any:
    return yaml.SafeDumper("").represent_data(value)
