"""Which tokens of a batch are real, and which of them belong together: read from what the model's forward was given.

Shape suffixes: B rows of the batch, L tokens of a row, S ends of the examples in `cu_seq_lens`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from neftune_plugins.errors import NoiseNotAppliedError

Batch = Mapping[str, Any]
"""The arguments of a model's forward by name, "pad_token_id" (None where it is not known), and "is_decoder": whether
these are the targets of an encoder-decoder model."""

LayoutReader = Callable[[Batch], "Layout | None"]
"""Reads a batch's layout, or gives None to leave it to the next reader. Plain tensor code, so that it compiles."""


@dataclass(frozen=True)
class Layout:
    """The examples of a batch.

    real_BL: bool, False on padding.
    example_BL: int64 number of the token's example within its row, from 0; of padding anything in [0, L].
    position_BL: int64 position of the token within its example, counted over real tokens from 0; of padding anything.
    length_BL: int64 number of real tokens in the token's example; of padding anything.
    """

    real_BL: Tensor
    example_BL: Tensor
    position_BL: Tensor
    length_BL: Tensor

    @staticmethod
    def from_starts(real_BL: Tensor, start_BL: Tensor) -> "Layout":
        """The layout where `start_BL` (bool) marks the tokens that open an example; a row's first real token always
        does, and padding never does."""
        count_BL = real_BL.cumsum(-1)
        start_BL = real_BL & (start_BL | (count_BL == 1))
        example_BL = start_BL.cumsum(-1)
        before_BL = total_per_example(torch.where(start_BL, count_BL, 0), example_BL)
        return Layout(real_BL, example_BL, count_BL - before_BL, total_per_example(real_BL.to(torch.int64), example_BL))


def total_per_example(value_BL: Tensor, example_BL: Tensor) -> Tensor:
    """At each token the sum (int64, mod 2^64) of `value_BL` over all tokens of its example."""
    total_BL = value_BL.new_zeros(value_BL.shape[0], value_BL.shape[1] + 1)
    return total_BL.scatter_add(1, example_BL, value_BL).gather(1, example_BL)


def read_layout(batch: Batch) -> Layout:
    """The built-in reader, for everything that the frameworks pass to a transformers model.

    Real tokens are told by `attention_mask`: (B, L) 0/1 or segment numbers, or (B, 1, L, L) boolean or additive.
    Examples start where a segment number changes, where `position_ids` (B, L) do not go up, at `cu_seq_lens_q` (S,),
    and where a 4-D mask hides the token before. A packed example that consists of padding ids alone is padding.

    Raises NoiseNotAppliedError for a mask or positions of another form.
    """
    input_ids_BL: Tensor = batch["input_ids"]
    if input_ids_BL.dim() != 2:
        raise _unreadable(f"input_ids of {input_ids_BL.dim()} dimensions")
    real_BL = torch.ones_like(input_ids_BL, dtype=torch.bool)
    start_BL = torch.zeros_like(real_BL)

    mask = batch.get("attention_mask")
    if mask is None:
        if batch.get("is_decoder") and batch.get("pad_token_id") is not None:
            # Targets come without a mask. Their start may be the padding id: only the end of a row is padding.
            real_BL = (input_ids_BL != batch["pad_token_id"]).flip(-1).cummax(-1).values.flip(-1)
    elif isinstance(mask, Tensor) and mask.dim() == 2:
        segment_BL = mask[:, -input_ids_BL.shape[1] :]  # prefix tuning puts virtual tokens before the ids
        real_BL = segment_BL > 0
        # Holes in a mask do not start an example: compare with the last real token's segment.
        start_BL = start_BL | (segment_BL != _previous_real(segment_BL, real_BL))
    elif isinstance(mask, Tensor) and mask.dim() == 4:
        # Additive masks hide with -10,000 or less; ALiBi's biases next to the diagonal are above -1.
        visible_BLL = mask[:, 0] > -1000 if mask.is_floating_point() else mask[:, 0] != 0
        length = input_ids_BL.shape[1]
        visible_BLL = visible_BLL[:, -length:, -length:].expand(input_ids_BL.shape[0], -1, -1)
        # The diagonal and the one below it are right for sliding windows and bidirectional masks too.
        real_BL = visible_BLL.diagonal(dim1=1, dim2=2)
        hidden_BK = ~visible_BLL.diagonal(offset=-1, dim1=1, dim2=2)
        start_BL = torch.nn.functional.pad(hidden_BK, (1, 0), value=True)
    else:
        form = f"of {mask.dim()} dimensions" if isinstance(mask, Tensor) else f"that is a {type(mask).__name__}"
        raise _unreadable(f"an attention_mask {form}")

    position_ids = batch.get("position_ids")
    if isinstance(position_ids, Tensor) and position_ids.dim() > 2 and mask is None:
        raise _unreadable(f"position_ids of {position_ids.dim()} dimensions without an attention_mask")
    if isinstance(position_ids, Tensor) and position_ids.dim() == 2 and position_ids.shape[-1] == real_BL.shape[1]:
        # They may skip some: those of hidden tokens, or those that make a short example look long (PoSE).
        position_BL = position_ids.expand_as(real_BL)
        start_BL = start_BL | (position_BL <= _previous_real(position_BL, real_BL))

    ends_S = batch.get("cu_seq_lens_q")
    if isinstance(ends_S, Tensor):
        index_L = torch.arange(real_BL.shape[1], device=real_BL.device)
        start_BL = start_BL | torch.isin(index_L, ends_S)
        real_BL = real_BL & (index_L < ends_S[-1])

    layout = Layout.from_starts(real_BL, start_BL)
    pad_token_id = batch.get("pad_token_id")
    if pad_token_id is None:
        return layout
    word_BL = (real_BL & (input_ids_BL != pad_token_id)).to(torch.int64)
    return Layout.from_starts(real_BL & (total_per_example(word_BL, layout.example_BL) > 0), start_BL)


def _unreadable(what: str) -> NoiseNotAppliedError:
    return NoiseNotAppliedError(
        f"the examples of a batch with {what} cannot be told apart. Give ids of two dimensions and a mask of two or "
        "four, or read the batch in a plugin: neftune_layout_reader() (neftune_plugins.plugins.hookspecs)."
    )


def _previous_real(value_BL: Tensor, real_BL: Tensor) -> Tensor:
    """`value_BL` of the last real token before each token; before the first, of whatever comes first."""
    index_L = torch.arange(value_BL.shape[1], device=value_BL.device)
    last_BL = torch.where(real_BL, index_L, 0).cummax(-1).values
    return value_BL.gather(1, torch.nn.functional.pad(last_BL, (1, 0))[:, :-1])
