"""V1, which has its own trainers and callbacks, and no NEFTune."""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch as patched

from llamafactory.v1.config import TrainingArguments
from llamafactory.v1.utils import logging
from llamafactory.v1.utils.callbacks import TrainerCallback, TrainerState
from llamafactory.v1.utils.helper import compute_valid_tokens

from neftune_llamafactory.arguments import check_distribution
from neftune_plugins import Handle, enabled, install, no_noise_line, resolve

_log = logging.get_logger("llamafactory.neftune")


class NEFTuneV1Callback(TrainerCallback):  # type: ignore[misc]
    """Noisy embeddings (arXiv 2310.05914) for LLaMA-Factory V1's trainers in Python.

    >>> trainer = SFTTrainer(args, model, renderer, train_dataset, callbacks=[NEFTuneV1Callback(alpha=5)])
    >>> trainer.fit()

    alpha: `neftune_noise_alpha`. Left out, it is that of TrainingArguments; null in both places is no noise.
    others: the further fields of `NoiseConfig`.
    pad_token_id: id that batches are padded with; by default that of the model's configuration.

    The noise follows the global step and, unless a seed is given, `TrainingArguments.seed`. With the environment
    variable NEFTUNE_PLUGINS=0 the callback does nothing. Raises NoiseConfigError for a value that cannot be used.
    """

    def __init__(self, alpha: float | None = None, *, pad_token_id: int | None = None, **others: Any) -> None:
        self._given = {"alpha": alpha, **others}
        self._pad_token_id = pad_token_id
        self._handle: Handle | None = None
        self._first_step = 0
        if alpha is not None and enabled():
            resolve({}, self._given)  # raises for a bad value now, before the run begins

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, **kwargs: Any) -> None:
        if not enabled():
            return
        config, line = resolve(vars(args), self._given), no_noise_line(vars(args), self._given)
        if line:
            _log.info_rank0(line)
        if config is not None:
            check_distribution(args)
            self._handle = install(
                kwargs["model"],
                config,
                seed=args.seed,
                steps=state.num_training_steps,
                pad_token_id=self._pad_token_id,
            )
            self._first_step = state.global_step
            _log.info_rank0(str(self._handle))

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, **kwargs: Any) -> None:
        if self._handle is not None:
            self._handle.step = state.global_step - 1  # V1 increments it before the step, transformers after it

    def on_step_end(self, args: TrainingArguments, state: TrainerState, **kwargs: Any) -> None:
        if self._handle is not None:
            self._handle.step = state.global_step

    def on_log(self, args: TrainingArguments, state: TrainerState, logs: dict[str, Any], **kwargs: Any) -> None:
        if self._handle is not None:
            logs.update(self._handle.metrics())

    def on_train_end(self, args: TrainingArguments, state: TrainerState, **kwargs: Any) -> None:
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

    @contextlib.contextmanager
    def surrounding(self, trainer: Any) -> Iterator[None]:
        """The context of `trainer.fit()`: also computes the loss without noise, and removes the noise at the end."""
        compute_loss = trainer.compute_loss

        def compute_both(batch: Any) -> Any:
            clean_loss = None if self._handle is None else self._handle.clean_loss
            if clean_loss is None:
                return compute_loss(batch)
            # The weight that the trainer itself gives each batch of a step.
            tokens = compute_valid_tokens([batch]) if clean_loss.due else 0
            return clean_loss.beside(
                lambda: compute_loss(batch),
                without_noise=lambda: compute_loss(batch) * tokens,
                loss=lambda loss: loss * tokens,
                weight=tokens,
            )

        try:
            with patched.object(trainer, "compute_loss", compute_both):
                yield
        finally:
            self.remove()


def patch(module: Any) -> None:
    """Patch `llamafactory.v1.core.base_trainer`: trainers get the callback, which also ends if training raises."""
    fit = module.BaseTrainer.fit

    @functools.wraps(fit)
    def fit_with_callback(self: Any) -> None:
        processor = self.renderer.processor
        tokenizer = getattr(processor, "tokenizer", processor)
        callbacks = self.callback_handler.callbacks
        ours = [callback for callback in callbacks if isinstance(callback, NEFTuneV1Callback)]
        ours = ours or [NEFTuneV1Callback(pad_token_id=getattr(tokenizer, "pad_token_id", None))]
        # First, so that other callbacks see the model with noise, and log our metrics.
        callbacks[:] = ours + [callback for callback in callbacks if callback not in ours]
        with contextlib.ExitStack() as stack:
            for callback in ours:
                stack.enter_context(callback.surrounding(self))
            fit(self)

    module.BaseTrainer.fit = fit_with_callback
