"""The Ludwig callback."""

import contextlib
import functools
import logging
from collections.abc import Iterator
from typing import Any

import torch
from ludwig.callbacks import Callback
from ludwig.models.llm import LLM

from neftune_ludwig.layout import of_encoder, of_model
from neftune_ludwig.schema import keys
from neftune_plugins import Handle, NoiseNotAppliedError, enabled, install
from neftune_plugins.config import resolve

_log = logging.getLogger("ludwig.neftune")  # Ludwig shows what its own loggers are told
_STEP = "neftune_step"


class NEFTuneCallback(Callback):  # type: ignore[misc]
    """Noisy embeddings (arXiv 2310.05914) for `LudwigModel(config, callbacks=[NEFTuneCallback(alpha=5)])`.

    alpha: `neftune_noise_alpha`. Left out, it is that of the `model_parameters` of the configuration, if it has any.
    others: the further fields of `NoiseConfig`.

    It takes the place of Ludwig's own hook. The noise follows the optimiser's steps and, unless a seed is given,
    Ludwig's `random_seed`. When training ends, the model is as it was.

    With the environment variable NEFTUNE_PLUGINS=0 it does nothing. Raises NoiseConfigError for a value that cannot be
    used, and NoiseNotAppliedError before the first step where the model has no language model that is trained.
    """

    def __init__(self, alpha: float | None = None, **others: Any) -> None:
        self._given = {"alpha": alpha, **others}
        self._handles: list[Handle] = []
        self._undo = contextlib.ExitStack()
        if alpha is not None and enabled():
            resolve({}, self._given)  # a bad value is told here, not when the run begins

    def on_trainer_train_setup(self, trainer: Any, save_path: str, is_coordinator: bool, **kwargs: Any) -> None:
        if not enabled():
            return
        for owner, parameters in language_models(trainer.model):
            config = resolve(keys(parameters), self._given)
            if config is None:
                continue
            reader = of_model(owner.tokenizer) if isinstance(owner, LLM) else of_encoder(owner.config.pad_idx)
            handle = install(owner.model, config, seed=trainer.random_seed, layout_reader=reader)
            self._handles.append(handle)
            self._undo.callback(handle.remove)
            if is_coordinator:
                _log.info(str(handle))
        if self._handles:
            # Where this package's patches are not in place, Ludwig has put its own hook in.
            trainer.model._deactivate_forward_hooks()
            trainer.model._forward_hook_handles.clear()
            self._follow(trainer)
        elif any(value is not None for value in self._given.values()):
            raise NoiseNotAppliedError(
                f"NEFTuneCallback: {type(trainer.model).__name__} has no language model (model_type llm, or a text "
                "encoder of type llm)"
            )

    def on_trainer_train_teardown(
        self, trainer: Any, progress_tracker: Any, save_path: str, is_coordinator: bool, **kwargs: Any
    ) -> None:
        self.remove()

    def remove(self) -> None:
        """Take the noise out of the model, if it is in."""
        self._undo.close()
        self._handles.clear()

    def _follow(self, trainer: Any) -> None:
        """Count the optimiser's steps. Ludwig's own steps are batches, however many make an update. The count stands in
        the optimiser's state, so that Ludwig saves it and a resumed run goes on with it."""
        optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
        train_step = trainer.train_step
        begun = False

        def show() -> None:
            step = optimizer.param_groups[0].setdefault(_STEP, 0)
            for handle in self._handles:
                handle.step = step

        def advance(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            optimizer.param_groups[0][_STEP] += 1
            show()

        @functools.wraps(train_step)
        def begin_and_train_step(*args: Any, **kwargs: Any) -> Any:
            # Only now has every rank loaded the state of a resumed run, and knows how long the run will be.
            nonlocal begun
            if not begun:
                begun = True
                for handle in self._handles:
                    handle.steps = optimizer_steps(trainer)
                show()
            return train_step(*args, **kwargs)

        def stop_following() -> None:
            if trainer.train_step is begin_and_train_step:  # somebody else's may be around it
                trainer.train_step = train_step

        trainer.train_step = begin_and_train_step
        self._undo.callback(stop_following)
        self._undo.callback(optimizer.register_step_post_hook(advance).remove)


def optimizer_steps(trainer: Any) -> int | None:
    """How many updates a trainer that has begun makes in all, by the numbers that it gives its learning-rate scheduler;
    None in online training, where there are none. It counts batches, begins to accumulate anew in each epoch, and makes
    an update before it saves a checkpoint."""
    accumulated, checkpoint = trainer.gradient_accumulation_steps, trainer.scheduler.step_info.steps_per_checkpoint
    updates = sum(
        (batch % trainer.steps_per_epoch + 1) % accumulated == 0 or (batch + 1) % checkpoint == 0
        for batch in range(trainer.total_steps)
    )
    return updates or None


def language_models(model: Any) -> Iterator[tuple[Any, Any]]:
    """Ludwig's modules around a transformers model (`.model`, `.tokenizer`), each with its `model_parameters`."""
    if isinstance(model, LLM):
        yield model, model.config_obj.model_parameters
        return
    for feature in model.config_obj.input_features:
        if feature.encoder.type == "llm" and not feature.tied:  # a tied feature has the encoder of another
            yield model.input_features.get(feature.name).encoder_obj, feature.encoder.model_parameters
