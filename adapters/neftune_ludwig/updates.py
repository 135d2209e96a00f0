"""Counts the weight updates of a training."""

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch

_MADE = "neftune_step"


class Updates:
    """The optimiser updates of one of Ludwig's trainers: those made, observed at the optimiser, and those to come, as
    the trainer plans them.

    Ludwig counts batches as steps, but several batches may make one update. The count is in the optimiser's state, so
    that Ludwig saves it and a resumed run continues it."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
        self._planned: Iterator[bool] | None = None
        self._to_come = 0

    @property
    def made(self) -> int:
        """By now."""
        return int(self._optimizer.param_groups[0].setdefault(_MADE, 0))

    def in_all(self) -> int | None:
        """Number of updates of the whole run; None in online training, which has no end. An update that was planned but
        skipped (a scaled gradient that overflowed) does not count."""
        return None if self._planned is None else self.made + self._to_come

    def batch_done(self) -> None:
        """Call after each batch, with or without an update."""
        if self._planned is not None:
            self._to_come -= next(self._planned, False)

    def nothing_left(self) -> bool:
        """Whether a resumed run has no batches left."""
        return bool(self._trainer.resume) and self._planned is None

    def follow(self, wrap: Callable[[Any, str, Any], None]) -> Any:
        """Count, and learn the plan from the trainer's loop over an epoch. Returns the handle of the hook.

        wrap: replaces one of the trainer's methods by a wrapper.
        """
        train_loop = self._trainer._train_loop
        arguments = inspect.signature(train_loop)

        @functools.wraps(train_loop)
        def follow_train_loop(*args: Any, **kwargs: Any) -> Any:
            given = arguments.bind(*args, **kwargs).arguments
            self._plan(given["progress_tracker"].steps, given["final_steps_per_checkpoint"], given["batcher"])
            return train_loop(*args, **kwargs)

        wrap(self._trainer, "_train_loop", follow_train_loop)
        return self._optimizer.register_step_post_hook(self._count)

    def _count(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        optimizer.param_groups[0][_MADE] = self.made + 1

    def _plan(self, first: int, checkpoint: int, batcher: Any) -> None:
        """Yield for each batch from now on whether it makes an update.

        Ludwig starts a new accumulation in each epoch, makes an update before it saves a checkpoint, and does not
        accumulate at all for L-BFGS.
        """
        accumulated = self._trainer.gradient_accumulation_steps
        always = isinstance(self._optimizer, torch.optim.LBFGS)

        def makes_update(number: int) -> bool:
            of_epoch = number % batcher.steps_per_epoch
            return always or (of_epoch + 1) % accumulated == 0 or (first + number + 1) % checkpoint == 0

        planned = [makes_update(number) for number in range(self._trainer.total_steps - first)]
        self._planned, self._to_come = iter(planned), sum(planned)
