"""The forms of the kernels, and of a noise type's draw for them. Each is the plain function of its name, to the bit.

Shape suffixes: B rows of the batch, L tokens of a row, N tokens in any arrangement, D channels of the embedding.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

Add = Callable[[Tensor, Tensor, Tensor, Tensor, bool], Tensor | None]
"""(x_ND, keys_N, scales_N, code_D, measures) adds the noise to x_ND in place. If `measures`, it returns the noise's
`draw.energy`, float32 (3,)."""

Before = Callable[[Tensor], Tensor]
"""From real_BL, bool: the column of the last real token before each, int64; 0 before a row's first."""


@dataclass(frozen=True)
class ByIds:
    """What the ids of a batch say about its padding.

    ids_BL, pad: the ids and the padding id.
    tails: which padding ids at the end of a row are padding: 0: none; 1: those that fill a separate example; 2: all.
    zeros: whether ids 0 are like padding ids at the end of a row; where untrained_BL (bool) is False, they are words.
    ends: whether the first of them may be the end of a text, where nothing says that it is a separate example.
    """

    ids_BL: Tensor
    pad: int
    tails: int = 0
    zeros: bool = False
    untrained_BL: Tensor | None = None
    ends: bool = False


Arranged = tuple[Tensor, Tensor, Tensor, Tensor]
"""The four tensors of a `Layout`."""

Arrange = Callable[[Tensor, Tensor | None, ByIds | None], Arranged]
"""(real_BL, start_BL, by_ids) gives a layout. start_BL: as in `Layout.from_starts`."""


@dataclass(frozen=True)
class Draw:
    """What the keys and scales of a batch depend on, apart from its tokens.

    key: of `stream_key`.
    step: int64 (). alpha: float32 (). Both on the device of the ids.
    dim: D.
    padded_length: as in `token_scales`.
    energy: if the noise is measured, its expected energy over the sum of the squared scales.
    """

    key: int
    step: Tensor
    alpha: Tensor
    dim: int
    padded_length: bool = False
    energy: float | None = None


Key = Callable[[Tensor, Arranged, Draw], tuple[Tensor, Tensor, Tensor | None] | None]
"""(ids_BL, layout, draw) gives `token_keys`, `token_scales` and, if the noise is measured, the numbers of sequences and
of tokens and the expected energy, float32 (3,). None: an example's number is out of its range."""


@dataclass(frozen=True)
class KernelDraw:
    """A noise type's draw for the kernels: the same function as `NoiseType.draw`, to the bit.

    c: a C expression of `bits`, an int32_t, that gives a float.
    triton: returns a `triton.jit` function of a block of int32 that gives a block of float32; None if there is none.
    """

    c: str
    triton: Callable[[], Any] | None = None
