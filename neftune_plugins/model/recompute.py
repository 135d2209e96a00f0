"""Finds the noise of forward passes that run again in backward (activation checkpointing)."""

from collections import deque

import torch
from torch import Tensor

from neftune_plugins.model.sharded import held

# Forward passes whose noise can be recomputed in one backward; each keeps 20 bytes a token.
_MAX_KEPT = 64


class Recomputable:
    """The keys and scales of the last noised lookups, found again by their ids.

    Ids are compared by storage: reentrant checkpointing passes another tensor object of the same storage, and gradient
    caching cuts the same slices again (tests/core/test_checkpointing.py).
    """

    def __init__(self) -> None:
        self._kept: deque[tuple[Tensor, int, Tensor, Tensor]] = deque(maxlen=_MAX_KEPT)
        self.has_forgotten = False

    def keep(self, input_ids: Tensor, keys: Tensor, scales: Tensor) -> None:
        """Remember the noise of a lookup. Does nothing in a compiled graph, which recomputes by itself."""
        if torch.compiler.is_compiling():
            return
        self.has_forgotten |= len(self._kept) == _MAX_KEPT
        ids = held(input_ids)
        self._kept.append((ids, ids._version, keys, scales))

    def find_equal(self, input_ids: Tensor) -> tuple[Tensor, Tensor] | None:
        """As `find`, or by equal ids: gradient caching may copy a mini-batch. Waits for the device."""
        found = self.find(input_ids)
        if found is None:
            own = held(input_ids)
            for ids, _, keys, scales in reversed(self._kept):
                if ids.shape == own.shape and ids.device == own.device and torch.equal(ids, own):
                    return keys, scales
        return found

    def find(self, input_ids: Tensor) -> tuple[Tensor, Tensor] | None:
        """The keys and scales that the lookup of these ids had, the last one first."""
        input_ids = held(input_ids)
        for ids, version, keys, scales in reversed(self._kept):
            same_place = ids.data_ptr() == input_ids.data_ptr() and ids.stride() == input_ids.stride()
            if ids.shape == input_ids.shape and same_place and ids._version == version:
                return keys, scales
        return None

    def clear(self) -> None:
        """Forget all: a new optimisation step begins."""
        self._kept.clear()
        self.has_forgotten = False
