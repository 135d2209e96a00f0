"""The keys in Ludwig's schema: in `model_parameters` of a model or text encoder of type `llm`."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any, get_args

from pydantic import Field

from neftune_plugins import (
    NoiseConfig,
    NoiseConfigError,
    NoiseNotAppliedError,
    enabled,
    is_like_ours,
    key,
    resolve,
    unpatched,
)

KEYS = {field.name: key(field) for field in dataclasses.fields(NoiseConfig)}
_PLACE = "model_parameters"


def keys(model_parameters: Any) -> dict[str, Any]:
    """Those of ours that are set in the `model_parameters` of Ludwig's configuration object."""
    values = {name: getattr(model_parameters, name, None) for name in KEYS.values()}
    if values[KEYS["alpha"]] == 0:  # the default where Ludwig's schema is not patched
        del values[KEYS["alpha"]]
    return {name: value for name, value in values.items() if value is not None}


def add_keys(module: Any) -> None:
    """Patch `ludwig.schema.llms.model_parameters`: its configuration class gets our fields."""
    original = module.ModelParametersConfig

    def to_dict(self: Any) -> dict[str, Any]:
        given = keys(self)
        alpha = given.get(KEYS["alpha"])
        if alpha is not None and alpha == int(alpha):
            given[KEYS["alpha"]] = int(alpha)  # the only form that Ludwig reads without us
        return dict(original.to_dict(self) | given)

    fields = {field.metadata["key"]: field for field in dataclasses.fields(NoiseConfig)}
    module.ModelParametersConfig = type(original)(
        original.__name__,
        (original,),
        {
            "__module__": original.__module__,
            "__qualname__": original.__qualname__,
            "__annotations__": {name: _annotation(field) for name, field in fields.items()},
            "to_dict": to_dict,
        }
        | {
            name: Field(default=None, description=field.metadata["help"], json_schema_extra=_choices(field))
            for name, field in fields.items()
        },
    )


def _annotation(field: "dataclasses.Field[Any]") -> Any:
    return str | None if _choices(field) else field.metadata["annotation"]


def _choices(field: "dataclasses.Field[Any]") -> dict[str, Any] | None:
    """Ludwig's schema knows no Literal."""
    choices = [choice for annotation in get_args(field.metadata["annotation"]) for choice in get_args(annotation)]
    return {"enum": [*choices, None]} if choices else None


def check_keys(module: Any) -> None:
    """Patch `ludwig.schema.model_types.base`: our keys are checked before Ludwig drops those that it does not know, and
    before it reports a wrong value without its key."""
    check_schema = module.check_schema

    @functools.wraps(check_schema)
    def checked(config: dict[str, Any]) -> None:
        if enabled():
            check(config)
        check_schema(config)

    module.check_schema = checked


def check(config: Mapping[str, Any]) -> None:
    """Raises Ludwig's ConfigValidationError for a wrong value of ours, a misspelt key, and a key in a wrong place."""
    from ludwig.error import ConfigValidationError

    right = {id(parameters) for parameters in _right_places(config)}
    # What is searched for by Ludwig's hyperopt is checked when it is tried.
    searched = {name: value for name, value in config.items() if name != "hyperopt"}
    try:
        for place, mapping in _mappings(searched, ""):
            if id(mapping) in right:
                if resolve(mapping) is not None:
                    stop_if_unpatched()
                continue
            for name in filter(is_like_ours, mapping):
                raise NoiseConfigError(
                    f"{name}: {mapping[name]!r} at {place or 'the top level'} has no effect there; set it in "
                    f"{_PLACE}, of the model where model_type is llm, or of a text encoder of type llm"
                )
    except NoiseConfigError as error:
        raise ConfigValidationError(f"Failed to validate neftune_noise_* keys. Error: {error}") from error


def stop_if_unpatched() -> None:
    """Raises NoiseNotAppliedError where the keys are there, but not all that makes noise of them."""
    problem = unpatched("neftune_ludwig")
    if problem:
        raise NoiseNotAppliedError(f"neftune_noise_alpha would have no effect: {problem}")


def _right_places(config: Mapping[str, Any]) -> Iterator[Any]:
    if config.get("model_type") == "llm":
        yield config.get(_PLACE)
    features = [*(config.get("input_features") or ()), *(config.get("defaults") or {}).values()]
    for feature in features:
        encoder = feature.get("encoder") if isinstance(feature, Mapping) else None
        if isinstance(encoder, Mapping) and encoder.get("type") == "llm":
            yield encoder.get(_PLACE)


def _mappings(value: Any, place: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """All mappings in a configuration, with where they are."""
    if isinstance(value, Mapping):
        yield place, value
        children: Any = value.items()
    else:
        children = enumerate(value) if isinstance(value, list | tuple) else ()
    for name, child in children:
        yield from _mappings(child, f"{place}.{name}" if place else str(name))
