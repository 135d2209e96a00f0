"""The Ludwig callback."""

import contextlib
import functools
import logging
from collections.abc import Iterator
from typing import Any

import torch
from ludwig.callbacks import Callback
from ludwig.models.llm import LLM
from torch import Tensor

from neftune_ludwig.layout import of_encoder, of_model
from neftune_ludwig.schema import keys
from neftune_plugins import Handle, NoiseNotAppliedError, curve, enabled, install, resolve

_log = logging.getLogger("ludwig.neftune")  # Ludwig shows what its own loggers are told
_STEP = "neftune_step"


class NEFTuneCallback(Callback):  # type: ignore[misc]
    """Noisy embeddings (arXiv 2310.05914) for `LudwigModel(config, callbacks=[NEFTuneCallback(alpha=5)])`.

    alpha: `neftune_noise_alpha`. Left out, it is that of the `model_parameters` of the configuration, if it has any.
    others: the further fields of `NoiseConfig`.

    It takes the place of Ludwig's own hook. The noise follows the optimiser's steps and, unless a seed is given,
    Ludwig's `random_seed`. When training ends, the model is as it was. The metrics of the noise are in Ludwig's
    TensorBoard logs of the training.

    With the environment variable NEFTUNE_PLUGINS=0 it does nothing. Raises NoiseConfigError for a value that cannot be
    used, and NoiseNotAppliedError before the first step where the model has no language model that is trained.
    """

    def __init__(self, alpha: float | None = None, **others: Any) -> None:
        self._given = {"alpha": alpha, **others}
        self._handles: dict[str, Handle] = {}
        self._has_stepped = False
        self._undo = contextlib.ExitStack()
        if alpha is not None and enabled():
            resolve({}, self._given)  # a bad value is told here, not when the run begins

    def on_trainer_train_setup(self, trainer: Any, save_path: str, is_coordinator: bool, **kwargs: Any) -> None:
        if not enabled():
            return
        for name, owner, parameters in language_models(trainer.model):
            config = resolve(keys(parameters), self._given)
            if config is None:
                continue
            reader = of_model(owner.tokenizer) if isinstance(owner, LLM) else of_encoder(owner.config.pad_idx)
            handle = install(owner.model, config, seed=trainer.random_seed, layout_reader=reader)
            self._handles[name] = handle
            self._undo.callback(handle.remove)
            if is_coordinator:
                _log.info(str(handle))
        if self._handles:
            # Where this package's patches are not in place, Ludwig has put its own hook in.
            trainer.model._deactivate_forward_hooks()
            trainer.model._forward_hook_handles.clear()
            self._follow(trainer)
            self._log(trainer)
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
            for handle in self._handles.values():
                if handle.step != step:
                    handle.step = step

        def advance(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            optimizer.param_groups[0][_STEP] += 1
            self._has_stepped = True

        @functools.wraps(train_step)
        def follow_train_step(inputs: Any, targets: Any, *args: Any, **kwargs: Any) -> Any:
            # Only now has every rank loaded the state of a resumed run, and knows how long the run will be.
            nonlocal begun
            if not begun:
                begun = True
                for handle in self._handles.values():
                    handle.steps = optimizer_steps(trainer)
                show()
            result = self._beside_clean_losses(
                functools.partial(train_step, inputs, targets, *args, **kwargs),
                functools.partial(_loss, trainer, inputs, targets),
                lambda result: result[0] * trainer.gradient_accumulation_steps,
            )
            show()
            return result

        self._wrap(trainer, "train_step", follow_train_step)
        self._undo.callback(optimizer.register_step_post_hook(advance).remove)

    def _beside_clean_losses(self, train_step: Any, without_noise: Any, loss: Any) -> Any:
        for handle in self._handles.values():
            if handle.clean_loss is not None:
                beside = functools.partial(handle.clean_loss.beside, without_noise=without_noise, loss=loss)
                train_step = functools.partial(beside, train_step)
        return train_step()

    def _log(self, trainer: Any) -> None:
        """Have the metrics written after each update, with what Ludwig writes of the batch."""
        write_step_summary = trainer.write_step_summary

        def write_with_metrics(train_summary_writer: Any, *args: Any, step: int, **kwargs: Any) -> None:
            if train_summary_writer is not None and self._has_stepped:
                self._has_stepped = False
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
            if getattr(trainer, name) is wrapper:  # somebody else's may be around it
                setattr(trainer, name, wrapped)

        self._undo.callback(unwrap)


def _loss(trainer: Any, inputs: Any, targets: Any) -> Tensor:
    """Of a batch, as Ludwig's `train_step` computes it."""
    targets = dict(targets)  # Ludwig puts others in their place
    with torch.amp.autocast("cuda") if trainer.use_amp else contextlib.nullcontext():
        outputs = trainer.dist_model((inputs, targets))
        loss: Tensor = trainer.model.train_loss(
            targets, outputs, trainer.regularization_type, trainer.regularization_lambda
        )[0]
    return loss


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


def language_models(model: Any) -> Iterator[tuple[str, Any, Any]]:
    """Ludwig's modules around a transformers model (`.model`, `.tokenizer`), each with the name of its feature and its
    `model_parameters`."""
    features = model.config_obj.input_features
    if isinstance(model, LLM):
        yield features[0].name, model, model.config_obj.model_parameters
        return
    for feature in features:
        if feature.encoder.type == "llm" and not feature.tied:  # a tied feature has the encoder of another
            owner = model.input_features.get(feature.name).encoder_obj
            yield feature.name, owner, feature.encoder.model_parameters
