"""Finds the real tokens of Ludwig's batches. Ludwig's attention mask is false for the tokenizer's padding id, but
Ludwig does not always pad with that id.

Shape suffixes: B rows of the batch, L tokens of a row.
"""

from typing import Any

import torch
from torch import Tensor

from neftune_plugins import Batch, Layout, LayoutReader


def of_model(tokenizer: Any) -> LayoutReader:
    """Return a reader for model_type llm: Ludwig pads these rows with id 0 on the left, whatever the tokenizer's id is.

    A row that begins with a real token of id 0 is read correctly if the tokenizer puts that token in front of each
    text, unless it also pads with it: then Ludwig takes the token for padding, too.
    """
    opens = tokenizer.pad_token_id != 0 and tokenizer("").input_ids[:1] == [0]

    def read(batch: Batch) -> Layout:
        real_BL = _from_first(batch["input_ids"] != 0)
        if opens:
            real_BL = real_BL | torch.nn.functional.pad(real_BL[:, 1:], (0, 1))
        return _one_a_row(real_BL)

    return read


def of_encoder(pad_token_id: int) -> LayoutReader:
    """Return a reader for text encoders of type llm, which get no mask. The feature says on which side rows are
    padded."""

    def read(batch: Batch) -> Layout:
        word_BL = batch["input_ids"] != pad_token_id
        return _one_a_row(_from_first(word_BL) & _from_first(word_BL.flip(-1)).flip(-1))

    return read


def _from_first(word_BL: Tensor) -> Tensor:
    return word_BL.cumsum(-1) > 0


def _one_a_row(real_BL: Tensor) -> Layout:
    return Layout.from_starts(real_BL, torch.zeros_like(real_BL))
