"""What a model tells of itself, wrapped or not: its token embeddings, what is above them, its decoder, its padding id.

Classes are asked for methods and instances for their own attributes: a miss on a module is slow, and models have
thousands.
"""

from collections import defaultdict

from torch import nn


def input_embedding(model: nn.Module) -> nn.Module | None:
    """`get_input_embeddings()` of the outermost module that has one for tokens to give: value heads and other wrappers
    have none, models that read images or sound may give what embeds those. Failing that, the model's `embed_tokens`
    (decoders that nobody was meant to use alone)."""
    for module in model.modules():
        if not hasattr(type(module), "get_input_embeddings"):
            continue
        try:
            embedding = module.get_input_embeddings()  # type: ignore[operator]
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


def above(model: nn.Module, part: nn.Module) -> list[nn.Module]:
    """The modules that `part` is in, outermost first. There may be several ways down to it."""
    modules = list(model.modules())
    parents: dict[nn.Module | None, list[nn.Module]] = defaultdict(list)
    for module in modules:
        for child in module._modules.values():
            parents[child].append(module)
    found: set[nn.Module] = set()
    todo = [part]
    while todo:
        new = set(parents[todo.pop()]) - found
        found |= new
        todo += new
    return [module for module in modules if module in found]


def decoder(model: nn.Module) -> nn.Module | None:
    """The decoder of an encoder-decoder model; None for all others. (That of Florence-2 is a whole BART.)"""
    for module in model.modules():
        config = vars(module).get("config")
        if getattr(config, "is_encoder_decoder", False) and hasattr(type(module), "get_decoder"):
            found = module.get_decoder()  # type: ignore[operator]
            return decoder(found) or found if isinstance(found, nn.Module) and found is not module else None
    return None


def pad_token_id(model: nn.Module) -> int | None:
    """What the model's configuration, or that of a module in it, says."""
    for module in model.modules():
        for name in ("config", "generation_config"):
            found = getattr(vars(module).get(name), "pad_token_id", None)
            if isinstance(found, int) and found >= 0:
                return found
    return None
