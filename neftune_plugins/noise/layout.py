"""Which tokens of a batch are real, and which of them belong together: read from what the model's forward was given.

Shape suffixes: B rows of the batch, L tokens of a row.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from neftune_plugins.noise.kernels import arrange_for
from neftune_plugins.noise.kernels.form import Arrange, Arranged, ByIds
from neftune_plugins.noise.witnesses import Batch, Before, Witness, witnesses_of

LayoutReader = Callable[[Batch], "Layout | None"]
"""Reads a batch's layout, or gives None to leave it to the next reader. Plain tensor code, so that it compiles."""

# Upper half of an int64: counts words; the lower half counts tokens.
_WORD = 2**32


@dataclass(frozen=True)
class Layout:
    """The examples of a batch.

    real_BL: bool, False on padding.
    example_BL: int64 number of the token's example within its row, in [0, L]; numbers may be left out; of padding
        anything in [0, L].
    position_BL: int64 position of the token within its example, counted over real tokens from 0; of padding anything.
    length_BL: int64 number of real tokens in the token's example; of padding anything.
    """

    real_BL: Tensor
    example_BL: Tensor
    position_BL: Tensor
    length_BL: Tensor

    @staticmethod
    def from_starts(real_BL: Tensor, start_BL: Tensor | None) -> "Layout":
        """The layout where `start_BL` (bool) marks the tokens that open an example; a row's first real token always
        does, and padding never does. None: each row is one example."""
        return _arranged(real_BL, start_BL, None)


def total_per_example(value_BL: Tensor, example_BL: Tensor) -> Tensor:
    """At each token the sum (int64, mod 2^64) of `value_BL` over all tokens of its example."""
    total_BL = value_BL.new_zeros(value_BL.shape[0], value_BL.shape[1] + 1)
    return total_BL.scatter_add(1, example_BL, value_BL).gather(1, example_BL)


def _arranged(real_BL: Tensor, start_BL: Tensor | None, by_ids: ByIds | None) -> Layout:
    """The layout, by a kernel if there is one for these tensors."""
    arrange: Arrange = plainly_arranged
    others = (start_BL,) if by_ids is None else (start_BL, by_ids.ids_BL, by_ids.untrained_BL)
    tables = [real_BL, *(other for other in others if other is not None)]
    if real_BL.dtype == torch.bool and real_BL.dim() == 2 and all(other.shape == real_BL.shape for other in tables):
        arrange = arrange_for(*tables, plain=plainly_arranged) or plainly_arranged
    return Layout(*arrange(real_BL, start_BL, by_ids))


def plainly_arranged(real_BL: Tensor, start_BL: Tensor | None, by_ids: ByIds | None) -> Arranged:
    """The plain path of `kernels.Arrange`."""
    if by_ids is None:
        example_BL, position_BL = _numbered(real_BL, start_BL)
        return real_BL, example_BL, position_BL, total_per_example(real_BL.to(torch.int64), example_BL)
    if by_ids.tails:
        tail_BL = _tails(by_ids, real_BL, start_BL)
        real_BL = real_BL if tail_BL is None else real_BL & ~tail_BL
    return _without_padding_alone(real_BL, start_BL, by_ids.ids_BL != by_ids.pad)


def _numbered(real_BL: Tensor, start_BL: Tensor | None) -> tuple[Tensor, Tensor]:
    """The number of each token's example, and its position in it."""
    count_BL = real_BL.cumsum(-1)
    if start_BL is None:  # one example a row
        return real_BL.to(torch.int64), count_BL - 1
    start_BL = real_BL & (start_BL | (count_BL == 1))
    first_BL = torch.where(start_BL, count_BL, 0).cummax(-1).values
    return start_BL.cumsum(-1), count_BL - first_BL


@dataclass(frozen=True)
class Reading:
    """A layout, and how it came about.

    real_BL: what the arguments say is real; the layout also leaves out padding that is recognised by its ids.
    starts: for each witness the tokens at which it begins an example, if it has a say in that.
    """

    witnesses: Sequence[Witness]
    before: Before | None
    starts: Sequence[Tensor | None]
    layout: Layout


def read_layout(batch: Batch) -> Layout:
    """The built-in reader, for everything that the frameworks pass to a transformers model: `attention_mask`,
    `position_ids`, `cu_seq_lens_q` and `seq_idx` in the forms that docs/noise.md has, and padding by its ids.

    Looks at no tensor's values, so that it compiles and no device is waited for: see `check_layout` for what only
    values tell.

    Raises NoiseNotAppliedError for an argument of another form.
    """
    return read(batch).layout


def read(batch: Batch) -> Reading:
    """`read_layout`, with how it came about."""
    witnesses = witnesses_of(batch)
    real_BL = _all_of([witness.real_BL for witness in witnesses])
    if real_BL is None:
        real_BL = torch.ones_like(batch["input_ids"], dtype=torch.bool)
    before = Before(real_BL) if witnesses else None
    starts = [] if before is None else [witness.starts(before) for witness in witnesses]
    start_BL = _any_of([start_BL for start_BL in starts if start_BL is not None])
    return Reading(witnesses, before, starts, _arranged(real_BL, start_BL, _by_ids(batch, witnesses)))


def _by_ids(batch: Batch, witnesses: Sequence[Witness]) -> ByIds | None:
    """How far the ids of the batch have a say in what is padding; None if the padding id is not known."""
    pad_token_id, input_ids_BL = batch.get("pad_token_id"), batch["input_ids"]
    if pad_token_id is None:
        return None
    ids_BL = input_ids_BL.to(torch.int64)
    if batch.get("attention_mask") is not None:
        return ByIds(ids_BL, pad_token_id)
    # Other arguments than positions make padding a separate example.
    is_told = any(witness.name != "position_ids" for witness in witnesses)
    # Cutters of sequences fill up with id 0, whatever the model pads with.
    zeros = bool(witnesses) and pad_token_id != 0
    return ByIds(
        ids_BL,
        pad_token_id,
        tails=1 if is_told else 2,
        zeros=zeros,
        untrained_BL=_untrained(batch, ids_BL) if zeros else None,
        ends=pad_token_id in batch.get("eos_token_ids", ()),
    )


def _without_padding_alone(real_BL: Tensor, start_BL: Tensor | None, word_BL: Tensor) -> Arranged:
    """The layout in which examples that have no word are padding. (They fill up packed rows without a mask.)"""
    example_BL, position_BL = _numbered(real_BL, start_BL)
    count_BL = torch.where(word_BL, _WORD + 1, 1) * real_BL
    total_BL = total_per_example(count_BL, example_BL)
    return real_BL & (total_BL >= _WORD), example_BL, position_BL, total_BL & (_WORD - 1)


def _tails(by_ids: ByIds, real_BL: Tensor, start_BL: Tensor | None) -> Tensor | None:
    """Padding at the ends of the rows of a batch without a mask, which its ids tell."""
    pad_BL = by_ids.ids_BL == by_ids.pad
    tail_BL = ~(~(_fillers(by_ids, pad_BL) & real_BL)).flip(-1).cummax(-1).values.flip(-1)
    alone_BL = None
    if start_BL is not None:  # examples that have nothing else; a row that has nothing else is one
        is_all_B1 = ~(real_BL & ~tail_BL).any(-1, keepdim=True)
        alone_BL = tail_BL & ((tail_BL & start_BL).cummax(-1).values | is_all_B1)
    if by_ids.tails == 1:
        return alone_BL
    if by_ids.ends:
        before_BL = torch.nn.functional.pad(tail_BL, (1, 0))[:, :-1]
        tail_BL = tail_BL & (before_BL | ~pad_BL)
    return tail_BL if alone_BL is None else torch.where(alone_BL.any(-1, keepdim=True), alone_BL, tail_BL)


def _fillers(by_ids: ByIds, pad_BL: Tensor) -> Tensor:
    """Tokens that are padding if nothing else comes behind them in a row."""
    if not by_ids.zeros:
        return pad_BL
    zero_BL = by_ids.ids_BL == 0
    if by_ids.untrained_BL is not None:
        zero_BL = zero_BL & by_ids.untrained_BL  # what is trained on is a word
    return torch.logical_or(pad_BL, zero_BL)


def _untrained(batch: Batch, ids_BL: Tensor) -> Tensor | None:
    """Where an id 0 is not trained on, so that it may be padding; None if nothing says it. Labels that are narrower
    than the ids belong to the columns that `logits_to_keep` names: the last ones, or those after each kept logit."""
    labels, kept = batch.get("labels"), batch.get("logits_to_keep")
    if not isinstance(labels, Tensor) or labels.dim() != 2 or len(labels) != len(ids_BL):
        return None
    width = ids_BL.shape[1]
    missing = width - labels.shape[1]
    if missing == 0:
        return torch.ne(labels, 0)
    if missing > 0 and isinstance(kept, int) and kept == labels.shape[1]:
        return torch.nn.functional.pad(torch.ne(labels, 0), (missing, 0), value=True)
    if missing > 0 and isinstance(kept, Tensor) and kept.dtype == torch.bool and kept.shape == (width,):
        return torch.nn.functional.pad(~kept[:-1], (1, 0), value=True).expand_as(ids_BL).contiguous()
    return None


def _all_of(values: Sequence[Tensor]) -> Tensor | None:
    return reduce(torch.logical_and, values) if values else None


def _any_of(values: Sequence[Tensor]) -> Tensor | None:
    return reduce(torch.logical_or, values) if values else None
