"""`neftune schema`: JSON schema (draft 2020-12) of our keys in a framework's configuration files, for editors."""

import dataclasses
from collections.abc import Mapping
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from neftune_plugins.config import BUILT_IN_TYPES, NoiseConfig, key
from neftune_plugins.plugins.framework import Framework
from neftune_plugins.plugins.places import KeyPlace

DIALECT = "https://json-schema.org/draft/2020-12/schema"

_JSON_TYPES = {bool: "boolean", float: "number", int: "integer", str: "string", NoneType: "null"}
_LIKE_OURS = "^[Nn][Ee][Ff][Tt]"  # no key of a framework begins like this

Schema = dict[str, Any]


def schema(framework: Framework) -> Schema:
    """The schema for a framework's files. It accepts all keys that are not ours."""
    return {
        "$schema": DIALECT,
        "title": f"NEFTune in {framework.name}",
        "description": f"The keys of neftune-plugins in a configuration of {framework.name}.",
        "type": "object",
        **_level([_Rest(place.path, place) for place in framework.places]),
        "$defs": {
            "keys": _keys(framework.older_names) | ({} if framework.searched else _companions(framework.older_names)),
            "nothing_of_ours": {"propertyNames": {"not": {"pattern": _LIKE_OURS}}},
        },
    }


@dataclasses.dataclass(frozen=True)
class _Rest:
    """The remaining path of a place, seen from one level of the file."""

    path: tuple[str, ...]
    place: KeyPlace


def _level(rests: list[_Rest]) -> Schema:
    """The schema of the value at which these paths start. Our keys are in it, deeper in it, or nowhere."""
    if any(not rest.path for rest in rests):
        return {"$ref": "#/$defs/keys"}
    found: Schema = {"$ref": "#/$defs/nothing_of_ours"}
    conditions = []
    properties: Schema = {}
    for name in dict.fromkeys(rest.path[0] for rest in rests):
        inner = [_Rest(rest.path[1:], rest.place) for rest in rests if rest.path[0] == name]
        below = _level(inner)
        beside = next((rest.place.beside for rest in inner if not rest.path), None)
        if name == "*":
            found |= {"items": below, "additionalProperties": below}
        elif beside is None:
            properties[name] = below
        else:
            holds = {"properties": {beside[0]: {"const": beside[1]}}, "required": [beside[0]]}
            elsewhere = {"properties": {name: {"$ref": "#/$defs/nothing_of_ours"}}}
            conditions.append({"if": holds, "then": {"properties": {name: below}}, "else": elsewhere})
    if properties:
        found["properties"] = properties
    if conditions:
        found["allOf"] = conditions
    return found


def _keys(older_names: Mapping[str, str]) -> Schema:
    """The schema of a mapping that may have our keys."""
    fields = {key(field): field for field in dataclasses.fields(NoiseConfig)}
    properties = {name: _property(field) for name, field in fields.items()}
    for older, ours in older_names.items():
        properties[older] = {**properties[ours], "deprecated": True, "description": f"The older name of {ours}."}
    return {
        "properties": properties,
        "propertyNames": {"anyOf": [{"enum": [*properties]}, {"not": {"pattern": _LIKE_OURS}}]},
    }


def _companions(older_names: Mapping[str, str]) -> Schema:
    """A condition: the other keys need alpha. Not used for frameworks in which a search may set alpha elsewhere."""
    alpha, *companions = map(key, dataclasses.fields(NoiseConfig))
    names = [alpha, *(older for older, ours in older_names.items() if ours == alpha)]
    return {
        "if": {"anyOf": [_is_set(name) for name in companions]},
        "then": {"anyOf": [_is_set(name) for name in names]},
    }


def _is_set(name: str) -> Schema:
    return {"required": [name], "properties": {name: {"not": {"type": "null"}}}}


def _property(field: "dataclasses.Field[Any]") -> Schema:
    found: Schema = {"description": field.metadata["help"], **_typed(field)}
    if field.default is not dataclasses.MISSING and field.default is not None:
        found["default"] = field.default
    for bound, word in (("least", "minimum"), ("most", "maximum")):
        if bound in field.metadata:
            found[word] = field.metadata[bound]
    return found


def _typed(field: "dataclasses.Field[Any]") -> Schema:
    parts = get_args(field.metadata["annotation"])
    choices = [choice for part in parts if get_origin(part) is Literal for choice in get_args(part)]
    if choices:
        return {"enum": [*choices, None]}
    types = {"type": [_JSON_TYPES[part] for part in parts]}
    # An editor proposes the built-in types; any text is accepted, because plugins may register more.
    return {"anyOf": [{"enum": list(BUILT_IN_TYPES)}, types]} if field.name == "type" else types
