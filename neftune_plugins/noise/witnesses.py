"""What each argument of a forward says of the batch's tokens: which are real, and which of them open an example.

Shape suffixes: B rows of the batch, L tokens of a row, H heads of a mask, R rows of M-RoPE positions, S entries of
`cu_seq_lens_q`, N tokens of all rows.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from neftune_plugins.errors import NoiseNotAppliedError
from neftune_plugins.noise.kernels import before_for, has_memory

Batch = Mapping[str, Any]
"""The arguments of a model's forward by name, and

"pad_token_id": None where it is not known.
"bos_token_ids", "eos_token_ids": tuples of the ids that may begin and end a text.
"is_decoder": whether these are the targets of an encoder-decoder model.
"outer": the arguments of the calls around this one, a tuple of dicts by name, the outermost first.

All but the arguments may be missing.
"""

Doubt = tuple[Tensor, str]
"""A bool tensor that is nowhere True in a batch that can be read, and what is wrong where it is."""

_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_NUMBERS = (*_INTEGERS, torch.float16, torch.bfloat16, torch.float32, torch.float64)

# Additive masks hide with -10,000 or less; biases of visible tokens next to the diagonal (ALiBi) are above -1.
_HIDES, _BIAS = -1000.0, -1.0

# Lines of a mask that are compared in one chunk.
_CHUNK = 256


class Before:
    """The last real token before each token; before a row's first real token, the row's first column.

    column_BL: where it stands.
    seen_BL: what a mask of pairs of tokens says that each token sees of it, once that is known.
    """

    def __init__(self, real_BL: Tensor) -> None:
        self.real_BL = real_BL
        self.seen_BL: Tensor | None = None
        self.column_BL = (before_for(real_BL, plain=plainly_before) or plainly_before)(real_BL)

    def __call__(self, value_BL: Tensor) -> Tensor:
        """`value_BL` there."""
        return value_BL.gather(1, self.column_BL)

    def first(self, value_BL: Tensor) -> Tensor:
        """`value_BL` of each row's first real token, (B, 1)."""
        return value_BL.gather(1, first_real(self.real_BL))


def plainly_before(real_BL: Tensor) -> Tensor:
    """The plain path of `kernels.Before`."""
    index_L = torch.arange(real_BL.shape[1], device=real_BL.device)
    last_BL = torch.where(real_BL, index_L, 0).cummax(-1).values
    return torch.nn.functional.pad(last_BL, (1, 0))[:, :-1]


def first_real(real_BL: Tensor) -> Tensor:
    """The column of each row's first real token, (B, 1); 0 where there is none."""
    return real_BL.to(torch.uint8).argmax(-1, keepdim=True)


@dataclass(frozen=True)
class Witness:
    """One argument of a forward.

    name: of the argument.
    is_explicit: whether it says of every token whether it opens an example. Otherwise it does so only in batches where
        it has more than one example in a row (a mask of ones is given to packed rows, too).
    real_BL: bool, False on what it says is padding.
    """

    name: ClassVar[str]
    is_explicit: ClassVar[bool] = False
    real_BL: Tensor

    def starts(self, before: Before) -> Tensor | None:
        """Bool (B, L), True where an example begins; None if it has no say in that. A row's first real token begins
        one in any case."""
        return None

    def doubts(self, before: Before, start_BL: Tensor | None) -> Iterator[Doubt]:
        """What would make this argument unreadable. start_BL: what `starts` gave."""
        return iter(())


@dataclass(frozen=True)
class RowMask(Witness):
    """`attention_mask` (B, L): 0 and 1, numbers of segments, or additive."""

    value_BL: Tensor
    name = "attention_mask"

    @staticmethod
    def of(value_BL: Tensor) -> "RowMask":
        return RowMask(value_BL > _threshold(value_BL), value_BL)

    def starts(self, before: Before) -> Tensor | None:
        if self.value_BL.dtype == torch.bool:
            return None
        # Holes in a mask do not start an example: compare with the last real token's segment.
        return self.value_BL != before(self.value_BL)

    def doubts(self, before: Before, start_BL: Tensor | None) -> Iterator[Doubt]:
        value_BL = self.value_BL
        if value_BL.is_floating_point():
            number_BL = (value_BL >= 0) & (value_BL == value_BL.floor()) & (value_BL < torch.inf)
            additive_BL = (value_BL == 0) | (value_BL <= _HIDES)
            fits_BL = torch.where((value_BL > 0).any(), number_BL, additive_BL)
            yield ~fits_BL, "is neither 0 and 1, nor a segment number, nor additive (0, or -1000 and less) here"
        elif value_BL.dtype != torch.bool:
            yield value_BL < 0, "is negative here: 0 means padding, 1 and above are segments, only floats are additive"


@dataclass(frozen=True)
class PairMask(Witness):
    """`attention_mask` (B or 1, H, L, L), which says what each token sees: boolean, 0 and 1, or additive."""

    value_BHLL: Tensor
    own_BHL: Tensor
    threshold: Tensor | float
    name = "attention_mask"

    @staticmethod
    def of(value_BHLL: Tensor, rows: int) -> "PairMask":
        """Looks at the diagonal alone: a mask may be huge, and expanded."""
        own_BHL = value_BHLL.diagonal(dim1=2, dim2=3).contiguous()
        threshold = _threshold(own_BHL)
        real_BL = (own_BHL[:, 0] > threshold).expand(rows, -1)
        return PairMask(real_BL, value_BHLL, own_BHL, threshold)

    def _first_head(self) -> Tensor:
        return self.value_BHLL[:, 0].expand(self.real_BL.shape[0], -1, -1)

    def _seen_before(self, before: Before) -> Tensor:
        if before.seen_BL is None:
            seen_BL = self._diagonal_below(before)
            if seen_BL is None:
                seen_BL = self._first_head().gather(2, before.column_BL[:, :, None])[:, :, 0]
            before.seen_BL = seen_BL
        return before.seen_BL

    def _diagonal_below(self, before: Before) -> Tensor | None:
        """What each token sees of the one before it, if no real token has padding before it. On a CPU alone, because it
        depends on values; each line of a wide mask is in another page of memory, and this one is still in its cache."""
        real_BL, width = self.real_BL, self.real_BL.shape[1]
        if real_BL.device.type != "cpu" or not has_memory(real_BL) or width < 2:
            return None
        if not before.real_BL[:, :-1].ge(before.real_BL[:, 1:]).all().tolist():
            return None
        below_BL = self.value_BHLL[:, 0].diagonal(-1, dim1=1, dim2=2).expand(len(real_BL), -1)
        return torch.cat((self.own_BHL[:, 0, :1].expand(len(real_BL), -1), below_BL), 1)

    def starts(self, before: Before) -> Tensor | None:
        # What was hidden from the token after it is right for sliding windows and bidirectional masks too.
        return ~(self._seen_before(before) > self.threshold)

    def doubts(self, before: Before, start_BL: Tensor | None) -> Iterator[Doubt]:
        yield _no_visibility(self.own_BHL) & self.real_BL[:, None], _NO_VISIBILITY
        yield _no_visibility(self._seen_before(before)) & self.real_BL, _NO_VISIBILITY
        if self.own_BHL.shape[1] > 1:
            yield (self.own_BHL > self.threshold) != self.real_BL[:, None], "hides different tokens from its heads"
        if start_BL is not None:
            yield self._branches(start_BL), _BRANCHES

    def _branches(self, start_BL: Tensor) -> Tensor:
        """Where a token that should open an example sees what comes before it."""
        branches_BL = torch.zeros_like(start_BL)
        column_L = torch.arange(start_BL.shape[1], device=start_BL.device)
        token_T2 = (self.real_BL & start_BL).nonzero()
        for token_N2 in torch.split(token_T2, _CHUNK) if len(token_T2) else ():
            row_N, column_N = token_N2.unbind(-1)
            seen_NL = self._first_head()[row_N, column_N] > self.threshold
            is_earlier_NL = self.real_BL[row_N] & (column_L < column_N[:, None])
            branches_BL[row_N, column_N] = (seen_NL & is_earlier_NL).any(-1)
        return branches_BL


@dataclass(frozen=True)
class KeyMask(Witness):
    """`attention_mask` (B or 1, H, 1, L), which hides tokens from all others: boolean, 0 and 1, or additive."""

    value_BHL: Tensor
    name = "attention_mask"

    @staticmethod
    def of(value_BHL: Tensor, rows: int) -> "KeyMask":
        return KeyMask((value_BHL[:, 0] > _threshold(value_BHL)).expand(rows, -1), value_BHL)

    def doubts(self, before: Before, start_BL: Tensor | None) -> Iterator[Doubt]:
        yield _no_visibility(self.value_BHL), _NO_VISIBILITY
        if self.value_BHL.shape[1] > 1:
            real_BHL = self.value_BHL > _threshold(self.value_BHL)
            yield real_BHL != self.real_BL[:, None], "hides different tokens from its heads"


@dataclass(frozen=True)
class Positions(Witness):
    """`position_ids` (B, L), or of M-RoPE (3, B, L) with time, height and width, or (4, B, L) with the position in the
    text, or the time once more, before them. Below 0 they mark padding."""

    value_RBL: Tensor
    name = "position_ids"

    @staticmethod
    def of(value_RBL: Tensor) -> "Positions":
        return Positions(value_RBL[0] >= 0, value_RBL)

    def starts(self, before: Before) -> Tensor | None:
        main_BL = self.value_RBL[0]
        previous_BL = before(main_BL)
        if len(self.value_RBL) == 1:
            # They may skip some: those of hidden tokens, or those that make a short example look long (PoSE).
            return main_BL <= previous_BL
        # The patches of an image share their time. The sound of a video takes time back, but not to the row's start.
        return (main_BL < previous_BL) & (main_BL <= before.first(main_BL))


@dataclass(frozen=True)
class Ends(Witness):
    """`cu_seq_lens_q` (S,): offsets at which examples begin and end, over the tokens of all rows."""

    value_S: Tensor
    index_BL: Tensor
    name = "cu_seq_lens_q"
    is_explicit = True

    @staticmethod
    def of(value_S: Tensor, rows: int, width: int) -> "Ends":
        index_BL = torch.arange(rows * width, device=value_S.device).view(rows, width)
        return Ends(index_BL < value_S[-1], value_S, index_BL)

    def starts(self, before: Before) -> Tensor | None:
        return torch.isin(self.index_BL, self.value_S)

    def doubts(self, before: Before, start_BL: Tensor | None) -> Iterator[Doubt]:
        value_S, width = self.value_S, self.index_BL.shape[1]
        yield value_S[:1] != 0, "does not begin with 0: it must hold offsets, not lengths"
        yield value_S.diff() < 0, "goes down: it must hold offsets, not lengths"
        yield value_S > self.index_BL.numel(), "goes beyond the ids, which are then a slice of the batch (context or "
        "sequence parallelism)"
        crossed_BL = (self.index_BL % max(1, width) == 0) & self.real_BL & ~torch.isin(self.index_BL, value_S)
        yield crossed_BL, "has no offset at the beginning of this row: offsets count over the tokens of all rows"


@dataclass(frozen=True)
class SequenceNumbers(Witness):
    """`seq_idx` (B, L): the number of each token's example; below 0 on padding."""

    value_BL: Tensor
    name = "seq_idx"

    @staticmethod
    def of(value_BL: Tensor) -> "SequenceNumbers":
        return SequenceNumbers(value_BL >= 0, value_BL)

    def starts(self, before: Before) -> Tensor | None:
        return self.value_BL != before(self.value_BL)


def witnesses_of(batch: Batch) -> list[Witness]:
    """The arguments that say something of the tokens. Raises NoiseNotAppliedError for one of another form; what is
    said here needs no look at a tensor's values."""
    input_ids = batch.get("input_ids")
    if not isinstance(input_ids, Tensor) or input_ids.is_nested or input_ids.dim() != 2:
        raise _unreadable("input_ids", input_ids, None, "one row of ids for each row of the batch is needed")
    found: list[Witness | None] = [_mask(batch), _positions(batch), _ends(batch), _sequence_numbers(batch)]
    return [witness for witness in found if witness is not None]


def is_prefixed(batch: Batch) -> bool:
    """Whether the model was given keys and values of earlier tokens, such as the virtual ones of prefix tuning."""
    return batch.get("past_key_values") is not None and _past_length(batch["past_key_values"]) != 0


def _mask(batch: Batch) -> Witness | None:
    mask, input_ids = batch.get("attention_mask"), batch["input_ids"]
    if mask is None:
        return None
    rows, width = input_ids.shape
    if not _is_table(mask, (torch.bool, *_NUMBERS)) or mask.dim() not in (2, 4):
        raise _unreadable("attention_mask", mask, input_ids, "it must have two or four dimensions")
    if mask.shape[0] not in (1, rows):
        raise _unreadable("attention_mask", mask, input_ids, "it has another number of rows")
    if mask.shape[-1] != width:
        _check_prefix(batch)
        mask = mask[..., mask.shape[-1] - width :]
    if mask.dim() == 2:
        return RowMask.of(mask.expand(rows, -1))
    if mask.shape[1] == 0 or mask.shape[2] not in (1, width):
        raise _unreadable("attention_mask", mask, input_ids, "a mask of four is (B, 1, L, L) or (B, 1, 1, L)")
    return PairMask.of(mask, rows) if mask.shape[2] == width else KeyMask.of(mask[:, :, 0], rows)


def _positions(batch: Batch) -> Witness | None:
    value, input_ids = batch.get("position_ids"), batch["input_ids"]
    if value is None:
        return None
    rows, width = input_ids.shape
    if not _is_table(value, _NUMBERS):
        raise _unreadable("position_ids", value, input_ids, "a tensor of numbers is needed")
    value_RBL = value[None, None] if value.dim() == 1 else value[None] if value.dim() == 2 else value
    if (
        value_RBL.dim() != 3
        or len(value_RBL) not in ((3, 4) if value.dim() == 3 else (1,))
        or value_RBL.shape[1] not in (1, rows)
        or value_RBL.shape[2] != width
    ):
        raise _unreadable("position_ids", value, input_ids, "they must be (L,), (B, L), or (3 or 4, B, L) of M-RoPE")
    return Positions.of(value_RBL.expand(-1, rows, -1))


def _ends(batch: Batch) -> Witness | None:
    value, input_ids = batch.get("cu_seq_lens_q"), batch["input_ids"]
    if value is None:
        return None
    if isinstance(value, list | tuple) and all(isinstance(number, int) for number in value):
        value = torch.tensor(value, dtype=torch.int64)
    if not _is_table(value, _INTEGERS) or value.dim() != 1 or len(value) < 2:
        raise _unreadable("cu_seq_lens_q", value, input_ids, "two or more offsets in one dimension are needed")
    return Ends.of(value.to(input_ids.device), *input_ids.shape)


def _sequence_numbers(batch: Batch) -> Witness | None:
    value, input_ids = batch.get("seq_idx"), batch["input_ids"]
    if value is None:
        return None
    rows, width = input_ids.shape
    if not _is_table(value, _INTEGERS) or value.dim() != 2 or value.shape not in ((1, width), (rows, width)):
        raise _unreadable("seq_idx", value, input_ids, "one number for each token is needed")
    return SequenceNumbers.of(value.expand(rows, -1))


def _is_table(value: object, dtypes: tuple[torch.dtype, ...]) -> bool:
    return isinstance(value, Tensor) and not value.is_nested and value.layout == torch.strided and value.dtype in dtypes


def _threshold(value: Tensor) -> Tensor | float:
    """Above it a mask's value means a visible token. Of floats, only those of 0 and 1 have any above 0."""
    if not value.is_floating_point():
        return 0
    return torch.where((value > 0).any(), 0.0, _HIDES).to(value.dtype)


_BRANCHES = (
    "hides from this token the one before it and shows it earlier ones: a tree of continuations, or a pattern with "
    "gaps, whose tokens belong to no one example"
)
_NO_VISIBILITY = "is neither 0 and 1 nor additive (about 0, or -1000 and less) here"


def _no_visibility(value: Tensor) -> Tensor:
    """Where a value of a mask of four dimensions is nothing that says whether a token is visible."""
    if value.dtype == torch.bool:
        return torch.zeros_like(value)
    is_0_or_1 = (value == 0) | (value == 1)
    if not value.is_floating_point():
        return ~is_0_or_1
    is_additive = (value <= _HIDES) | ((value > _BIAS) & (value <= 0))
    return ~torch.where((value > 0).any(), is_0_or_1, is_additive)


def _check_prefix(batch: Batch) -> None:
    """Raises NoiseNotAppliedError where a mask has not the width of the ids, unless virtual tokens stand before them
    (prefix tuning)."""
    mask, input_ids = batch["attention_mask"], batch["input_ids"]
    extra = mask.shape[-1] - input_ids.shape[1]
    if extra < 0:
        raise _unreadable("attention_mask", mask, input_ids, "it has fewer columns than the ids")
    if is_prefixed(batch) and _past_length(batch["past_key_values"]) in (None, extra):
        return
    for call in batch.get("outer", ()):
        ids, around = call.get("input_ids"), call.get("attention_mask")
        if not isinstance(ids, Tensor) or ids.dim() != 2:
            continue
        if ids is input_ids and isinstance(around, Tensor) and around.shape[-1] == ids.shape[1]:
            return
        if ids.shape[1] == mask.shape[-1]:
            raise _unreadable(
                "attention_mask",
                mask,
                input_ids,
                f"the ids are a slice of those ({tuple(ids.shape)}) of the call around this one (context or sequence "
                "parallelism), and noise depends on whole examples",
            )
    raise _unreadable(
        "attention_mask",
        mask,
        input_ids,
        "it has more columns than the ids: either virtual tokens stand before them (prefix tuning, but past_key_values "
        "of that length are not given) or the ids are a slice (context or sequence parallelism)",
    )


def _past_length(past: Any) -> int | None:
    """Number of cached tokens; None if it cannot be determined."""
    length = getattr(past, "get_seq_length", None)
    if callable(length):
        return int(length())
    if not isinstance(past, list | tuple):
        return None
    layers = [layer for layer in past if isinstance(layer, list | tuple) and layer]
    if not layers:
        return 0
    keys = layers[0][0]
    return keys.shape[-2] if isinstance(keys, Tensor) and keys.dim() == 4 else None


def _unreadable(name: str, value: object, input_ids: Tensor | None, why: str) -> NoiseNotAppliedError:
    if isinstance(value, Tensor):
        form = f"{name} {tuple(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
    else:
        form = f"{name} of type {type(value).__name__}"
    beside = "" if input_ids is None else f" beside input_ids {tuple(input_ids.shape)}"
    return unreadable(f"{form}{beside}: {why}")


def unreadable(what: str) -> NoiseNotAppliedError:
    """The error for a batch whose layout is unknown or has two explanations."""
    return NoiseNotAppliedError(
        f"the examples of a batch are not clear, and so is their noise. {what}. Give the model whole examples "
        "in a form of docs/noise.md, or read such batches in a plugin: neftune_layout_reader() "
        "(neftune_plugins.plugins.hookspecs)."
    )
