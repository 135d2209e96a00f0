"""Computes the loss of a step's batches without noise, to compare it with their loss with noise.

Training losses with and without noise look alike; the effect of the noise appears in losses computed without it (arXiv
2310.05914, section 5.1).
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

from neftune_plugins.config import NoiseConfig, key
from neftune_plugins.errors import NoiseConfigError

_Result = TypeVar("_Result")
_KEY = key(NoiseConfig.__dataclass_fields__["clean_loss_steps"])


class CleanLoss:
    """Every `steps` optimiser steps, also computes the loss without noise.

    Sums over all processes of torch.distributed, so all of them must call `begin_step`.
    """

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._step: int | None = None
        self._asked = False
        self._of_step: Tensor | None = None
        self._since_taken: Tensor | None = None

    def step_unknown(self) -> NoiseConfigError:
        """The error for a training loop that does not set the step."""
        return NoiseConfigError(
            f"{_KEY}: {self._steps} counts optimiser steps, but the training loop does not set the step: set "
            "`handle.step` before each step, with the handle that install(...) returned, or leave the key out"
        )

    @property
    def due(self) -> bool:
        """Whether the loss without noise is computed in this step."""
        return self._step is not None and (self._step + 1) % self._steps == 0

    @property
    def begun(self) -> bool:
        """Whether it was already computed for a batch of this step."""
        return self._of_step is not None

    def begin_step(self, step: int) -> None:
        """Begin the optimiser step `step`, counted from 0.

        Raises NoiseConfigError if the step before did not compute its loss in `beside`.
        """
        if self._step not in (None, step) and not self._asked:
            raise NoiseConfigError(
                f"{_KEY}: {self._steps} has no effect here: the loss of step {self._step} was computed outside of "
                "`handle.clean_loss.beside`, so it cannot be computed without noise, too; compute it there, or leave "
                "the key out"
            )
        if self._of_step is not None:
            if torch.distributed.is_available() and torch.distributed.is_initialized():
                torch.distributed.all_reduce(self._of_step)
            self._since_taken = _sum(self._since_taken, self._of_step)
        self._step, self._of_step, self._asked = step, None, False

    def beside(
        self,
        compute: Callable[[], _Result],
        *,
        without_noise: Callable[[], Tensor],
        loss: Callable[[_Result], Tensor],
        weight: float = 1.0,
    ) -> _Result:
        """Compute a batch's loss and, if this step is due, also its loss without noise.

        compute: computes the result with which training continues, and which is returned.
        without_noise: computes the loss again. It runs without gradients, hence without noise. The RNG state of torch
            is restored afterwards, so that `compute` has the same dropout.
        loss: returns the loss in the result of `compute`: a scalar, as it is logged.
        weight: weight of the batch in the mean over a step; `loss` and `without_noise` must return weighted values.
        """
        self._asked = True
        if not self.due:
            return compute()
        with torch.no_grad(), _same_random_state():
            clean = without_noise()
        # Before torch 2.11 autocast would reuse the weights that were cast without gradients (pytorch#158232).
        torch.clear_autocast_cache()
        result = compute()
        noisy = loss(result).detach().float()
        sums_3 = torch.stack((clean.float(), noisy, torch.full_like(noisy, weight)))
        self._of_step = _sum(self._of_step, sums_3)
        return result

    def take(self) -> dict[str, float]:
        """Return the metrics of the steps since the last call, by name; empty if there were none.

        Waits for the device.
        """
        if self._since_taken is None:
            return {}
        clean, noisy, weight = self._since_taken.tolist()
        self._since_taken = None
        return {"neftune/clean_loss": clean / weight, "neftune/noisy_loss": noisy / weight}


def _sum(one: Tensor | None, other: Tensor) -> Tensor:
    return other if one is None else one + other


@contextlib.contextmanager
def _same_random_state() -> Iterator[None]:
    """Restore torch's RNG state at the end, so that the code after it draws the same numbers as the code inside."""
    devices, kind = [], "cuda"  # fork_rng always restores the RNG state of the CPU
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if accelerator is not None:
        devices, kind = [torch.get_device_module(accelerator).current_device()], accelerator.type
    with torch.random.fork_rng(devices=devices, device_type=kind):
        yield
