"""The Trainer callback."""

import contextlib
import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils.logging import get_logger

from neftune_plugins import (
    Handle,
    NoiseConfig,
    NoiseNotAppliedError,
    enabled,
    install,
    no_noise_line,
    refuse_context_parallel,
    resolve,
)
from neftune_transformers.traces import leaving_none

if TYPE_CHECKING:
    from transformers import Trainer

_NATIVE = "neftune_post_forward_hook"


class NEFTuneCallback(TrainerCallback):
    """Noisy embeddings (arXiv 2310.05914) for transformers' Trainer and TRL's trainers.

    >>> trainer = Trainer(model, args, train_dataset=rows, callbacks=[NEFTuneCallback(alpha=5)])
    >>> trainer.train().global_step
    5

    alpha: `neftune_noise_alpha`. Left out, it is that of TrainingArguments; null in both places is no noise.
    others: the further fields of `NoiseConfig`, for TrainingArguments that do not have them.

    It replaces the Trainer's own hook; the two are never active together. The noise follows the global step and,
    unless a seed is given, `TrainingArguments.seed`: a resumed run draws what the uninterrupted one would have drawn.
    When `train()` ends, however it ends, the model is as it was. The metrics of the noise are in the training's logs.

    `logger` gets the line that says where noise is added. With the environment variable NEFTUNE_PLUGINS=0 the callback
    does nothing. Raises NoiseConfigError for a value that cannot be used.
    """

    logger: Any = get_logger("transformers.neftune")
    by_default = False  # whether trainers add it by themselves

    def __init__(self, alpha: float | None = None, **others: Any) -> None:
        self._given = {"alpha": alpha, **others}
        self._handle: Handle | None = None
        self._trainer: Trainer | None = None  # the one that trains
        self._begun = False
        self._first_step = 0
        if alpha is not None and enabled():
            resolve({}, self._given)  # raises for a bad value now, before the run begins
        _let_callbacks_into_trainer()

    def config(self, args: TrainingArguments) -> NoiseConfig | None:
        """Return the configuration for a run with these arguments; None for no noise."""
        return resolve(vars(args), self._given)

    def applies_to(self, args: TrainingArguments) -> bool:
        """Whether the callback reads these arguments."""
        return enabled()

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.applies_to(args):
            self.config(args)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._begun = True
        config = self.config(args) if self.applies_to(args) else None
        if config is None:
            line = no_noise_line(vars(args), self._given) if self.applies_to(args) else ""
            if line and state.is_world_process_zero:
                self.logger.info(line)
            return
        model = given = kwargs.get("model")
        if not isinstance(model, torch.nn.Module):
            model = getattr(self._trainer, "model", None)  # SetFit gives callbacks its own object
        if not isinstance(model, torch.nn.Module):
            raise NoiseNotAppliedError(
                f"NEFTuneCallback was given no PyTorch model when the training began, but {type(given).__name__}: this "
                "trainer is no transformers.Trainer; use neftune_plugins.install(model, config) around its training"
            )
        _without_native_hook(model)
        processing_class = kwargs.get("processing_class")
        tokenizer = getattr(processing_class, "tokenizer", processing_class)
        pad_token_id = getattr(tokenizer, "pad_token_id", None)
        self._handle = install(
            model, config, seed=getattr(args, "seed", None), steps=state.max_steps, pad_token_id=pad_token_id
        )
        self._handle.step = self._first_step = state.global_step
        if state.is_world_process_zero:
            self.logger.info(str(self._handle))

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._refuse_late(args, state)
        self._follow(state)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        # PPO and RLOO of TRL 0.19 do not call on_step_begin.
        self._follow(state)

    def _refuse_late(self, args: TrainingArguments, state: TrainerState) -> None:
        if not self._begun and self.applies_to(args) and self.config(args) is not None:
            raise NoiseNotAppliedError(
                f"NEFTuneCallback was added when training had begun, in step {state.global_step}, and the steps so far "
                "had none of its noise; give it to the trainer before train(): Trainer(callbacks=[NEFTuneCallback()])"
            )

    def _follow(self, state: TrainerState) -> None:
        if self._handle is not None and self._handle.step != state.global_step:
            self._handle.step = state.global_step

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._refuse_late(args, state)
        handle = self._handle
        self.remove()
        # A resumed run may have no steps left.
        if handle is not None and state.global_step > self._first_step:
            handle.end()

    def remove(self) -> None:
        """Remove the noise from the model. Does nothing if there is none."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def add_metrics(self, logs: dict[str, float]) -> None:
        """Add the metrics of the noise to a log entry of the training."""
        is_summary = "train_runtime" in logs or any(name.startswith("eval_") for name in logs)
        if self._handle is not None and not is_summary:
            logs.update(self._handle.metrics())

    @contextlib.contextmanager
    def surrounding(self, trainer: "Trainer") -> Iterator[None]:
        """The context that `trainer.train()` runs in: the native hook is off, and ours is removed at the end.

        Raises NoiseConfigError if the trainer splits sequences over processes.
        """
        self._begun, self._trainer = False, trainer
        with contextlib.ExitStack() as stack:
            stack.callback(setattr, self, "_trainer", None)
            stack.callback(self.remove)
            if self.applies_to(trainer.args):
                stack.enter_context(patch.object(trainer, "neftune_noise_alpha", None))
                config = self.config(trainer.args)
                if config is not None:
                    parallel = getattr(trainer.accelerator, "parallelism_config", None)
                    sizes = {name: getattr(parallel, name, None) for name in ("cp_size", "sp_size")}
                    refuse_context_parallel({f"parallelism_config.{name}": size for name, size in sizes.items()})
                    if hasattr(trainer, "collect_features"):
                        cached = functools.partial(self._compute_cached_loss, trainer.compute_loss)
                        stack.enter_context(patch.object(trainer, "compute_loss", cached))
                    if config.clean_loss_steps is not None:
                        compute_loss = functools.partial(self._compute_loss, trainer, trainer.compute_loss)
                        stack.enter_context(patch.object(trainer, "compute_loss", compute_loss))
            yield

    def _compute_cached_loss(self, compute_loss: Any, *args: Any, **kwargs: Any) -> Any:
        """Wrap the `compute_loss` of sentence-transformers: its cached losses (arXiv 2101.06983) first compute
        embeddings without gradients, and these need the noise of the pass with gradients."""
        if self._handle is None or not torch.is_grad_enabled():
            return compute_loss(*args, **kwargs)
        with self._handle.training_forwards():
            return compute_loss(*args, **kwargs)

    def _compute_loss(
        self, trainer: "Trainer", compute_loss: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """Wrap the trainer's `compute_loss`: in steps that log the clean loss, compute it once more without noise."""
        if self._handle is None or self._handle.clean_loss is None or not torch.is_grad_enabled():
            return compute_loss(model, inputs, *args, **kwargs)

        def loss_of(result: Any) -> Tensor:
            loss: Tensor = result[0] if isinstance(result, tuple) else result
            return loss.mean()  # nn.DataParallel gives a loss for each GPU

        def without_noise() -> Tensor:
            with leaving_none(trainer, model, inputs):
                return loss_of(compute_loss(model, dict(inputs), *args, **kwargs))

        clean_loss = self._handle.clean_loss
        # Micro-batch losses that are divided by the tokens of the whole step sum to the loss of the step.
        is_part = _is_divided_by_step(trainer, kwargs.get("num_items_in_batch"))
        return clean_loss.beside(
            lambda: compute_loss(model, inputs, *args, **kwargs),
            without_noise=without_noise,
            loss=loss_of,
            weight=0 if is_part and clean_loss.begun else 1,
        )


def _is_divided_by_step(trainer: Any, num_items_in_batch: Any) -> bool:
    """Whether a micro-batch's loss is divided by the tokens of the whole step: the condition under which the Trainer
    does not divide by the number of micro-batches."""
    is_scaled = getattr(trainer, "loss_is_scaled_for_ga", None)
    if is_scaled is not None:
        return bool(is_scaled)
    accepts = trainer.model_accepts_loss_kwargs and num_items_in_batch is not None
    return bool(accepts or trainer.compute_loss_func is not None)


def _without_native_hook(model: Any) -> None:
    """Remove the Trainer's own hook from a model. `surrounding` prevents it, unless another callback added ours after
    training had begun."""
    for module in model.modules():
        hooks = module._forward_hooks
        for number in [number for number, hook in hooks.items() if getattr(hook, "__name__", "") == _NATIVE]:
            del hooks[number]


def _callbacks(trainer: "Trainer") -> list[NEFTuneCallback]:
    """Return our callbacks in a trainer; drops the default one if the user passed another."""
    callbacks = trainer.callback_handler.callbacks
    ours = [callback for callback in callbacks if isinstance(callback, NEFTuneCallback)]
    given = [callback for callback in ours if not callback.by_default]
    if given and given != ours:
        callbacks[:] = [callback for callback in callbacks if callback in given or callback not in ours]
    return given or ours


def _remove_all(trainer: "Trainer") -> None:
    """Remove the noise of all our callbacks, including those that were added during training."""
    for callback in _callbacks(trainer):
        callback.remove()


def _let_callbacks_into_trainer() -> None:
    """Wrap `Trainer.train` and `Trainer.log`, once.

    A Trainer fires no event when training raises, installs its own hook before the first event, and writes its logs
    before `on_log`. Trainers without a NEFTuneCallback work as before.
    """
    from transformers import (
        Trainer,
    )  # not at the top: the patch that runs when transformers.trainer is imported imports this module

    if hasattr(Trainer.train, "_neftune_wrapped"):
        return
    train, log = Trainer.train, Trainer.log

    @functools.wraps(train)
    def surrounded(self: Trainer, *args: Any, **kwargs: Any) -> Any:
        with contextlib.ExitStack() as stack:
            for callback in _callbacks(self):
                stack.enter_context(callback.surrounding(self))
            stack.callback(_remove_all, self)
            return train(self, *args, **kwargs)

    @functools.wraps(log)
    def log_with_metrics(self: Trainer, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, NEFTuneCallback):
                callback.add_metrics(logs)
        log(self, logs, *args, **kwargs)

    surrounded._neftune_wrapped = True  # type: ignore[attr-defined]
    Trainer.train = surrounded  # type: ignore[method-assign]
    Trainer.log = log_with_metrics  # type: ignore[method-assign]
