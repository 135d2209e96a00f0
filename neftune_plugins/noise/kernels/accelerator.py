"""The Triton kernel for accelerators. `docs/noise.md` is the specification of what it draws.

Shape suffixes: N tokens, D channels; a program works on one block of channels of one token.
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
    dim,
    DRAW: tl.constexpr,
    MEASURES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One row: x += draw(bits) * scale, added in float32 and rounded once. Rows of scale 0 are left as they are."""
    row = tl.program_id(0).to(tl.int64)  # rows * dim may exceed 2^31
    block = tl.program_id(1)
    scale = tl.load(scales_ptr + row)
    if scale != 0.0:
        channel = block * BLOCK + tl.arange(0, BLOCK)
        inside = channel < dim
        key = tl.load(keys_ptr + row)
        bits = tl.load(codes_ptr + channel, mask=inside, other=0) ^ key.to(tl.int32)
        bits = bits * 0x21F0AAAD
        bits = bits ^ (bits >> 15)
        bits = bits ^ (key >> 32).to(tl.int32)
        bits = bits * -0x2CA5D269  # 0xD35A2D97 as a signed integer
        noise = DRAW(bits) * scale
        place = x_ptr + row * dim + channel
        x = tl.load(place, mask=inside, other=0.0).to(tl.float32)
        tl.store(place, _rounded(x + noise, x_ptr.dtype.element_ty), mask=inside)
        if MEASURES:
            blocks = tl.num_programs(1)
            sums = sums_ptr + (row * blocks + block) * 2
            tl.store(sums, tl.sum(tl.where(inside, noise * noise, 0.0)))
            tl.store(sums + 1, tl.sum(x * x))


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


def triton_kernel(draw: KernelDraw) -> Add:
    """The kernel for a draw, see `KernelDraw.triton`. Raises ValueError if the type has none."""
    if draw.triton is None:
        raise ValueError("the noise type has no draw for Triton")
    function: Any = draw.triton()

    def add(x_ND: Tensor, keys_N: Tensor, unit_scales_N: Tensor, code_D: Tensor, measures: bool) -> Tensor | None:
        rows, dim = x_ND.shape
        blocks = triton.cdiv(dim, BLOCK)
        sums = torch.zeros(rows * blocks if measures else 1, 2, device=x_ND.device)
        if rows:
            add_noise_kernel[(rows, blocks)](
                x_ND,
                keys_N.contiguous(),
                unit_scales_N.contiguous(),
                code_D.contiguous(),
                sums,
                dim,
                DRAW=function,
                MEASURES=measures,
                BLOCK=BLOCK,
                num_warps=WARPS,
                enable_fp_fusion=False,  # product and sum apart, as the plain path rounds them
            )
        return sums.sum(0) if measures else None

    return add
