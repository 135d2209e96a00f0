"""The loss of a step's batches without noise, beside their loss with it.

Training losses with and without noise look alike; what the noise does shows in the loss without it (arXiv 2310.05914,
section 5.1).
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
    """Has the batches of every so many-th optimisation step evaluated once more, without noise.

    Sums over the processes of torch.distributed: `begin_step` is called by all of them.
    """

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._step: int | None = None
        self._asked = False
        self._of_step: Tensor | None = None
        self._since_taken: Tensor | None = None

    def step_unknown(self) -> NoiseConfigError:
        """The error where steps are not told."""
        return NoiseConfigError(
            f"{_KEY}: {self._steps} counts optimisation steps, which are not known here: set `step` of what "
            "install(...) returns before each, or leave the key out"
        )

    @property
    def due(self) -> bool:
        """Whether the batches of this step are evaluated."""
        return self._step is not None and (self._step + 1) % self._steps == 0

    @property
    def begun(self) -> bool:
        """Whether a batch of this step has been evaluated."""
        return self._of_step is not None

    def begin_step(self, step: int) -> None:
        """The optimisation step `step` begins, counted from 0.

        Raises NoiseConfigError where the step before computed no loss by `beside`.
        """
        if self._step not in (None, step) and not self._asked:
            raise NoiseConfigError(
                f"{_KEY}: {self._steps} has no effect here: the loss of step {self._step} was not computed where it "
                "can be computed without noise, too; leave the key out, or compute it in `handle.clean_loss.beside`"
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
        """Compute a batch's loss, and where it is due, that without noise.

        compute: gives what training goes on with, of which `loss` is the loss, a scalar, as it is logged.
        without_noise: computes the loss again. It runs without gradients, hence without noise, and leaves the random
            state of torch as it was, so that its dropout is that of `compute`.
        weight: of the batch in the mean over a step; `loss` and `without_noise` give what is weighted already.
        """
        self._asked = True
        if not self.due:
            return compute()
        with torch.no_grad(), _same_random_state():
            clean = without_noise()
        # Before torch 2.11 autocast would go on with the weights that were cast without gradients (pytorch#158232).
        torch.clear_autocast_cache()
        result = compute()
        noisy = loss(result).detach().float()
        sums_3 = torch.stack((clean.float(), noisy, torch.full_like(noisy, weight)))
        self._of_step = _sum(self._of_step, sums_3)
        return result

    def take(self) -> dict[str, float]:
        """The metrics of the steps since the last call, by name; none where there was none. Waits for the device."""
        if self._since_taken is None:
            return {}
        clean, noisy, weight = self._since_taken.tolist()
        self._since_taken = None
        return {"neftune/clean_loss": clean / weight, "neftune/noisy_loss": noisy / weight}


def _sum(one: Tensor | None, other: Tensor) -> Tensor:
    return other if one is None else one + other


@contextlib.contextmanager
def _same_random_state() -> Iterator[None]:
    """What runs in it draws what will be drawn after it."""
    devices, kind = [], "cuda"  # the random state of the CPU is always kept
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if accelerator is not None:
        devices, kind = [torch.get_device_module(accelerator).current_device()], accelerator.type
    with torch.random.fork_rng(devices=devices, device_type=kind):
        yield
