"""Finds the places of the keys in a Ludwig configuration, and keys that nothing reads. Does not import Ludwig.

A configuration here is a mapping whose features Ludwig has already merged with its `defaults`.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from neftune_plugins import NoiseConfigError, Place, keys_in, refuse_misplaced, resolve

_ALPHA = "neftune_noise_alpha"
_PARAMETERS = "model_parameters"


def owners(config: Mapping[str, Any]) -> list[Place]:
    """Return the places of the mappings that keys are read from: of the language model, or of each llm text encoder."""
    if config.get("model_type") == "llm":
        return [(_PARAMETERS,)]
    return [
        ("input_features", number, "encoder", _PARAMETERS)
        for number, feature in enumerate(_features(config))
        if _is_language_model(feature) and not _tied(feature)
    ]


def mappings(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Return all places that may hold a key, including those that nothing reads."""
    for place in (*owners(config), *dict(_of_tied_features(config)), *dict(_defaults(config))):
        yield at(config, place)


def refuse_unread(config: Mapping[str, Any]) -> None:
    """Raise NoiseConfigError for a key of ours that nothing reads, with its place.

    Such a key is misspelt, in a wrong place, of an encoder that a tied feature does not use, or a default that no
    feature takes.
    """
    unread = dict(_of_tied_features(config))
    defaults = dict(_defaults(config))
    refuse_misplaced(_without_users_names(config), [*owners(config), *unread, *defaults], _home(config))
    for place, (problem, allowed) in unread.items():
        for name, value in keys_in(at(config, place)).items():
            if allowed.get(name) != value:
                raise NoiseConfigError(f"{shown(place)}.{name}: {value!r} has no effect: {problem}")
    for place, users in defaults.items():
        for name, value in keys_in(at(config, place)).items():
            if not any(name in keys_in(at(config, user)) for user in users):
                raise NoiseConfigError(
                    f"{shown(place)}.{name}: {value!r} has no effect: no input feature takes an encoder of type llm "
                    f"from these defaults; write {name}: {value} {_home(config)}"
                )


def refuse_wrong_values(config: Mapping[str, Any]) -> bool:
    """Whether the keys ask for noise in any place. Raises NoiseConfigError for a value that cannot be used."""
    wanted = False
    for place in owners(config):
        given = at(config, place)
        if is_searched(config) and keys_in(given).get(_ALPHA) is None:
            given = {**given, _ALPHA: 0}
        wanted = resolve(given) is not None or wanted
    return wanted or is_searched(config)


def refuse_without_training(config: Mapping[str, Any]) -> None:
    """Raise NoiseConfigError if the keys ask for noise and the trainer trains nothing."""
    reason = no_training(config)
    if reason and refuse_wrong_values(config):
        alpha = keys_in(at(config, (_PARAMETERS,))).get(_ALPHA, "in hyperopt.parameters")
        raise NoiseConfigError(
            f"{_ALPHA}: {alpha} has no effect, because nothing is trained: {reason}, or leave the key out to "
            "evaluate only"
        )


def no_training(config: Mapping[str, Any]) -> str:
    """Return why a run with this configuration trains nothing, and the remedy; empty if it trains."""
    trainer = at(config, ("trainer",))
    if config.get("model_type") != "llm" or trainer.get("type") not in ("none", None):
        return ""
    left_out = "trainer.type is left out, which is none for model_type llm"
    return f"{'trainer.type is none' if 'type' in trainer else left_out}; set trainer: {{type: finetune}}"


def is_searched(config: Mapping[str, Any]) -> bool:
    """Whether Ludwig's hyperopt searches alpha. Then each trial sets it, and the other keys may be set without it."""
    hyperopt = config.get("hyperopt")
    parameters = hyperopt.get("parameters") if isinstance(hyperopt, Mapping) else None
    return isinstance(parameters, Mapping) and any(_sets_alpha(name, value) for name, value in parameters.items())


def at(config: Any, place: Place) -> Mapping[str, Any]:
    """Return the mapping at a place; empty if there is none."""
    for part in place:
        if isinstance(config, Mapping):
            config = config.get(part)
        elif isinstance(config, list | tuple) and isinstance(part, int) and part < len(config):
            config = config[part]
        else:
            return {}
    return config if isinstance(config, Mapping) else {}


def shown(place: Place) -> str:
    """Return a place as Ludwig's own errors name it."""
    return ".".join(map(str, place))


def _features(config: Mapping[str, Any]) -> list[Any]:
    features = config.get("input_features")
    return list(features) if isinstance(features, list | tuple) else []


def _is_language_model(feature: Any) -> bool:
    return at(feature, ("encoder",)).get("type") == "llm"


def _tied(feature: Mapping[str, Any]) -> str | None:
    """The other feature that a feature takes its encoder from."""
    tied = feature.get("tied")
    return None if tied is None or tied == feature.get("name") else str(tied)


def _of_tied_features(config: Mapping[str, Any]) -> Iterator[tuple[Place, tuple[str, Mapping[str, Any]]]]:
    """Yield the places of parameters of encoders that are not made, because their feature is tied to another.

    With each: the message about it, and the keys that are allowed there, because Ludwig requires tied features to have
    the same parameters.
    """
    if config.get("model_type") == "llm":
        return
    named = {feature.get("name"): feature for feature in _features(config) if isinstance(feature, Mapping)}
    for number, feature in enumerate(_features(config)):
        if not _is_language_model(feature) or not _tied(feature):
            continue
        used = feature
        for _ in named:
            used = named.get(_tied(used), used)
        problem = (
            f"the feature {feature.get('name')} is tied to {feature['tied']} and has no separate encoder; write it "
            f"in the encoder of {used.get('name')}"
        )
        place = ("input_features", number, "encoder", _PARAMETERS)
        yield place, (problem, keys_in(at(used, ("encoder", _PARAMETERS))))


def _defaults(config: Mapping[str, Any]) -> Iterator[tuple[Place, list[Place]]]:
    """Yield the places of language models' parameters in `defaults`, each with the places that it fills."""
    if config.get("model_type") == "llm":
        return
    defaults = config.get("defaults")
    for kind, default in defaults.items() if isinstance(defaults, Mapping) else ():
        if _is_language_model(default):
            users = [place for place in owners(config) if at(config, place[:2]).get("type") == kind]
            yield ("defaults", kind, "encoder", _PARAMETERS), users


def _without_users_names(config: Mapping[str, Any]) -> Any:
    """Return the configuration without the parameters of hyperopt, whose keys are places, and without class weights."""
    found = dict(_without(config, "hyperopt", "parameters"))
    if isinstance(found.get("output_features"), list | tuple):
        found["output_features"] = [_without(feature, "loss", "class_weights") for feature in found["output_features"]]
    if isinstance(found.get("defaults"), Mapping):
        defaults = found["defaults"].items()
        found["defaults"] = {kind: _without(default, "loss", "class_weights") for kind, default in defaults}
    return found


def _without(value: Any, name: str, *inside: str) -> Any:
    if not isinstance(value, Mapping) or name not in value:
        return value
    rest = {other: child for other, child in value.items() if other != name}
    return rest | {name: _without(value[name], *inside)} if inside else rest


def _home(config: Mapping[str, Any]) -> str:
    """Return in words where the keys belong."""
    places = owners(config)
    if places:
        return f"in {' or '.join(map(shown, places))}"
    return (
        "in the model_parameters of an input feature's encoder of type llm (there is none), or in those at the top "
        "level with model_type: llm (it is ecd)"
    )


def _sets_alpha(name: object, values: Any) -> bool:
    """Whether a parameter of hyperopt sets alpha. The values of the parameter `.` are parts of configurations."""
    if str(name).rpartition(".")[2] == _ALPHA:
        return True
    waiting = [values] if name == "." else []
    while waiting:
        value = waiting.pop()
        if isinstance(value, Mapping):
            if _ALPHA in value:
                return True
            waiting += value.values()
        elif isinstance(value, list | tuple):
            waiting += value
    return False
