"""The callback of `neftune_transformers`, for ms-swift's trainers."""

from typing import Any

import transformers.trainer
from neftune_transformers import NEFTuneCallback as TrainerCallback
from neftune_transformers import defaults
from swift.utils import get_logger

from neftune_plugins import NoiseConfigError


class _InSwift(TrainerCallback):
    logger = get_logger()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.applies_to(args) and self.config(args) is not None:
            _refuse_tuner(kwargs.get("model"))
        super().on_train_begin(args, state, control, **kwargs)


class NEFTuneCallback(_InSwift):
    """Noisy embeddings (arXiv 2310.05914), for the file of `--external_plugins`.

    >>> callbacks_map["neftune"] = NEFTuneCallback

    Then `--callbacks neftune --neftune_noise_alpha 5` adds the noise, whether autoload is on or not. For other keys,
    register `functools.partial(NEFTuneCallback, schedule="linear")`.

    args, trainer: what ms-swift passes to each callback. alpha, others: as for `neftune_transformers.NEFTuneCallback`.
    Raises NoiseConfigError for a value that cannot be used.
    """

    def __init__(self, args: Any = None, trainer: Any = None, alpha: float | None = None, **others: Any) -> None:
        super().__init__(alpha, **others)


class FromArguments(_InSwift, defaults.FromArguments):
    """See `neftune_transformers.defaults`."""


def _refuse_tuner(model: Any) -> None:
    """Raise NoiseConfigError if the model has the noise of `swift.tuners.NEFTune`."""
    for name, module in model.named_modules():
        if getattr(module, "nef_activated", False):
            raise NoiseConfigError(
                f"neftune_noise_alpha together with the tuner swift.tuners.NEFTune, which is on {name}: the two noises "
                "would add up; leave NEFTuneConfig out of Swift.prepare_model, or leave the key out"
            )


def add(module: Any) -> None:
    """Patch `swift.trainers.mixin`, the base of all trainers. The package around it has replaced the Trainer's default
    callbacks by then."""
    defaults.add(transformers.trainer, FromArguments)
