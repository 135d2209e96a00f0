"""Lookups before the model is called, whose result is then passed to it as `inputs_embeds`."""

import weakref
from collections import deque
from typing import Any

import torch
from torch import Tensor, nn

# Lookups that may still be passed to a forward.
_MAX_KEPT = 8


class EarlyLookup:
    """A lookup outside of every call.

    input_ids: what was looked up. hook: of the embedding, which is `embedding`.
    """

    def __init__(self, hook: Any, embedding: nn.Module, input_ids: Tensor, output: Tensor) -> None:
        self.hook = hook
        self.embedding = embedding
        self.input_ids = input_ids
        self._output = weakref.ref(output)
        self._version = output._version
        self._shape = output.shape

    def is_output(self, embeds: Tensor) -> bool:
        """Whether `embeds` is the tensor that this lookup returned, unchanged."""
        return self._output() is embeds and embeds._version == self._version

    @torch.no_grad()
    def kept_in(self, embeds: Tensor) -> Tensor | None:
        """Which tokens of `embeds` (B, L, D) are as this lookup gave them, where features of images or sound were
        merged into it, in place or out of place: bool (B, L). None if it cannot come from this lookup.

        Looks the ids up again, and waits for the device: only for batches that come as changed embeddings.
        """
        if embeds.shape != self._shape:
            return None
        clean: Tensor = self.embedding.forward(self.input_ids).to(embeds)
        # Rows of zeros (padding) equal themselves after any factor.
        return (clean == embeds).all(-1) & (clean != 0).any(-1)


class EarlyLookups:
    """The last early lookups. Multimodal models and templates look tokens up first and merge features into the result
    (tests/core/test_early_lookups.py)."""

    def __init__(self) -> None:
        self._kept: deque[EarlyLookup] = deque(maxlen=_MAX_KEPT)

    def keep(self, hook: Any, embedding: nn.Module, input_ids: Tensor, output: Tensor) -> None:
        """Remember a lookup. Does nothing in a compiled graph."""
        if not torch.compiler.is_compiling():
            self._kept.append(EarlyLookup(hook, embedding, input_ids, output))

    def find(self, embeds: Tensor, *, may_be_merged: bool) -> tuple[EarlyLookup, Tensor | None] | None:
        """The lookup that `embeds` come from, and which tokens are unchanged (bool (B, L); None if all are). None if
        they come from none.

        may_be_merged: whether features may have been merged into them; of several lookups that fit, the one with most
            unchanged tokens is taken.
        """
        for lookup in reversed(self._kept):
            if lookup.is_output(embeds):
                return lookup, None
        if not may_be_merged:
            return None
        best, most = None, 0
        for lookup in reversed(self._kept):
            kept_BL = lookup.kept_in(embeds)
            count = 0 if kept_BL is None else int(kept_BL.sum())
            if count > most:
                best, most = (lookup, kept_BL), count
        return best
