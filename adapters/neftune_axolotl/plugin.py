"""The Axolotl plugin: adds the keys to Axolotl's schema and the callback to its trainers."""

import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from axolotl.integrations.base import BasePlugin, PluginManager
from axolotl.utils.logging import get_logger
from neftune_transformers import NEFTuneCallback
from pydantic import BaseModel, Field, create_model, model_validator
from transformers import TrainerCallback

from neftune_axolotl.training import OLDER_NAME as _OLDER_NAME
from neftune_plugins import (
    NoiseConfig,
    NoiseConfigError,
    NoiseNotAppliedError,
    enabled,
    key,
    keys_in,
    no_noise_line,
    refuse_context_parallel,
    refuse_misplaced,
    refuse_options,
    resolve,
)

_ALPHA = "neftune_noise_alpha"
_LOG = get_logger("axolotl.neftune")  # Axolotl shows only its own loggers


def with_present_name(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration with alpha under its current name. Raises NoiseConfigError if both names are set."""
    named = {name: value for name, value in cfg.items() if name != _OLDER_NAME}
    older = cfg.get(_OLDER_NAME)
    if older is not None:
        if named.get(_ALPHA) is not None:
            raise NoiseConfigError(
                f"{_OLDER_NAME} and {_ALPHA} are both set, and the first is the older name of the second. Leave "
                f"{_OLDER_NAME} out"
            )
        named[_ALPHA] = older
    return named


def _refuse_cut_sequences(cfg: Mapping[str, Any]) -> None:
    block = cfg.get("context_parallel")  # of Axolotl 0.21
    refuse_context_parallel(
        {
            "context_parallel.size": block.get("size") if isinstance(block, Mapping) else None,
            "sequence_parallel_degree": cfg.get("sequence_parallel_degree"),
            "context_parallel_size": cfg.get("context_parallel_size"),
        }
    )


class _Checked(BaseModel):
    @model_validator(mode="before")
    @classmethod
    def check_neftune_keys(cls, data: Any) -> Any:
        """Check the keys before validation, which turns true into 1.0 and drops misspelt keys."""
        named = with_present_name(data)
        refuse_misplaced(named)
        ours = keys_in(named)
        if resolve(named) is None:  # also for 0, which Axolotl's own schema refuses
            return {name: value for name, value in named.items() if name not in ours}
        _refuse_cut_sequences(named)
        return named | ours


# Axolotl's own schema has neftune_noise_alpha; its field would win over ours.
_FIELDS: dict[str, Any] = {
    key(field): (field.metadata["annotation"], Field(default=None, description=field.metadata["help"]))
    for field in dataclasses.fields(NoiseConfig)
    if field.name != "alpha"
}
NEFTuneArgs = create_model("NEFTuneArgs", __base__=_Checked, __module__=__name__, **_FIELDS)


class NEFTunePlugin(BasePlugin):  # type: ignore[misc]
    """Reads `neftune_noise_alpha` and the other keys, in SFT and in the RL trainers, instead of Axolotl's own hook.

    Without the key, or with NEFTUNE_PLUGINS=0 in the environment, it does nothing. If it is registered twice, under
    two names, only the first instance is active.
    """

    def __init__(self) -> None:
        super().__init__()
        self._wanted = False
        self._callback: _Callback | None = None

    def register(self, cfg: Any) -> None:
        """Check the configuration as written, before Axolotl drops unknown keys."""
        if not self._active():
            return
        named = with_present_name(cfg)
        refuse_misplaced(named)
        if _is_axolotls_command():
            refuse_options(sys.argv[1:], read=[f"--{name.replace('_', '-')}" for name in (_ALPHA, _OLDER_NAME)])
        self._callback = None
        self._wanted = resolve(named) is not None
        if self._wanted:
            _refuse_cut_sequences(cfg)  # here, because Axolotl writes each of these keys into the others
        line = no_noise_line(named)
        if line:
            _LOG.info(line)

    def get_input_args(self) -> str | None:
        return "neftune_axolotl.NEFTuneArgs" if self._active() else None

    def get_training_args(self, cfg: Any) -> dict[str, Any] | None:
        return {_ALPHA: None} if self._active() and resolve(cfg) is not None else None

    def add_callbacks_pre_trainer(self, cfg: Any, model: Any) -> list[TrainerCallback]:
        config = resolve(cfg) if self._active() else None
        self._callback = None
        if config is not None:
            self._callback = _Callback(**dataclasses.asdict(config))
            return [self._callback]
        if self._wanted:
            raise NoiseNotAppliedError(
                f"{_ALPHA} was set in the file, but is missing from the configuration after Axolotl's validation, so "
                "training would have no noise. Another plugin removed it: take that plugin out of `plugins`"
            )
        return []

    def post_trainer_create(self, cfg: Any, trainer: Any) -> None:
        if self._callback is None:
            if self._wanted:
                raise NoiseNotAppliedError(_no_callbacks(trainer, "did not get the callbacks of plugins"))
            return
        handler = getattr(trainer, "callback_handler", None)
        if self._callback not in getattr(handler, "callbacks", ()):
            raise NoiseNotAppliedError(_no_callbacks(trainer, "ignores the callbacks that it gets"))

    def post_train(self, cfg: Any, model: Any) -> None:
        """Axolotl calls it twice, before and after it saves the model."""
        if self._callback is not None:
            self._callback.ended = True

    def post_train_unload(self, cfg: Any) -> None:
        callback, self._callback = self._callback, None
        if callback is not None and callback.ended and not callback.began:
            raise NoiseNotAppliedError(
                f"training ended without noise although {_ALPHA} is set: the trainer did not call on_train_begin of "
                "its callbacks. The model is saved. Use a trainer that calls its callbacks"
            )

    def _active(self) -> bool:
        """Whether this plugin is switched on and is the first registered instance."""
        ours = (one for one in PluginManager.get_instance().plugins.values() if isinstance(one, NEFTunePlugin))
        return enabled() and next(ours, self) is self


class _Callback(NEFTuneCallback):
    """began: whether `on_train_begin` was called. ended: whether the trainer returned."""

    logger = _LOG
    began = ended = False

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        super().on_train_begin(*args, **kwargs)
        self.began = True


def _no_callbacks(trainer: Any, problem: str) -> str:
    return (
        f"{_ALPHA} would have no effect: {type(trainer).__name__} {problem}. Use a trainer that takes callbacks, or "
        f"leave {_ALPHA} out"
    )


def _is_axolotls_command() -> bool:
    """Whether this process is the command `axolotl`, which drops unknown options.

    The processes that it launches write all options into the configuration. Other scripts have their own arguments.
    """
    program = Path(sys.argv[0])
    return program.stem == "axolotl" or program.parts[-3:] == ("axolotl", "cli", "main.py")
