"""The Trainer callback."""

import contextlib
import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils.logging import get_logger

from neftune_plugins import Handle, NoiseConfig, enabled, install, refuse_context_parallel
from neftune_plugins.config import resolve

if TYPE_CHECKING:
    from transformers import Trainer


class NEFTuneCallback(TrainerCallback):
    """Noisy embeddings (arXiv 2310.05914) for `Trainer(callbacks=[NEFTuneCallback()])` and TRL's trainers.

    alpha: `neftune_noise_alpha`. Left out, it is that of TrainingArguments; null in both places is no noise.
    others: the further fields of `NoiseConfig`, for TrainingArguments that do not have them.

    It takes the place of the Trainer's own hook, which is never on beside it. The noise follows the global step and,
    unless a seed is given, `TrainingArguments.seed`: a resumed run draws what the uninterrupted one would have drawn.
    When `train()` ends, however it ends, the model is as it was.

    `logger` is told when the key is taken over. With the environment variable NEFTUNE_PLUGINS=0 the callback does
    nothing. Raises NoiseConfigError for a value that cannot be used.
    """

    logger: Any = get_logger("transformers.neftune")

    def __init__(self, alpha: float | None = None, **others: Any) -> None:
        self._given = {"alpha": alpha, **others}
        self._handle: Handle | None = None
        if alpha is not None and enabled():
            resolve({}, self._given)  # a bad value is told here, not when the run begins
        _let_callbacks_surround_training()

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
            return
        processing_class = kwargs.get("processing_class")
        tokenizer = getattr(processing_class, "tokenizer", processing_class)
        pad_token_id = getattr(tokenizer, "pad_token_id", None)
        self._handle = install(
            kwargs["model"], config, seed=args.seed, steps=state.max_steps, pad_token_id=pad_token_id
        )
        self._handle.step = state.global_step
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
        self.remove()

    def remove(self) -> None:
        """Take the noise out of the model, if it is in."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    @contextlib.contextmanager
    def surrounding(self, trainer: "Trainer") -> Iterator[None]:
        """What `trainer.train()` runs in: the native hook off, ours gone at the end. Raises NoiseConfigError where
        the trainer is to cut sequences."""
        native = trainer.neftune_noise_alpha
        if enabled():
            if self.config(trainer.args) is not None:
                parallel = getattr(trainer.accelerator, "parallelism_config", None)
                sizes = {name: getattr(parallel, name, None) for name in ("cp_size", "sp_size")}
                refuse_context_parallel({f"parallelism_config.{name}": size for name, size in sizes.items()})
            trainer.neftune_noise_alpha = None
        try:
            yield
        finally:
            trainer.neftune_noise_alpha = native
            self.remove()


def _let_callbacks_surround_training() -> None:
    """Wrap `Trainer.train`, once: a Trainer fires no event when training raises, and puts its own hook in before the
    first event. Trainers without a NEFTuneCallback are left as they are."""
    from transformers import Trainer  # not above: a patch that runs when it is imported imports this module

    if hasattr(Trainer.train, "_neftune_wrapped"):
        return
    train = Trainer.train

    @functools.wraps(train)
    def surrounded(self: Trainer, *args: Any, **kwargs: Any) -> Any:
        with contextlib.ExitStack() as stack:
            for callback in self.callback_handler.callbacks:
                if isinstance(callback, NEFTuneCallback):
                    stack.enter_context(callback.surrounding(self))
            return train(self, *args, **kwargs)

    surrounded._neftune_wrapped = True  # type: ignore[attr-defined]
    Trainer.train = surrounded  # type: ignore[method-assign]
