"""The form of a kernel, and of a noise type's draw for it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

Add = Callable[[Tensor, Tensor, Tensor, Tensor, bool], Tensor | None]
"""(x_ND, keys_N, unit_scales_N, code_D, measures) adds the noise to x_ND in place. Returns the sums of squares of the
noise and of the x that have noise, float32 (2,), if `measures`."""


@dataclass(frozen=True)
class KernelDraw:
    """A noise type's draw for the kernels: the same function as `NoiseType.draw`, to the bit.

    c: a C expression of `bits`, an int32_t, that gives a float.
    triton: returns a `triton.jit` function of a block of int32 that gives a block of float32; None if there is none.
    """

    c: str
    triton: Callable[[], Any] | None = None
