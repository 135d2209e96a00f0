"""The patches that put the callback into every trainer whose configuration asks for noise. Nothing of Ludwig is
imported here: a patch runs in the midst of its imports."""

import functools
from typing import Any

from neftune_ludwig.schema import keys, stop_if_unpatched
from neftune_plugins import enabled


def leave_out_native_hook(module: Any) -> None:
    """Patch `ludwig.models.llm`: Ludwig's hook, also on in batch size tuning, is not put in beside ours."""
    activate = module.LLM._activate_forward_hooks

    @functools.wraps(activate)
    def activate_unless_ours(self: Any) -> None:
        if enabled() and keys(self.config_obj.model_parameters):
            stop_if_unpatched()
        else:
            activate(self)

    module.LLM._activate_forward_hooks = activate_unless_ours


def add_callback(module: Any) -> None:
    """Patch `ludwig.trainers.trainer`: trainers whose configuration asks for noise get the callback, and it ends
    however training ends."""
    trainer = module.Trainer
    init, train, train_online = trainer.__init__, trainer.train, trainer.train_online

    @functools.wraps(init)
    def init_with_callback(self: Any, *args: Any, **kwargs: Any) -> None:
        from neftune_ludwig.callback import NEFTuneCallback, language_models

        init(self, *args, **kwargs)
        wanted = any(keys(parameters) for *_, parameters in language_models(self.model))
        if enabled() and wanted and not _ours(self):
            self.callbacks = [*self.callbacks, NEFTuneCallback()]

    @functools.wraps(train)
    def train_and_remove(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return train(self, *args, **kwargs)
        finally:
            for callback in _ours(self):
                callback.remove()

    @functools.wraps(train_online)
    def train_online_with_callback(self: Any, *args: Any, **kwargs: Any) -> Any:
        """It tells no callback that it begins or ends."""
        try:
            for callback in _ours(self):
                callback.on_trainer_train_setup(self, "", self.is_coordinator())
            return train_online(self, *args, **kwargs)
        finally:
            for callback in _ours(self):
                callback.remove()

    trainer.__init__ = init_with_callback
    trainer.train = train_and_remove
    trainer.train_online = train_online_with_callback


def _ours(trainer: Any) -> list[Any]:
    from neftune_ludwig.callback import NEFTuneCallback

    return [callback for callback in trainer.callbacks if isinstance(callback, NEFTuneCallback)]
