"""The Ludwig callback."""

import contextlib
import functools
import logging
import sys
from collections.abc import Mapping
from typing import Any

import torch
from ludwig.callbacks import Callback
from torch import Tensor

from neftune_ludwig.models import language_models
from neftune_ludwig.places import refuse_unread, refuse_without_training
from neftune_ludwig.schema import keys
from neftune_ludwig.updates import Updates
from neftune_plugins import (
    Handle,
    NoiseConfig,
    NoiseConfigError,
    NoiseNotAppliedError,
    curve,
    enabled,
    install,
    no_noise_line,
    resolve,
)

_log = logging.getLogger("ludwig.neftune")  # Ludwig shows the messages of its own loggers only


class NEFTuneCallback(Callback):  # type: ignore[misc]
    """Noisy embeddings (arXiv 2310.05914) for Ludwig in Python, without the keys in the configuration.

    >>> model = LudwigModel(config, callbacks=[NEFTuneCallback(alpha=5)])
    >>> results = model.train(dataset=dataset)

    alpha: `neftune_noise_alpha`. Left out, it is that of the `model_parameters` of the configuration, if it has any.
    others: the further fields of `NoiseConfig`.

    It replaces Ludwig's own hook. The noise follows the optimiser's steps and, unless a seed is given,
    Ludwig's `random_seed`. When training ends, the model is as it was. The metrics of the noise are in Ludwig's
    TensorBoard logs of the training.

    With the environment variable NEFTUNE_PLUGINS=0 it does nothing. Raises NoiseConfigError for a value that cannot be
    used, and NoiseNotAppliedError before the first step if no language model in the model is trained.
    """

    def __init__(self, alpha: float | None = None, **others: Any) -> None:
        self._given = {"alpha": alpha, **others}
        self._handles: dict[str, Handle] = {}
        self._updates: Updates | None = None
        self._logged: int | None = None  # updates when metrics were last logged
        self._failure: NoiseNotAppliedError | None = None
        self._handled: BaseException | None = None
        self._undo = contextlib.ExitStack()
        if alpha is not None and enabled():
            resolve({}, self._given)  # raises for a bad value now, before the run begins

    def on_train_init(self, base_config: Mapping[str, Any], *args: Any, **kwargs: Any) -> None:
        """Before Ludwig makes the model."""
        if enabled() and self._given["alpha"] is not None:
            try:
                given = {"neftune_noise_alpha": self._given["alpha"]}
                refuse_without_training({**base_config, "model_parameters": given})
            except NoiseConfigError as error:
                raise NoiseNotAppliedError(f"NEFTuneCallback: {error}") from None

    def on_trainer_train_setup(
        self, trainer: Any, save_path: str, is_coordinator: bool, *, online: bool = False, **kwargs: Any
    ) -> None:
        if not enabled():
            return
        self._failure, self._handled = None, sys.exception()
        self._install(trainer, is_coordinator, online)
        if self._handles:
            # Without this package's patches Ludwig has installed its own hook.
            trainer.model._deactivate_forward_hooks()
            trainer.model._forward_hook_handles.clear()
            self._follow(trainer)
            self._log(trainer)

    def on_trainer_train_teardown(
        self, trainer: Any, progress_tracker: Any, save_path: str, is_coordinator: bool, **kwargs: Any
    ) -> None:
        # Ludwig calls this in a `finally`, before it saves the model.
        if sys.exception() is self._handled and self._updates is not None and not self._updates.nothing_left():
            try:
                for handle in self._handles.values():
                    handle.end()
            except NoiseNotAppliedError as error:
                self._failure = error
        self.remove()

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        self.end()

    def end(self) -> None:
        """Raise NoiseNotAppliedError if the training that just ended had no noise. Does nothing the second time."""
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def remove(self) -> None:
        """Remove the noise from the model. Does nothing if there is none."""
        self._undo.close()
        self._handles.clear()
        self._updates = None

    def _install(self, trainer: Any, is_coordinator: bool, online: bool) -> None:
        refuse_unread_in(trainer.model)
        wanted = any(value is not None for value in self._given.values())
        for name, model in language_models(trainer.model).items():
            config = resolve(keys(model.parameters), self._given)
            if config is None:
                line = no_noise_line(keys(model.parameters), self._given)
                wanted = wanted and not line
                if line and is_coordinator:
                    _log.info(line)
                continue
            _refuse(trainer, config, online)
            handle = install(model.owner.model, config, seed=trainer.random_seed, layout_reader=model.layout())
            self._handles[name] = handle
            self._undo.callback(handle.remove)
            if is_coordinator:
                _log.info(str(handle))
        if wanted and not self._handles:
            raise NoiseNotAppliedError(
                f"NEFTuneCallback: {type(trainer.model).__name__} has no language model (model_type llm, or a text "
                "encoder of type llm)"
            )

    def _follow(self, trainer: Any) -> None:
        """Give each batch the noise of the update that it belongs to."""
        updates = self._updates = Updates(trainer)
        self._undo.callback(updates.follow(self._wrap).remove)
        train_step = trainer.train_step
        self._logged = None

        def show() -> None:
            for handle in self._handles.values():
                handle.steps = updates.in_all()
                if handle.step != updates.made:
                    handle.step = updates.made

        @functools.wraps(train_step)
        def follow_train_step(inputs: Any, targets: Any, *args: Any, **kwargs: Any) -> Any:
            show()  # at the first batch every rank has loaded the state of a resumed run
            self._logged = updates.made if self._logged is None else self._logged
            result = self._beside_clean_losses(
                functools.partial(train_step, inputs, targets, *args, **kwargs),
                functools.partial(_loss, trainer, inputs, targets),
                lambda result: result[0] * trainer.gradient_accumulation_steps,
            )
            updates.batch_done()
            show()
            return result

        self._wrap(trainer, "train_step", follow_train_step)

    def _beside_clean_losses(self, train_step: Any, without_noise: Any, loss: Any) -> Any:
        for handle in self._handles.values():
            if handle.clean_loss is not None:
                beside = functools.partial(handle.clean_loss.beside, without_noise=without_noise, loss=loss)
                train_step = functools.partial(beside, train_step)
        return train_step()

    def _log(self, trainer: Any) -> None:
        """Write the metrics after each update, together with those that Ludwig writes for the batch."""
        write_step_summary = trainer.write_step_summary

        def write_with_metrics(train_summary_writer: Any, *args: Any, step: int, **kwargs: Any) -> None:
            if train_summary_writer is not None and self._updates is not None and self._updates.made != self._logged:
                self._logged = self._updates.made
                for name, handle in self._handles.items():
                    metrics = handle.metrics()
                    if curve.wanted():
                        curve.record(step + 1, metrics)
                    for metric, value in metrics.items():
                        tag = f"{name}/{metric}" if len(self._handles) > 1 else metric
                        train_summary_writer.add_scalar(tag, value, global_step=step)
            write_step_summary(train_summary_writer, *args, step=step, **kwargs)

        self._wrap(trainer, "write_step_summary", write_with_metrics)

    def _wrap(self, trainer: Any, name: str, wrapper: Any) -> None:
        wrapped = getattr(trainer, name)
        setattr(trainer, name, wrapper)

        def unwrap() -> None:
            if getattr(trainer, name) is wrapper:  # another wrapper may be around ours
                setattr(trainer, name, wrapped)

        self._undo.callback(unwrap)


def _loss(trainer: Any, inputs: Any, targets: Any) -> Tensor:
    """Return the loss of a batch as Ludwig's `train_step` computes it."""
    targets = dict(targets)  # Ludwig replaces these
    with torch.amp.autocast("cuda") if trainer.use_amp else contextlib.nullcontext():
        outputs = trainer.dist_model((inputs, targets))
        loss: Tensor = trainer.model.train_loss(
            targets, outputs, trainer.regularization_type, trainer.regularization_lambda
        )[0]
    return loss


def refuse_unread_in(model: Any) -> None:
    """Raise NoiseNotAppliedError if nothing reads a key that is in the model's configuration."""
    try:
        refuse_unread(model.config_obj.to_dict())
    except NoiseConfigError as error:
        raise NoiseNotAppliedError(str(error)) from None


def _refuse(trainer: Any, config: NoiseConfig, online: bool) -> None:
    """Raise NoiseConfigError for keys that this trainer cannot follow."""
    if not hasattr(trainer, "train_step"):
        raise NoiseNotAppliedError(
            f"neftune_noise_alpha: {config.alpha:g} has no effect, because {type(trainer).__name__} trains nothing; "
            "set trainer: {type: finetune}, or leave alpha out to evaluate only"
        )
    if online and config.schedule != "constant":
        raise NoiseConfigError(
            f"neftune_noise_schedule: {config.schedule!r} ends with the training, and train_online() has no end; set "
            "neftune_noise_schedule: constant in the model_parameters, or train with LudwigModel.train()"
        )
    if config.clean_loss_steps is not None and isinstance(trainer.optimizer, torch.optim.LBFGS):
        raise NoiseConfigError(
            f"neftune_clean_loss_steps: {config.clean_loss_steps} is not supported with optimizer.type lbfgs, which "
            "computes the loss of a batch many times in one update; leave the key out, or use another optimizer"
        )
