"""What only the values of a batch's tensors tell: whether its arguments can be read, and whether they agree.

To look at values is to wait for the device, and cannot be compiled; so it is apart from the reading itself.

Shape suffixes: B rows of the batch, L tokens of a row.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from neftune_plugins.noise.layout import Layout, Reading, read, total_per_example
from neftune_plugins.noise.witnesses import (
    Batch,
    Before,
    Doubt,
    Ends,
    Positions,
    Witness,
    first_real,
    is_prefixed,
    unreadable,
)

_ARGUMENTS = ("input_ids", "attention_mask", "position_ids", "cu_seq_lens_q", "seq_idx")


class CheckedReader:
    """`read_layout` for one installation, with `check_layout`: on CPUs of every batch, on accelerators of the first
    batch of each form (arguments, their types and numbers of dimensions). Compiled graphs are not checked."""

    def __init__(self) -> None:
        self._checked: set[object] = set()

    def __call__(self, batch: Batch) -> Layout:
        reading = read(batch)
        if not torch.compiler.is_compiling() and self._is_due(batch):
            _check(batch, reading)
        return reading.layout

    def _is_due(self, batch: Batch) -> bool:
        given = [batch[name] for name in _ARGUMENTS if isinstance(batch.get(name), Tensor)]
        if not all(_has_values(tensor) for tensor in given):
            return False
        if given[0].device.type == "cpu":
            return True
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            return False
        form = tuple((name, _form(batch.get(name))) for name in _ARGUMENTS)
        is_new = form not in self._checked
        self._checked.add(form)
        return is_new


def check_layout(batch: Batch) -> None:
    """Raises NoiseNotAppliedError, which names the argument, row and column, where `read_layout` would misread the
    batch: values that the form does not have, positions or masks of branching rows, slices of a batch, and arguments
    that contradict each other. Waits for the batch's device."""
    _check(batch, read(batch))


def _has_values(tensor: Tensor) -> bool:
    """Not so of meta and fake tensors, nor inside `torch.func.vmap`."""
    is_plain = type(tensor) in (Tensor, torch.nn.Parameter) and tensor.device.type != "meta"
    return is_plain and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)


def _form(value: Any) -> object:
    return (value.dtype, value.dim()) if isinstance(value, Tensor) else type(value)


@torch.no_grad()
def _check(batch: Batch, reading: Reading) -> None:
    if batch["input_ids"].numel() == 0:
        return
    doubts = list(_doubts(batch, reading))
    for (doubt, what), is_so in zip(doubts, _are_true([doubt.any() for doubt, _ in doubts]), strict=True):
        if is_so:
            raise unreadable(f"{what}{_where(doubt, batch['input_ids'])}")
    _check_not_a_slice(batch, reading.layout)


def _are_true(flags: Sequence[Tensor]) -> Sequence[bool]:
    """The values of these bools; on an accelerator with one wait for all."""
    if not flags or flags[0].device.type == "cpu":
        return [bool(flag.tolist()) for flag in flags]
    found: list[bool] = torch.stack(list(flags)).tolist()
    return found


def _where(doubt: Tensor, input_ids_BL: Tensor) -> str:
    if doubt.dim() < 2:
        return ""
    found = doubt.nonzero()[0].tolist()
    column = f", column {found[-1]}" if doubt.shape[-1] == input_ids_BL.shape[1] else ""
    return f" (row {found[0]}{column})"


def _doubts(batch: Batch, reading: Reading) -> Iterator[Doubt]:
    yield from _doubts_of_padding(batch, reading)
    if reading.before is None:
        return
    for witness, start_BL in zip(reading.witnesses, reading.starts, strict=True):
        for doubt, what in witness.doubts(reading.before, start_BL):
            yield doubt, f"{witness.name} {what}"
    yield from _doubts_of_what_is_hidden(batch, reading)
    yield from _doubts_of_offsets(batch, reading)
    yield from _doubts_of_positions(batch, reading, reading.before)
    yield from _contradictions(reading)


def _doubts_of_padding(batch: Batch, reading: Reading) -> Iterator[Doubt]:
    """Ids without a mask that seem to be padded on the left. (One padding id may be what texts begin with.)"""
    pad_token_id = batch.get("pad_token_id")
    may_be_text = batch.get("is_decoder") or pad_token_id in batch.get("bos_token_ids", ())
    if batch.get("attention_mask") is None and pad_token_id is not None and not may_be_text:
        pad_BL = reading.layout.real_BL & (batch["input_ids"] == pad_token_id)
        is_led_B1 = pad_BL[:, :2].all(-1, keepdim=True) & (pad_BL.shape[1] > 1)
        yield is_led_B1, "input_ids begin with the padding id, and no attention_mask says whether that is padding"


def _doubts_of_what_is_hidden(batch: Batch, reading: Reading) -> Iterator[Doubt]:
    """An `attention_mask` that hides everything, or all but the padding."""
    input_ids_BL, mask = batch["input_ids"], batch.get("attention_mask")
    if mask is None:
        return
    shown_BL = reading.witnesses[0].real_BL
    if not mask.is_floating_point() and _are_true([shown_BL.all()])[0]:
        return
    has_words = (input_ids_BL != input_ids_BL[:1, :1]).any()
    yield has_words & ~shown_BL.any(), "attention_mask hides every token of a batch that has words"
    if mask.dim() == 2 and mask.is_floating_point():
        is_unclear = has_words & ~(mask != 0).any()
        yield is_unclear, "attention_mask is 0 everywhere: in floats that means no padding, or nothing else"
    if batch.get("pad_token_id") is not None:
        pad_BL = input_ids_BL == batch["pad_token_id"]
        shows_no_word_B = shown_BL.any(-1) & ~(shown_BL & ~pad_BL).any(-1)
        hidden_BL = shows_no_word_B[:, None] & ~shown_BL & ~pad_BL
        yield hidden_BL, "attention_mask shows the padding of this row and hides its words, as if it were inverted"


def _doubts_of_offsets(batch: Batch, reading: Reading) -> Iterator[Doubt]:
    """`cu_seq_lens_q` that leaves words out, or counts padding in."""
    for ends in reading.witnesses:
        if not isinstance(ends, Ends):
            continue
        input_ids_BL = batch["input_ids"]
        is_filler_BL = (input_ids_BL == input_ids_BL[:, -1:]) | (input_ids_BL == 0)
        if batch.get("pad_token_id") is not None:
            is_filler_BL = is_filler_BL | (input_ids_BL == batch["pad_token_id"])
        yield ~ends.real_BL & ~is_filler_BL, "cu_seq_lens_q ends before words of the batch"
        for other in reading.witnesses:
            if other.name == "attention_mask":
                starts_N = torch.isin(ends.index_BL, ends.value_S).view(1, -1)
                shown_N = (other.real_BL & ends.real_BL).reshape(1, -1).to(torch.int64)
                shown_BL = total_per_example(shown_N, starts_N.cumsum(-1)).view_as(ends.real_BL)
                hidden_BL = ends.real_BL & ~other.real_BL & (shown_BL > 0)
                yield hidden_BL, "attention_mask hides a token inside an example of cu_seq_lens_q"


def _doubts_of_positions(batch: Batch, reading: Reading, before: Before) -> Iterator[Doubt]:
    """`position_ids` of a row that branches, or that is the middle of something."""
    for positions, start_BL in _with_starts(reading):
        if not isinstance(positions, Positions):
            continue
        main_BL, real_BL = positions.value_RBL[0], reading.layout.real_BL
        column_B1 = first_real(real_BL)
        first_B1 = main_BL.gather(1, column_B1)
        told_BL = torch.zeros_like(real_BL)
        for other, other_BL in _with_starts(reading):
            if other is not positions:
                told_BL = told_BL | other_BL
        # Hidden tokens may have had the positions before the one at which a row continues.
        column_L = torch.arange(main_BL.shape[1], device=main_BL.device)
        hidden_BL = (column_L - 1 - before.column_BL).clamp(min=0)
        is_elsewhere_BL = (main_BL < first_B1) | (main_BL > first_B1 + hidden_BL)
        yield start_BL & ~told_BL & real_BL & is_elsewhere_BL, _ELSEWHERE
        is_middle_B1 = (first_B1 > column_B1 + _FIRST_POSITION) & real_BL.any(-1, keepdim=True)
        if batch.get("pad_token_id") is not None:
            is_middle_B1 = is_middle_B1 & (first_B1 != batch["pad_token_id"] + 1)
        if not is_prefixed(batch):
            yield is_middle_B1, _MIDDLE


_ELSEWHERE = (
    "position_ids do not go up here, and do not begin again where the row began: a tree of continuations, whose tokens "
    "belong to no one example, or a slice of a packed row (context or sequence parallelism)"
)
_MIDDLE = (
    "position_ids begin in the middle of an example: the ids are a slice of a batch (context or sequence parallelism), "
    "or the positions are not those of a text"
)

# Models of RoBERTa's kind count from the padding id + 1, which is 2; others from 1.
_FIRST_POSITION = 2


def _contradictions(reading: Reading) -> Iterator[Doubt]:
    """Arguments of which one begins an example inside one of another's."""
    if len(list(_with_starts(reading))) < 2:
        return
    real_BL = reading.layout.real_BL
    inner_BL = real_BL & (real_BL.cumsum(-1) > 1)
    for one, one_BL in _with_starts(reading):
        if isinstance(one, Positions):  # they may count on over the examples of a packed row
            continue
        tells = True if one.is_explicit else (one_BL & inner_BL).any()
        for other, other_BL in _with_starts(reading):
            if other is not one:
                yield other_BL & ~one_BL & inner_BL & tells, f"{other.name} begins an example inside one of {one.name}"


def _with_starts(reading: Reading) -> Iterator[tuple[Witness, Tensor]]:
    for witness, start_BL in zip(reading.witnesses, reading.starts, strict=True):
        if start_BL is not None:
            yield witness, start_BL


def _check_not_a_slice(batch: Batch, layout: Layout) -> None:
    """Raises NoiseNotAppliedError where a call around this one was given the same rows with more words."""
    if batch.get("is_decoder"):
        return
    input_ids_BL = batch["input_ids"]
    rows, width = input_ids_BL.shape
    for call in batch.get("outer", ()):
        around = call.get("input_ids")
        if not isinstance(around, Tensor) or around.dim() != 2 or len(around) != rows or around.shape[1] <= width:
            continue
        mask, pad_token_id = call.get("attention_mask"), batch.get("pad_token_id")
        is_masked = isinstance(mask, Tensor) and mask.shape == around.shape
        word_BW = mask > 0 if is_masked else around != (-1 if pad_token_id is None else pad_token_id)
        if (layout.real_BL.sum(-1) < word_BW.sum(-1)).any() and _is_part(input_ids_BL, around):
            raise unreadable(
                f"input_ids {tuple(input_ids_BL.shape)} are a slice of those {tuple(around.shape)} of the call around "
                "this one (context or sequence parallelism), and noise depends on whole examples"
            )


def _is_part(input_ids_BL: Tensor, around_BW: Tensor) -> bool:
    """Whether both halves of the columns stand in `around_BW`. (Slices may be two pieces, from head and tail.)"""
    half = (input_ids_BL.shape[1] + 1) // 2
    pieces = [piece for piece in (input_ids_BL[:, :half], input_ids_BL[:, half:]) if piece.shape[1]]
    return all(_stands_in(piece, around_BW) for piece in pieces)


def _stands_in(piece_BL: Tensor, around_BW: Tensor) -> bool:
    width = piece_BL.shape[1]
    begins_W = (around_BW == piece_BL[:, :1]).all(0).nonzero().flatten().tolist()
    return any(torch.equal(around_BW[:, begin : begin + width], piece_BL) for begin in begins_W)
