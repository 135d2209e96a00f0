"""Which tokens of Ludwig's batches are real. Its attention mask tells where a token is not the tokenizer's padding id,
which is not always where it has padded.

Shape suffixes: B rows of the batch, L tokens of a row.
"""

from typing import Any

import torch
from torch import Tensor

from neftune_plugins import Batch, Layout, LayoutReader


def of_model(tokenizer: Any) -> LayoutReader:
    """For model_type llm, whose rows are filled up with id 0 on the left, whatever the tokenizer pads with.

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
    """For text encoders of type llm, which get no mask. Rows are filled up on the side that the feature says."""

    def read(batch: Batch) -> Layout:
        word_BL = batch["input_ids"] != pad_token_id
        return _one_a_row(_from_first(word_BL) & _from_first(word_BL.flip(-1)).flip(-1))

    return read


def _from_first(word_BL: Tensor) -> Tensor:
    return word_BL.cumsum(-1) > 0


def _one_a_row(real_BL: Tensor) -> Layout:
    return Layout.from_starts(real_BL, torch.zeros_like(real_BL))
