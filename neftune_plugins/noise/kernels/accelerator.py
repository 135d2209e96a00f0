"""The Triton kernel for accelerators. `docs/noise.md` is the specification of what it draws.

Shape suffixes: N tokens, D channels; a program works on one token, block by block.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from neftune_plugins.noise.kernels.form import Add, KernelDraw

BLOCK, WARPS = 1024, 4


@triton.jit
def add_noise_kernel(
    x_ptr,
    keys_ptr,
    scales_ptr,
    codes_ptr,
    sums_ptr,
    unit,
    expected,
    dim,
    DRAW: tl.constexpr,
    MEASURES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One row: x += draw(bits) * scale, added in float32 and rounded once. Rows of scale 0 are left as they are."""
    row = tl.program_id(0).to(tl.int64)  # rows * dim may exceed 2^31
    scale = tl.load(scales_ptr + row)
    noises = tl.zeros((BLOCK,), tl.float32)
    squares = tl.zeros((BLOCK,), tl.float32)
    if scale != 0.0:
        key = tl.load(keys_ptr + row)
        for first in range(0, dim, BLOCK):
            channel = first + tl.arange(0, BLOCK)
            inside = channel < dim
            bits = tl.load(codes_ptr + channel, mask=inside, other=0) ^ key.to(tl.int32)
            bits = bits * 0x21F0AAAD
            bits = bits ^ (bits >> 15)
            bits = bits ^ (key >> 32).to(tl.int32)
            bits = bits * -0x2CA5D269  # 0xD35A2D97 as a signed integer
            noise = DRAW(bits) * (scale * unit)
            place = x_ptr + row * dim + channel
            x = tl.load(place, mask=inside, other=0.0).to(tl.float32)
            tl.store(place, _rounded(x + noise, x_ptr.dtype.element_ty), mask=inside)
            if MEASURES:
                noises += tl.where(inside, noise * noise, 0.0)
                squares += x * x
    if MEASURES:
        sums = sums_ptr + row * 3
        tl.store(sums, tl.sum(noises))
        tl.store(sums + 1, scale * scale * expected)
        tl.store(sums + 2, tl.sum(squares))


@triton.jit
def _rounded(value, dtype: tl.constexpr):
    """float32 to `dtype`, to nearest even. bfloat16 in integers: Triton's interpreter cuts it off."""
    if dtype == tl.bfloat16:
        bits = value.to(tl.int32, bitcast=True)
        half = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        half = tl.where(value == value, half, 0x7FC0)
        result = half.to(tl.int16).to(tl.bfloat16, bitcast=True)
    else:
        result = value.to(dtype)
    return result


@triton.jit
def uniform(bits):
    return (bits >> 8).to(tl.float32)


@triton.jit
def bernoulli(bits):
    return ((bits >> 31) | 1).to(tl.float32)


def triton_kernel(draw: KernelDraw, unit: float, mean_square: float) -> Add:
    """The kernel for a draw, see `KernelDraw.triton`. Raises ValueError if the type has none.

    unit, mean_square: of the noise type.
    """
    if draw.triton is None:
        raise ValueError("the noise type has no draw for Triton")
    function: Any = draw.triton()

    def add(x_ND: Tensor, keys_N: Tensor, scales_N: Tensor, code_D: Tensor, measures: bool) -> Tensor | None:
        rows, dim = x_ND.shape
        sums = torch.empty(rows if measures else 0, 3, dtype=torch.float32, device=x_ND.device)
        if rows:
            add_noise_kernel[(rows,)](
                x_ND,
                *(tensor.contiguous() for tensor in (keys_N, scales_N, code_D)),
                *(sums, unit, dim * mean_square, dim),
                DRAW=function,
                MEASURES=measures,
                BLOCK=BLOCK,
                num_warps=WARPS,
                enable_fp_fusion=False,  # product and sum apart, as the plain path rounds them
            )
        return sums.sum(0) if measures else None

    return add
