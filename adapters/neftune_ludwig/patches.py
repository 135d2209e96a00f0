"""The patches that add the callback to every trainer whose configuration asks for noise.

A patch runs while Ludwig is being imported, so this module imports nothing of Ludwig that Ludwig has not yet imported.
"""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

from neftune_ludwig.places import mappings, refuse_without_training
from neftune_ludwig.schema import keys, stop_if_unpatched
from neftune_plugins import NEFTuneError, NoiseConfigError, NoiseNotAppliedError, enabled, keys_in, resolve


def leave_out_native_hook(module: Any) -> None:
    """Patch `ludwig.models.llm`: do not install Ludwig's own hook, in training or in batch size tuning."""
    activate = module.LLM._activate_forward_hooks

    @functools.wraps(activate)
    def activate_unless_ours(self: Any) -> None:
        if enabled() and resolve(keys(self.config_obj.model_parameters)) is not None:
            stop_if_unpatched()
        else:
            activate(self)

    module.LLM._activate_forward_hooks = activate_unless_ours


def add_callback(module: Any) -> None:
    """Patch `ludwig.trainers.trainer`: trainers whose configuration asks for noise get the callback, which ends when
    training ends, also by an exception."""
    trainer = module.Trainer
    init, train, train_online = trainer.__init__, trainer.train, trainer.train_online

    @functools.wraps(init)
    def init_with_callback(self: Any, *args: Any, **kwargs: Any) -> None:
        from neftune_ludwig.callback import NEFTuneCallback

        init(self, *args, **kwargs)
        if enabled() and _has_keys(self.model) and not _ours(self):
            self.callbacks = [*self.callbacks, NEFTuneCallback()]

    @functools.wraps(train)
    def train_and_end(self: Any, *args: Any, **kwargs: Any) -> Any:
        with _our_callbacks(self):
            return train(self, *args, **kwargs)

    @functools.wraps(train_online)
    def train_online_with_callback(self: Any, *args: Any, **kwargs: Any) -> Any:
        """Patch `train_online`: Ludwig calls no callback when it begins or ends."""
        with _our_callbacks(self) as callbacks:
            for callback in callbacks:
                callback.on_trainer_train_setup(self, "", self.is_coordinator(), online=True)
            result = train_online(self, *args, **kwargs)
            for callback in callbacks:
                callback.on_trainer_train_teardown(self, None, "", self.is_coordinator())
            return result

    trainer.__init__ = init_with_callback
    trainer.train = train_and_end
    trainer.train_online = train_online_with_callback


def stop_without_training(module: Any) -> None:
    """Patch `ludwig.trainers.trainer_llm`: the trainer that trains nothing raises if the keys ask for noise.

    New configurations were refused earlier; this one may belong to a saved model.
    """
    from ludwig.trainers.registry import get_llm_trainers_registry

    trainer = get_llm_trainers_registry()["none"]  # the name depends on the release

    def refusing(train: Any) -> Any:
        @functools.wraps(train)
        def refuse(self: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                if enabled():
                    refuse_without_training(self.model.config_obj.to_dict())
            except NoiseConfigError as error:
                raise NoiseNotAppliedError(str(error)) from None
            return train(self, *args, **kwargs)

        return refuse

    trainer.train = refusing(trainer.train)
    trainer.train_online = refusing(trainer.train_online)


@contextlib.contextmanager
def _our_callbacks(trainer: Any) -> Iterator[list[Any]]:
    """The callbacks of a training. At its end, also by an exception, the noise is removed and our errors are raised."""
    callbacks = _ours(trainer)
    try:
        yield callbacks
        for callback in callbacks:
            callback.end()
    except UnboundLocalError as error:
        # Ludwig's `finally` also fails if the first epoch raised.
        if isinstance(error.__context__, NEFTuneError):
            raise error.__context__ from None
        raise
    finally:
        for callback in callbacks:
            callback.remove()


def _has_keys(model: Any) -> bool:
    """Whether our keys are anywhere in a model's configuration, even if nothing reads them."""
    return any(map(keys_in, mappings(model.config_obj.to_dict())))


def _ours(trainer: Any) -> list[Any]:
    from neftune_ludwig.callback import NEFTuneCallback

    return [callback for callback in trainer.callbacks if isinstance(callback, NEFTuneCallback)]
