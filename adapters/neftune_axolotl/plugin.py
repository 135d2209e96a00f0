"""The Axolotl plugin: the keys in Axolotl's schema, and the callback in its trainers."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from axolotl.integrations.base import BasePlugin
from axolotl.utils.logging import get_logger
from neftune_transformers import NEFTuneCallback
from pydantic import BaseModel, Field, create_model, model_validator
from transformers import TrainerCallback

from neftune_plugins import NoiseConfig, enabled, key, refuse_context_parallel, resolve

# Axolotl's name of the key before it was neftune_noise_alpha; it moves the value to the new one.
_OLDER_NAME = "noisy_embedding_alpha"


class _Checked(BaseModel):
    @model_validator(mode="before")
    @classmethod
    def check_neftune_keys(cls, data: Any) -> Any:
        """Check the keys as written: afterwards "5" would be 5.0, and a misspelt key would be gone."""
        older = {"neftune_noise_alpha": data[_OLDER_NAME]} if data.get(_OLDER_NAME) is not None else {}
        if resolve(older | dict(data)) is not None:
            block = data.get("context_parallel")  # of Axolotl 0.21
            refuse_context_parallel(
                {
                    "context_parallel_size": data.get("context_parallel_size"),
                    "sequence_parallel_degree": data.get("sequence_parallel_degree"),
                    "context_parallel.size": block.get("size") if isinstance(block, Mapping) else None,
                }
            )
        return data


# Axolotl's own schema has neftune_noise_alpha; its field would win over ours.
_FIELDS: dict[str, Any] = {
    key(field): (field.metadata["annotation"], Field(default=None, description=field.metadata["help"]))
    for field in dataclasses.fields(NoiseConfig)
    if field.name != "alpha"
}
NEFTuneArgs = create_model("NEFTuneArgs", __base__=_Checked, __module__=__name__, **_FIELDS)


class NEFTunePlugin(BasePlugin):  # type: ignore[misc]
    """Takes over `neftune_noise_alpha` and its companion keys, in SFT and in the RL trainers.

    Without the key, or with NEFTUNE_PLUGINS=0 in the environment, it does nothing.
    """

    def get_input_args(self) -> str | None:
        return "neftune_axolotl.NEFTuneArgs" if enabled() else None

    def get_training_args(self, cfg: Any) -> dict[str, Any] | None:
        return None if _config(cfg) is None else {"neftune_noise_alpha": None}

    def add_callbacks_pre_trainer(self, cfg: Any, model: Any) -> list[TrainerCallback]:
        config = _config(cfg)
        if config is None:
            return []
        callback = NEFTuneCallback(**dataclasses.asdict(config))
        callback.logger = get_logger("axolotl.neftune")  # Axolotl shows what its own loggers are told, and no others'
        return [callback]


def _config(cfg: Any) -> NoiseConfig | None:
    return resolve(cfg) if enabled() else None
