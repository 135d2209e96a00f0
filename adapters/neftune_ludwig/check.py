"""Validates a configuration with Ludwig's own code, and checks that its modules are patched."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

from ludwig.error import ConfigValidationError
from ludwig.schema.llms import model_parameters
from ludwig.schema.model_types.base import ModelConfig
from ludwig.utils.data_utils import load_yaml
from ludwig.utils.defaults import default_random_seed
from transformers import AutoConfig, LlamaConfig

from neftune_ludwig.places import is_searched, owners
from neftune_ludwig.schema import KEYS, keys, stop_if_unpatched
from neftune_plugins import CheckedModel, NoiseConfigError, NoiseNotAppliedError


def adapter() -> str:
    """Return how Ludwig's modules are patched. Raises NoiseNotAppliedError if they are not."""
    stop_if_unpatched()
    if not set(KEYS.values()) <= set(model_parameters.ModelParametersConfig.model_fields):
        raise NoiseNotAppliedError(
            "Ludwig's modules are not patched: PyTorch has not called the entry points of "
            "`torch.backends`; unset TORCH_DEVICE_BACKEND_AUTOLOAD"
        )
    return "by PyTorch's autoload"


def check(file: Path) -> Sequence[CheckedModel]:
    """Validate a file. A base model that is not on this machine counts as one that Ludwig can load.

    Raises NoiseConfigError for what Ludwig refuses, with its place, which Ludwig's own error does not name.
    """
    known = AutoConfig.from_pretrained

    def known_or_trusted(name: str, **options: Any) -> Any:
        try:
            return known(name, **options)
        except OSError:
            return LlamaConfig()

    try:
        with patch.object(AutoConfig, "from_pretrained", known_or_trusted):
            return list(_models(ModelConfig.from_dict(load_yaml(str(file)))))
    except ConfigValidationError as error:
        place = ".".join(map(str, getattr(error.__cause__, "absolute_path", ())))
        if place:
            raise NoiseConfigError(f"{place}: {error}") from None
        raise


def _models(config: Any) -> Iterator[CheckedModel]:
    searched = is_searched(config.to_dict())
    for place in owners(config.to_dict()):
        owner = config if len(place) == 1 else config.input_features[place[1]].encoder
        found = keys(owner.model_parameters)
        if searched and KEYS["alpha"] not in found:
            found = {}  # each trial of hyperopt sets its own
        # The seed is the option --random_seed; no key sets it.
        native = config.model_type == "llm"
        yield CheckedModel(place, found, owner.base_model, native, seed=default_random_seed, seed_place=())
