"""The Trainer callback."""

import contextlib
import copy
import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils.logging import get_logger

from neftune_plugins import Handle, NoiseConfig, enabled, install, no_noise_line, refuse_context_parallel, resolve

if TYPE_CHECKING:
    from transformers import Trainer


class NEFTuneCallback(TrainerCallback):
    """Noisy embeddings (arXiv 2310.05914) for `Trainer(callbacks=[NEFTuneCallback()])` and TRL's trainers.

    alpha: `neftune_noise_alpha`. Left out, it is that of TrainingArguments; null in both places is no noise.
    others: the further fields of `NoiseConfig`, for TrainingArguments that do not have them.

    It takes the place of the Trainer's own hook, which is never on beside it. The noise follows the global step and,
    unless a seed is given, `TrainingArguments.seed`: a resumed run draws what the uninterrupted one would have drawn.
    When `train()` ends, however it ends, the model is as it was. The metrics of the noise are in the training's logs.

    `logger` is told when the key is taken over. With the environment variable NEFTUNE_PLUGINS=0 the callback does
    nothing. Raises NoiseConfigError for a value that cannot be used.
    """

    logger: Any = get_logger("transformers.neftune")

    def __init__(self, alpha: float | None = None, **others: Any) -> None:
        self._given = {"alpha": alpha, **others}
        self._handle: Handle | None = None
        self._first_step = 0
        if alpha is not None and enabled():
            resolve({}, self._given)  # a bad value is told here, not when the run begins
        _let_callbacks_into_trainer()

    def config(self, args: TrainingArguments) -> NoiseConfig | None:
        """The configuration for a run with these arguments; None for no noise."""
        return resolve(vars(args), self._given)

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if enabled():
            self.config(args)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        config = self.config(args) if enabled() else None
        if config is None:
            line = no_noise_line(vars(args), self._given) if enabled() else ""
            if line and state.is_world_process_zero:
                self.logger.info(line)
            return
        processing_class = kwargs.get("processing_class")
        tokenizer = getattr(processing_class, "tokenizer", processing_class)
        pad_token_id = getattr(tokenizer, "pad_token_id", None)
        self._handle = install(
            kwargs["model"], config, seed=args.seed, steps=state.max_steps, pad_token_id=pad_token_id
        )
        self._handle.step = self._first_step = state.global_step
        if state.is_world_process_zero:
            self.logger.info(str(self._handle))

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._follow(state)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        # PPO and RLOO of TRL 0.19 do not tell when a step begins.
        self._follow(state)

    def _follow(self, state: TrainerState) -> None:
        if self._handle is not None and self._handle.step != state.global_step:
            self._handle.step = state.global_step

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        handle = self._handle
        self.remove()
        # A resumed run may have nothing left to train.
        if handle is not None and state.global_step > self._first_step:
            handle.end()

    def remove(self) -> None:
        """Take the noise out of the model, if it is in."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def add_metrics(self, logs: dict[str, float]) -> None:
        """Add the metrics of the noise to what is logged of the training."""
        is_summary = "train_runtime" in logs or any(name.startswith("eval_") for name in logs)
        if self._handle is not None and not is_summary:
            logs.update(self._handle.metrics())

    @contextlib.contextmanager
    def surrounding(self, trainer: "Trainer") -> Iterator[None]:
        """What `trainer.train()` runs in: the native hook off, ours gone at the end. Raises NoiseConfigError where
        the trainer is to cut sequences."""
        with contextlib.ExitStack() as stack:
            stack.callback(self.remove)
            if enabled():
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
        """The `compute_loss` of sentence-transformers: its cached losses (arXiv 2101.06983) compute embeddings without
        gradients first, which need the noise of the pass with gradients."""
        if self._handle is None or not torch.is_grad_enabled():
            return compute_loss(*args, **kwargs)
        with self._handle.training_forwards():
            return compute_loss(*args, **kwargs)

    def _compute_loss(
        self, trainer: "Trainer", compute_loss: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """The trainer's `compute_loss`, and where it is due once more without noise."""
        if self._handle is None or self._handle.clean_loss is None or not torch.is_grad_enabled():
            return compute_loss(model, inputs, *args, **kwargs)

        def loss_of(result: Any) -> Tensor:
            loss: Tensor = result[0] if isinstance(result, tuple) else result
            return loss.mean()  # over the GPUs of nn.DataParallel

        def without_noise() -> Tensor:
            with _leaving_no_trace(trainer):
                return loss_of(compute_loss(model, dict(inputs), *args, **kwargs))

        clean_loss = self._handle.clean_loss
        # The losses of micro-batches that are divided by the tokens of the whole step sum up to its loss.
        is_part = _is_divided_by_step(trainer, kwargs.get("num_items_in_batch"))
        return clean_loss.beside(
            lambda: compute_loss(model, inputs, *args, **kwargs),
            without_noise=without_noise,
            loss=loss_of,
            weight=0 if is_part and clean_loss.begun else 1,
        )


@contextlib.contextmanager
def _leaving_no_trace(trainer: "Trainer") -> Iterator[None]:
    """A loss that is computed in it is not counted in the trainer's own metrics."""
    attributes = vars(trainer)
    kept = dict(attributes)
    attributes.update({name: copy.deepcopy(value) for name, value in kept.items() if "metrics" in name})
    try:
        yield
    finally:
        attributes.clear()
        attributes.update(kept)


def _is_divided_by_step(trainer: Any, num_items_in_batch: Any) -> bool:
    """Whether a micro-batch's loss is divided by the tokens of the whole step: what the Trainer itself asks before it
    divides by the number of micro-batches."""
    is_scaled = getattr(trainer, "loss_is_scaled_for_ga", None)
    if is_scaled is not None:
        return bool(is_scaled)
    accepts = trainer.model_accepts_loss_kwargs and num_items_in_batch is not None
    return bool(accepts or trainer.compute_loss_func is not None)


def _let_callbacks_into_trainer() -> None:
    """Wrap `Trainer.train` and `Trainer.log`, once: a Trainer fires no event when training raises, puts its own hook in
    before the first event, and has written its logs before it tells callbacks of them. Trainers without a
    NEFTuneCallback are left as they are."""
    from transformers import Trainer  # not above: a patch that runs when it is imported imports this module

    if hasattr(Trainer.train, "_neftune_wrapped"):
        return
    train, log = Trainer.train, Trainer.log

    @functools.wraps(train)
    def surrounded(self: Trainer, *args: Any, **kwargs: Any) -> Any:
        with contextlib.ExitStack() as stack:
            for callback in self.callback_handler.callbacks:
                if isinstance(callback, NEFTuneCallback):
                    stack.enter_context(callback.surrounding(self))
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
