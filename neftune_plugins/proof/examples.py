"""The examples of a batch, from whatever the batch has: a second reading, written without the first.

It walks over each row, token by token. Where two arguments disagree it says so, and does not stop.

Shape suffixes: B rows of the batch, L columns of a row.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

_Row = list[Any]
_HIDDEN = -1000.0  # additive masks have less there, and biases of visible tokens more


@dataclass
class Examples:
    """The examples of a batch.

    rows: for each row, each example as the columns of its tokens.
    lengths: of each of these examples: L. It differs from the number of columns in a slice of a row.
    unsure: columns, by row, of tokens of which nothing says for certain that they are padding or text.
    doubts: where two arguments disagree, in words.
    """

    rows: list[list[list[int]]]
    lengths: list[list[int]]
    unsure: list[set[int]]
    doubts: list[str] = field(default_factory=list)


@dataclass
class _Told:
    """What the arguments say of one row: which columns are real, and at which an example begins."""

    real: list[bool]
    starts: dict[str, set[int]]
    masked: bool
    placed: bool


def examples_of(
    batch: Mapping[str, Any], ids_BL: Tensor, *, pad_token_id: int | None = None, eos_token_ids: Collection[int] = ()
) -> Examples | str:
    """The examples of a batch with these ids; if they cannot be known, the reason.

    batch: `attention_mask`, `position_ids`, `cu_seq_lens_q`, `seq_idx`, `labels`, `logits_to_keep` of the forward, as
        far as it has them; in `outer` those of a call around it that had more columns of the same rows. Waits for their
        device.
    """
    outer = batch.get("outer")
    if outer is not None:
        whole = examples_of(outer, outer["input_ids"], pad_token_id=pad_token_id, eos_token_ids=eos_token_ids)
        return whole if isinstance(whole, str) else _slice(whole, outer["input_ids"], ids_BL)
    shown = batch.get("input_ids", ids_BL)
    ids = (shown if shown.shape == ids_BL.shape else ids_BL).tolist()
    width = ids_BL.shape[1]
    reason = _unknown_form(batch, len(ids), width)
    if reason:
        return reason
    found = Examples([], [], [])
    for index, row in enumerate(ids):
        told = _told(batch, index, row)
        examples, unsure = _without_padding(told, row, _labels(batch, index, width), pad_token_id, eos_token_ids)
        found.rows.append(examples)
        found.lengths.append([len(columns) for columns in examples])
        found.unsure.append(unsure)
        found.doubts += [f"row {index}: {doubt}" for doubt in _disagreements(told, row, pad_token_id)]
    return found


def _unknown_form(batch: Mapping[str, Any], rows: int, width: int) -> str:
    for name in ("attention_mask", "position_ids", "seq_idx"):
        value = batch.get(name)
        if value is None:
            continue
        if not isinstance(value, Tensor) or value.is_nested:
            return f"{name} is a {type(value).__name__}"
        is_known = value.dim() in ((2, 4) if name == "attention_mask" else (1, 2, 3))
        if not is_known or value.shape[-1] < width or (value.dim() == 1 and rows > 1 and name == "seq_idx"):
            return f"{name} has the shape {tuple(value.shape)}, and the ids ({rows}, {width})"
    return ""


def _row(batch: Mapping[str, Any], name: str, index: int) -> _Row | None:
    value = batch.get(name)
    if not isinstance(value, Tensor) or value.dim() == 0:
        return None
    if value.dim() == 3:  # M-RoPE: the first row counts text, or time
        value = value[0]
    if value.dim() == 1:
        return list(value.tolist())
    return list(value[min(index, len(value) - 1)].tolist())


def _labels(batch: Mapping[str, Any], index: int, width: int) -> _Row | None:
    """The labels of a row by column; None if nothing says to which columns they belong."""
    labels, kept = _row(batch, "labels", index), batch.get("logits_to_keep")
    if labels is None or len(labels) == width:
        return labels
    if isinstance(kept, int) and len(labels) == kept < width:
        return [-100] * (width - kept) + labels
    if isinstance(kept, Tensor) and kept.dtype == torch.bool and kept.shape == (width,):
        columns = (kept.nonzero().flatten() + 1).tolist()  # a logit is compared with the label of the next column
        by_column = dict(zip(columns, labels[1:], strict=False))  # the last logit has none
        return [by_column.get(column, -100) for column in range(width)]
    return None


def _told(batch: Mapping[str, Any], index: int, row: _Row) -> _Told:
    width = len(row)
    told = _Told([True] * width, {}, batch.get("attention_mask") is not None, False)
    mask = batch.get("attention_mask")
    if mask is not None:
        _tell_by_mask(told, mask[min(index, len(mask) - 1)], width, bool((mask > 0).any()))
    numbers = _row(batch, "seq_idx", index)
    if numbers is not None:
        told.real = [is_real and number >= 0 for is_real, number in zip(told.real, numbers, strict=False)]
        told.starts["seq_idx"] = _changes(numbers, told.real)
    offsets = batch.get("cu_seq_lens_q")
    if offsets is not None:
        first = index * width
        ends = {int(offset) - first for offset in offsets}
        told.real = [is_real and column < max(ends) for column, is_real in enumerate(told.real)]
        told.starts["cu_seq_lens_q"] = {end for end in ends if 0 <= end < width}
    positions = _row(batch, "position_ids", index)
    if positions is not None:
        is_time = batch["position_ids"].dim() == 3
        told.real = [is_real and place >= 0 for is_real, place in zip(told.real, positions[-width:], strict=True)]
        told.starts["position_ids"] = _returns(positions[-width:], told.real, is_time)
    told.placed = positions is not None or offsets is not None or numbers is not None
    return told


def _tell_by_mask(told: _Told, mask: Tensor, width: int, has_ones: bool) -> None:
    """mask: of one row, (L,) or (H, L or 1, L); virtual tokens may come before the ids'."""
    visible = mask > 0 if not mask.is_floating_point() or has_ones else mask > _HIDDEN
    if mask.dim() == 1:
        values = mask[-width:].tolist()
        told.real = visible[-width:].tolist()
        if not (mask.is_floating_point() and not has_ones) and mask.dtype != torch.bool:
            told.starts["attention_mask"] = _changes(values, told.real)
        return
    seen = visible[0]
    if seen.shape[0] == 1:
        told.real = seen[0, -width:].tolist()
        return
    seen = seen[-width:, -width:]
    told.real = seen.diagonal().tolist()
    is_earlier = torch.ones_like(seen).tril(-1) & seen.diagonal()[None]
    alone = ~(seen & is_earlier).any(-1)
    told.starts["attention_mask"] = {column for column, is_alone in enumerate(alone.tolist()) if is_alone}


def _changes(values: _Row, real: list[bool]) -> set[int]:
    """The real columns whose value is not that of the real one before."""
    found, previous = set(), None
    for column, (value, is_real) in enumerate(zip(values, real, strict=False)):
        if is_real:
            if value != previous:
                found.add(column)
            previous = value
    return found


def _returns(places: _Row, real: list[bool], is_time: bool) -> set[int]:
    """The real columns at which positions come back to where the row began. Tokens of an image share their time, so
    there only a fall counts."""
    found: set[int] = set()
    first = previous = None
    since_hidden = 0
    for column, (place, is_real) in enumerate(zip(places, real, strict=True)):
        if not is_real:
            since_hidden += 1
            continue
        if first is None or previous is None:
            first = place
            found.add(column)
        elif (place < previous or (place == previous and not is_time)) and place <= first + since_hidden:
            found.add(column)
        previous, since_hidden = place, 0
    return found


def _without_padding(
    told: _Told, row: _Row, labels: _Row | None, pad: int | None, ends: Collection[int]
) -> tuple[list[list[int]], set[int]]:
    """The examples of a row, and the columns of which nothing says for certain what they are."""
    starts = set().union(*told.starts.values())
    examples: list[list[int]] = []
    for column, is_real in enumerate(told.real):
        if is_real:
            if not examples or column in starts:
                examples.append([])
            examples[-1].append(column)
    unsure: set[int] = set()
    fillers = set() if pad is None else {pad}
    if told.placed and not told.masked:  # code that pads packed rows uses 0
        fillers.add(0)
    tail = len(row)
    while not told.masked and tail and told.real[tail - 1] and _is_filler(row, labels, tail - 1, fillers, pad):
        tail -= 1
    kept = []
    for columns in examples:
        if all(row[column] == pad for column in columns) or columns[0] >= tail:
            continue
        text = [column for column in columns if column < tail]
        if len(text) < len(columns) and row[tail] in ends:
            text.append(tail)
            unsure.add(tail)
        offsets = "cu_seq_lens_q" in told.starts or "seq_idx" in told.starts
        kept.append(columns if offsets else text)
    return kept, unsure


def _is_filler(row: _Row, labels: _Row | None, column: int, fillers: Collection[int], pad: int | None) -> bool:
    """Labels tell that a token of another id than the padding's is text, if it is trained on."""
    if row[column] == pad:
        return True
    return row[column] in fillers and (labels is None or labels[column] != 0)


def _disagreements(told: _Told, row: _Row, pad: int | None) -> list[str]:
    """Where an argument begins an example inside one of another argument that tells several in this row."""
    found = []
    inner = {column for column in range(len(row)) if told.real[column] and any(told.real[:column])}
    for one, starts in told.starts.items():
        for other, others in told.starts.items():
            speaks = one == "cu_seq_lens_q" or bool(starts & inner)
            extra = sorted((others - starts) & inner)
            if one != other and one != "position_ids" and speaks and extra:
                found.append(f"{other} begins an example at column {extra[0]}, inside one of {one}")
    text = [column for column in range(len(row)) if row[column] != pad]
    shown = [column for column in text if told.real[column]]
    if text and not shown:
        found.append("every token that is not the padding id is hidden")
    return found


def _slice(whole: Examples, outer_BW: Tensor, ids_BL: Tensor) -> Examples | str:
    """The part of the rows that these ids are, each example with the length that it has in the whole row."""
    width = ids_BL.shape[1]
    begins = [
        start
        for start in range(outer_BW.shape[1] - width + 1)
        if torch.equal(outer_BW[:, start : start + width], ids_BL)
    ]
    if len(begins) != 1:
        return "the ids are a part of those of a call around, of which it is not clear which"
    found = Examples([], [], [], whole.doubts)
    for row, lengths, unsure in zip(whole.rows, whole.lengths, whole.unsure, strict=True):
        inside = [[column - begins[0] for column in columns if 0 <= column - begins[0] < width] for columns in row]
        found.rows.append([columns for columns in inside if columns])
        found.lengths.append([length for length, columns in zip(lengths, inside, strict=True) if columns])
        found.unsure.append({column - begins[0] for column in unsure})
    return found
