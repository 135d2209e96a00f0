"""Arguments of a forward pass for a second call."""

import copy
from collections.abc import Mapping, MutableMapping
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

NOT_REPEATABLE = "its arguments serve for one call alone: a cache of earlier tokens, or tensors without values"


def repeatable(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """The arguments in new containers, so that what the first call writes into a list or a mapping is not in
    the second call (sentence-transformers adds its results to the features). Tensors are the same.

    None if there are none: `NOT_REPEATABLE`.
    """
    again: dict[str, Any] = dict(kwargs)
    cache = again.pop("past_key_values", None)
    if cache is not None:
        length = getattr(cache, "get_seq_length", None)
        if length is None or int(length()) != 0:
            return None
    if any(isinstance(value, Tensor) and _has_no_values(value) for value in tree_leaves((args, again))):
        return None
    args, again = tree_map(_own, (tuple(args), again))
    if cache is not None:
        again["past_key_values"] = copy.deepcopy(cache)
    return args, again


def _own(leaf: Any) -> Any:
    """Mappings that are no plain dict, such as a tokenizer's."""
    return copy.copy(leaf) if isinstance(leaf, MutableMapping) else leaf


def _has_no_values(value: Tensor) -> bool:
    return value.device.type == "meta" or "Fake" in type(value).__name__ or "Functional" in type(value).__name__
