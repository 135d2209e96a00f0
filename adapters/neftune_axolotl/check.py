"""Validates a configuration with Axolotl's own code, and checks that Axolotl finds the plugin."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from axolotl.cli.config import prepare_plugins
from axolotl.integrations import base
from axolotl.utils.config import validate_config
from axolotl.utils.dict import DictDefault
from pydantic import ValidationError
from pydantic_core import ErrorDetails
from transformers import TrainingArguments

from neftune_axolotl.plugin import NEFTunePlugin, with_present_name
from neftune_plugins import CheckedModel, NoiseConfigError, NoiseNotAppliedError, enabled, keys_in, resolve

_OURS = "neftune_axolotl.NEFTunePlugin"
_TRAINERS_SEED: Any = TrainingArguments.__dataclass_fields__["seed"].default


def adapter() -> str:
    """Return how Axolotl finds the plugin. Raises NoiseNotAppliedError if it searches entry points and misses ours."""
    find = getattr(base, "get_builtin_plugins", None)
    if find is None:
        return f"if the configuration has `plugins: [{_OURS}]`; this release does not search entry points"
    if _OURS not in find():
        raise NoiseNotAppliedError(
            f"Axolotl does not find the entry point of {_OURS}: reinstall neftune-plugins in this environment"
        )
    return "found by its entry point"


def check(file: Path) -> Sequence[CheckedModel]:
    """Validate a file without asking for a GPU, because the run may be on another machine.

    Raises NoiseConfigError for what Axolotl refuses, and NoiseNotAppliedError if our keys are set and the plugin is
    not loaded.
    """
    base.PluginManager.get_instance().plugins.clear()
    config = DictDefault(yaml.safe_load(file.read_text(encoding="utf-8")))
    prepare_plugins(config)
    found = any(isinstance(one, NEFTunePlugin) for one in base.PluginManager.get_instance().plugins.values())
    if enabled() and not found and resolve(with_present_name(config)) is not None:
        raise NoiseNotAppliedError(
            "Axolotl's own hook would read neftune_noise_alpha, because this release of Axolotl does not search entry "
            f"points and the configuration does not name our plugin. Add plugins: [{_OURS}]"
        )
    try:
        validated = validate_config(config)
    except ValidationError as error:
        raise NoiseConfigError("; ".join(map(_problem, error.errors()))) from None
    return [
        CheckedModel(
            place=(),
            keys=keys_in(validated),
            model=validated["base_model"],
            native=not validated.get("rl"),  # its builder of RL trainers does not pass the key on
            seed=_TRAINERS_SEED if validated.get("seed") is None else validated["seed"],
        )
    ]


def _problem(detail: ErrorDetails) -> str:
    place = ".".join(map(str, detail["loc"]))
    message = detail["msg"].removeprefix("Value error, ")
    return f"{place}: {message}" if place else message
