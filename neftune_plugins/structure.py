"""What a model tells of itself, wrapped or not: its token embeddings, its decoder, its padding id."""

from typing import Any

from torch import nn


def input_embedding(model: nn.Module) -> nn.Module | None:
    """`get_input_embeddings()` of the outermost module that has one for tokens to give: value heads and other wrappers
    have none, models that read images or sound may give what embeds those. Failing that, the model's `embed_tokens`
    (decoders that nobody was meant to use alone)."""
    for module in model.modules():
        getter = getattr(module, "get_input_embeddings", None)
        if getter is None:
            continue
        try:
            embedding = getter()
        except (AttributeError, NotImplementedError):
            continue
        if isinstance(embedding, nn.Module) and _looks_up(embedding):
            return embedding
    found = getattr(model, "embed_tokens", None)
    return found if isinstance(found, nn.Module) else None


def _looks_up(embedding: nn.Module) -> bool:
    """Whether this can be a lookup of tokens, rather than a projection of patches or frames."""
    projections = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    return not any(isinstance(module, projections) for module in embedding.modules())


def decoder(model: nn.Module) -> nn.Module | None:
    """The decoder of an encoder-decoder model; None for all others."""
    for module in model.modules():
        config = getattr(module, "config", None)
        get_decoder: Any = getattr(module, "get_decoder", None)
        if getattr(config, "is_encoder_decoder", False) and get_decoder is not None:
            found = get_decoder()
            return found if isinstance(found, nn.Module) and found is not module else None
    return None


def pad_token_id(model: nn.Module) -> int | None:
    """What the model's configuration, or that of a module in it, says."""
    for module in model.modules():
        for config in (getattr(module, "config", None), getattr(module, "generation_config", None)):
            found = getattr(config, "pad_token_id", None)
            if isinstance(found, int) and found >= 0:
                return found
    return None
