"""The keys in Ludwig's schema: in `model_parameters` of a model or text encoder of type `llm`."""

import dataclasses
import functools
import sys
from collections.abc import Mapping
from typing import Any, get_args

from pydantic import Field

from neftune_ludwig.places import mappings, refuse_unread, refuse_without_training, refuse_wrong_values
from neftune_plugins import (
    NoiseConfig,
    NoiseConfigError,
    NoiseNotAppliedError,
    enabled,
    key,
    keys_in,
    unpatched,
)

KEYS = {field.name: key(field) for field in dataclasses.fields(NoiseConfig)}


def keys(model_parameters: Any) -> dict[str, Any]:
    """Return our keys that are set in the `model_parameters` of Ludwig's configuration object."""
    values = {name: getattr(model_parameters, name, None) for name in KEYS.values()}
    if not hasattr(model_parameters, KEYS["type"]) and values[KEYS["alpha"]] == 0:
        return {}  # the default if Ludwig's schema is not patched
    return keys_in(values)


def add_keys(module: Any) -> None:
    """Patch `ludwig.schema.llms.model_parameters`: its configuration class gets our fields."""
    original = module.ModelParametersConfig

    def to_dict(self: Any) -> dict[str, Any]:
        given = keys(self)
        alpha = given.get(KEYS["alpha"])
        if alpha is not None and alpha == int(alpha):
            given[KEYS["alpha"]] = int(alpha)  # the only form that Ludwig itself reads
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
    """Return the annotation without Literal, which Ludwig's schema does not support."""
    choices = [choice for annotation in get_args(field.metadata["annotation"]) for choice in get_args(annotation)]
    return {"enum": [*choices, None]} if choices else None


def check_keys(module: Any) -> None:
    """Patch `ludwig.schema.model_types.base` to check our keys first: Ludwig drops unknown keys, and reports a wrong
    value without its key."""
    check_schema = module.check_schema

    @functools.wraps(check_schema)
    def checked(config: dict[str, Any]) -> None:
        if enabled() and not _loads_a_model():
            check(config)
        check_schema(config)

    module.check_schema = checked


def check(config: Mapping[str, Any]) -> None:
    """Check the keys in a configuration before Ludwig reads it, and convert numbers given as text.

    Raises Ludwig's ConfigValidationError for a wrong value, for a key that nothing reads, and for keys if nothing is
    trained.
    """
    from ludwig.error import ConfigValidationError

    try:
        refuse_unread(config)
        wanted = refuse_wrong_values(config)
        refuse_without_training(config)
    except NoiseConfigError as error:
        raise ConfigValidationError(f"Failed to validate neftune_noise_* keys. Error: {error}") from error
    if wanted:
        stop_if_unpatched()
    for found in mappings(config):
        if isinstance(found, dict):
            found.update(keys_in(found))


def _loads_a_model() -> bool:
    """Whether `LudwigModel.load` reads the configuration.

    A saved model can make predictions without noise, so its keys are checked only when it trains again. (A patch of
    `load` itself would come too late if `ludwig.api` is what imports torch.)
    """
    frame = sys._getframe()
    while frame := frame.f_back:  # type: ignore[assignment]
        if frame.f_code.co_name == "load" and frame.f_globals.get("__name__") == "ludwig.api":
            return True
    return False


def stop_if_unpatched() -> None:
    """Raise NoiseNotAppliedError if the keys were read but a patch that applies them failed."""
    problem = unpatched("neftune_ludwig")
    if problem:
        raise NoiseNotAppliedError(f"neftune_noise_alpha would have no effect: {problem}")
