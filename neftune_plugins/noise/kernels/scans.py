"""The Triton kernels for what concerns tokens, for accelerators: `before`, `arrange` and `key` of form.py.

The first two go through a row block by block, one program a row. Tensors are (rows, width).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from neftune_plugins.noise.kernels.form import Arrange, Arranged, Before, ByIds, Draw, Key

BLOCK, WARPS = 1024, 4
_FAR = tl.constexpr(2**31 - 1)


@triton.jit
def _largest(one, other):
    return tl.maximum(one, other)


@triton.jit
def _smallest(one, other):
    return tl.minimum(one, other)


@triton.jit(do_not_specialize=["width"])
def before_kernel(real_ptr, column_ptr, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * width
    last = tl.zeros((), tl.int32)
    tl.store(column_ptr + row, last.to(tl.int64))
    for first in range(0, width, BLOCK):
        column = first + tl.arange(0, BLOCK)
        real = tl.load(real_ptr + row + column, mask=column < width, other=0) != 0
        found = tl.where(real, column, 0)
        until = tl.maximum(tl.associative_scan(found, 0, _largest), last)
        tl.store(column_ptr + row + column + 1, until.to(tl.int64), mask=column + 1 < width)
        last = tl.maximum(last, tl.max(found))


@triton.jit(do_not_specialize=["pad", "width", "starts", "tails", "zeros", "labels", "ends"])
def cut_kernel(
    real_ptr,
    start_ptr,
    ids_ptr,
    untrained_ptr,
    cut_ptr,
    pad,
    width,
    starts,
    tails,
    zeros,
    labels,
    ends,
    BLOCK: tl.constexpr,
):
    """The column from which a row is padding, as its ids tell. starts, labels: whether these are given; others: as in
    ByIds."""
    row = tl.program_id(0).to(tl.int64) * width
    tail = tl.zeros((), tl.int32)
    for first in range(0, width, BLOCK):
        column = first + tl.arange(0, BLOCK)
        inside, place = column < width, row + column
        real = tl.load(real_ptr + place, mask=inside, other=0) != 0
        ids = tl.load(ids_ptr + place, mask=inside, other=0)
        untrained = tl.where(labels != 0, tl.load(untrained_ptr + place, mask=inside, other=1), 1) != 0
        filler = (ids == pad) | ((zeros != 0) & (ids == 0) & untrained)
        tail = tl.maximum(tail, tl.max(tl.where(inside & ~(filler & real), column + 1, 0)))
    real_before = tl.zeros((), tl.int32)
    cut = tl.zeros((), tl.int32) + width
    for first in range(0, width, BLOCK):  # examples that have nothing else; a row that has nothing else is one
        column = first + tl.arange(0, BLOCK)
        inside, place = column < width, row + column
        real = tl.load(real_ptr + place, mask=inside & (column < tail), other=0) != 0
        start = tl.where(starts != 0, tl.load(start_ptr + place, mask=inside & (column >= tail), other=0), 0) != 0
        real_before += tl.sum(real.to(tl.int32))
        cut = tl.minimum(cut, tl.min(tl.where(start, column, width)))
    cut = tl.where((real_before == 0) & (starts != 0), tail, cut)
    opening = tl.load(ids_ptr + row + tail, mask=tail < width, other=0)
    begin = tail + ((ends != 0) & (tail < width) & (opening == pad)).to(tl.int32)
    tl.store(cut_ptr + tl.program_id(0), tl.where((tails > 1) & (cut == width), begin, cut))


@triton.jit(do_not_specialize=["pad", "width", "starts", "has_ids", "cuts"])
def arrange_kernel(
    real_ptr,
    start_ptr,
    ids_ptr,
    cut_ptr,
    is_real_ptr,
    example_ptr,
    position_ptr,
    length_ptr,
    words_ptr,
    pad,
    width,
    starts,
    has_ids,
    cuts,
    BLOCK: tl.constexpr,
):
    """Numbers and positions from the left; lengths, and which examples have words, from the right.

    starts, has_ids, cuts: whether these are given. words_ptr: room for one number of each token.
    """
    row = tl.program_id(0).to(tl.int64) * width
    cut = tl.load(cut_ptr + tl.program_id(0), mask=cuts != 0, other=width)
    tokens = tl.zeros((), tl.int32)
    words = tl.zeros((), tl.int32)
    number = tl.zeros((), tl.int32)
    opened = tl.zeros((), tl.int32)  # number of the token that opened the present example
    words_before = tl.zeros((), tl.int32)  # it
    for first in range(0, width, BLOCK):
        column = first + tl.arange(0, BLOCK)
        inside, place = column < width, row + column
        real = (tl.load(real_ptr + place, mask=inside, other=0) != 0) & (column < cut)
        count = tokens + tl.cumsum(real.to(tl.int32))
        start = tl.where(starts != 0, tl.load(start_ptr + place, mask=inside, other=0), 0) != 0
        begins = real & (start | (count == 1))
        open_at = tl.maximum(tl.associative_scan(tl.where(begins, count, 0), 0, _largest), opened)
        tl.store(example_ptr + place, (number + tl.cumsum(begins.to(tl.int32))).to(tl.int64), mask=inside)
        tl.store(position_ptr + place, (count - open_at).to(tl.int64), mask=inside)
        is_word = tl.where(has_ids != 0, (tl.load(ids_ptr + place, mask=inside, other=0) != pad).to(tl.int32), 1)
        word = real.to(tl.int32) * is_word
        known = tl.where(begins, words + tl.cumsum(word) - word, 0)
        seen = tl.maximum(tl.associative_scan(known, 0, _largest), words_before)
        tl.store(words_ptr + place, seen, mask=inside)
        words_before = tl.maximum(words_before, tl.max(known))
        words += tl.sum(word)
        number += tl.sum(begins.to(tl.int32))
        opened = tl.maximum(opened, tl.max(tl.where(begins, count, 0)))
        tokens += tl.sum(real.to(tl.int32))
    tl.debug_barrier()
    blocks = tl.cdiv(width, BLOCK)
    end = tokens  # of the example: how many tokens, and words, the row has until there
    end_words = words
    for block in range(0, blocks):
        column = (blocks - 1 - block) * BLOCK + tl.arange(0, BLOCK)
        inside, place = column < width, row + column
        real = (tl.load(real_ptr + place, mask=inside, other=0) != 0) & (column < cut)
        one = real.to(tl.int32)
        count = tokens - tl.cumsum(one, reverse=True) + one
        example = tl.load(example_ptr + place, mask=inside, other=0)
        behind = tl.load(example_ptr + place + 1, mask=column + 1 < width, other=0)
        is_last = (column + 1 < width) & (behind != example)
        counts = tl.where(is_last, count, _FAR)
        ends = tl.minimum(tl.associative_scan(counts, 0, _smallest, reverse=True), end)
        position = tl.load(position_ptr + place, mask=inside, other=0)
        tl.store(length_ptr + place, (ends - count + 1).to(tl.int64) + position, mask=inside)
        is_word = tl.where(has_ids != 0, (tl.load(ids_ptr + place, mask=inside, other=0) != pad).to(tl.int32), 1)
        word = real.to(tl.int32) * is_word
        last_words = tl.where(is_last, words - tl.cumsum(word, reverse=True) + word, _FAR)
        until = tl.minimum(tl.associative_scan(last_words, 0, _smallest, reverse=True), end_words)
        keeps = real & (until > tl.load(words_ptr + place, mask=inside, other=0))
        tl.store(is_real_ptr + place, keeps.to(tl.int8), mask=inside)
        end = tl.minimum(end, tl.min(counts))
        end_words = tl.minimum(end_words, tl.min(last_words))
        tokens -= tl.sum(one)
        words -= tl.sum(word)


@triton.jit
def _mix(value):
    """SplitMix64. The masks undo the sign bits that >> shifts in; the constants are signed."""
    value = value + -0x61C8864680B583EB
    value = (value ^ ((value >> 30) & 0x3FFFFFFFF)) * -0x40A7B892E31B1A47
    value = (value ^ ((value >> 27) & 0x1FFFFFFFFF)) * -0x6B2FB644ECCEEE15
    return value ^ ((value >> 31) & 0x1FFFFFFFF)


@triton.jit(do_not_specialize=["tokens"])
def hash_kernel(ids_ptr, real_ptr, position_ptr, hash_ptr, tokens, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < tokens
    ids = tl.load(ids_ptr + place, mask=inside, other=0)
    value = _mix(_mix(ids) ^ tl.load(position_ptr + place, mask=inside, other=0))
    real = tl.load(real_ptr + place, mask=inside, other=0) != 0
    tl.store(hash_ptr + place, tl.where(real, value, 0), mask=inside)


@triton.jit(do_not_specialize=["stream", "dim", "width", "tokens"])
def key_kernel(
    total_ptr,
    example_ptr,
    real_ptr,
    position_ptr,
    length_ptr,
    step_ptr,
    alpha_ptr,
    keys_ptr,
    scales_ptr,
    sums_ptr,
    stream,
    dim,
    energy,
    width,
    tokens,
    PADDED: tl.constexpr,
    MEASURES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < tokens
    example = tl.load(example_ptr + place, mask=inside, other=0)
    total = tl.load(total_ptr + place // width * (width + 1) + example, mask=inside, other=0)
    position = tl.load(position_ptr + place, mask=inside, other=0)
    real = tl.load(real_ptr + place, mask=inside, other=0) != 0
    run = _mix(tl.load(step_ptr) ^ stream)
    tl.store(keys_ptr + place, _mix(_mix(total ^ run) ^ position), mask=inside)
    length = tl.load(length_ptr + place, mask=inside, other=1)
    if PADDED:
        length = length * 0 + width
    scale = tl.rsqrt((tl.maximum(length, 1) * dim).to(tl.float32)) * tl.load(alpha_ptr)
    scale = tl.where(real, scale, 0.0)
    tl.store(scales_ptr + place, scale, mask=inside)
    if MEASURES:
        sums = sums_ptr + tl.program_id(0) * 3
        tl.store(sums, tl.sum((real & (position == 0)).to(tl.float32)))
        tl.store(sums + 1, tl.sum(real.to(tl.float32)))
        tl.store(sums + 2, tl.sum(scale * scale) * energy)


def before() -> Before:
    def before(real_BL: Tensor) -> Tensor:
        rows, width = real_BL.shape
        column_BL = torch.empty(rows, width, dtype=torch.int64, device=real_BL.device)
        before_kernel[(rows,)](_bytes(real_BL), column_BL, width, BLOCK=BLOCK, num_warps=WARPS)
        return column_BL

    return before


def arrange() -> Arrange:
    def arrange(real_BL: Tensor, start_BL: Tensor | None, by_ids: ByIds | None) -> Arranged:
        (rows, width), device = real_BL.shape, real_BL.device
        example_BL, position_BL, length_BL = (
            torch.empty(rows, width, dtype=torch.int64, device=device) for _ in range(3)
        )
        is_real_BL = torch.empty(rows, width, dtype=torch.bool, device=device)
        words_BL = torch.empty(rows, width, dtype=torch.int32, device=device)
        # In place of what is not given, which the kernels do not use.
        real = _bytes(real_BL)
        start = real if start_BL is None else _bytes(start_BL)
        ids, cut, pad = example_BL, example_BL, 0
        cuts = by_ids is not None and by_ids.tails > 0
        if by_ids is not None:
            ids, pad = by_ids.ids_BL.contiguous(), by_ids.pad
        if by_ids is not None and cuts:
            cut = torch.empty(rows, dtype=torch.int32, device=device)
            untrained = real if by_ids.untrained_BL is None else _bytes(by_ids.untrained_BL)
            flags = (start_BL is not None, by_ids.tails, by_ids.zeros, by_ids.untrained_BL is not None, by_ids.ends)
            cut_kernel[(rows,)](
                real, start, ids, untrained, cut, pad, width, *map(int, flags), BLOCK=BLOCK, num_warps=WARPS
            )
        arrange_kernel[(rows,)](
            *(real, start, ids, cut if cuts else words_BL),
            *(_bytes(is_real_BL), example_BL, position_BL, length_BL, words_BL, pad, width),
            *map(int, (start_BL is not None, by_ids is not None, cuts)),
            BLOCK=BLOCK,
            num_warps=WARPS,
        )
        return is_real_BL, example_BL, position_BL, length_BL

    return arrange


def key() -> Key:
    def key(ids_BL: Tensor, layout: Arranged, draw: Draw) -> tuple[Tensor, Tensor, Tensor | None]:
        (rows, width), tokens, device = ids_BL.shape, ids_BL.numel(), ids_BL.device
        real, example, position, length = (tensor.contiguous() for tensor in layout)
        real = _bytes(real)
        programs = triton.cdiv(tokens, BLOCK)
        keys_BL = torch.empty(rows, width, dtype=torch.int64, device=device)
        scales_BL = torch.empty(rows, width, dtype=torch.float32, device=device)
        sums = torch.empty(programs, 3, dtype=torch.float32, device=device)
        hash_kernel[(programs,)](ids_BL.contiguous(), real, position, keys_BL, tokens, BLOCK=BLOCK, num_warps=WARPS)
        # Its order has no influence on a sum of integers.
        total = torch.zeros(rows, width + 1, dtype=torch.int64, device=device).scatter_add_(1, example, keys_BL)
        key_kernel[(programs,)](
            *(total, example, real, position, length, draw.step, draw.alpha, keys_BL, scales_BL, sums),
            *(draw.key, draw.dim, draw.energy or 0.0, width, tokens),
            PADDED=draw.padded_length,
            MEASURES=draw.energy is not None,
            BLOCK=BLOCK,
            num_warps=WARPS,
            enable_fp_fusion=False,
        )
        return keys_BL, scales_BL, None if draw.energy is None else sums.sum(0)

    return key


def _bytes(flag_BL: Tensor) -> Tensor:
    """Bools as the bytes that they are."""
    return flag_BL.contiguous().view(torch.int8)
