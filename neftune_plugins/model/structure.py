"""Finds the token embeddings of a model, wrapped or not, the modules above them, its decoder and its padding id.

Methods are looked up on classes and attributes in `vars()`: a failing `getattr` on a module is slow, and models have
thousands of modules.
"""

import inspect
import re
from collections.abc import Iterator, Sequence

from torch import nn

from neftune_plugins.errors import NoiseNotAppliedError


def walk(model: nn.Module) -> Iterator[nn.Module]:
    """The modules of a model in the order of `model.modules()`, which takes time quadratic in their depth."""
    return (module for module, _, _ in _walk(model))


def named(model: nn.Module, wanted: Sequence[nn.Module]) -> list[str]:
    """The names of these modules, as `model.named_modules()` gives them. Raises KeyError if one is not in the model."""
    reached = {module: (parent, name) for module, parent, name in _walk(model)}

    def path(module: nn.Module) -> Iterator[str]:
        parent, name = reached[module]
        while parent is not None:
            yield name
            parent, name = reached[parent]

    return [".".join(reversed(list(path(module)))) for module in wanted]


def _walk(model: nn.Module) -> Iterator[tuple[nn.Module, nn.Module | None, str]]:
    """Each module once, with the one it was reached from and its name there."""
    seen: set[nn.Module] = set()
    todo: list[tuple[nn.Module, nn.Module | None, str]] = [(model, None, "")]
    while todo:
        module, parent, name = todo.pop()
        if module not in seen:
            seen.add(module)
            yield module, parent, name
            children = reversed(module._modules.items())
            todo += [(child, module, name) for name, child in children if child is not None]


def input_embedding(model: nn.Module) -> nn.Module | None:
    """`get_input_embeddings()` of the outermost module that has one for tokens to give: value heads and other wrappers
    have none, models that read images or sound may give what embeds those. Failing that, the model's `embed_tokens`
    (decoders that nobody was meant to use alone).

    A wrapper may hold several models, such as a student and its teacher: then that of the only one with trainable
    parameters. Raises NoiseNotAppliedError if several have some.
    """
    for module in walk(model):
        embedding = own_embedding(module)
        if embedding is not None:
            if hasattr(type(model), "get_input_embeddings"):
                return embedding
            return _of_the_trained(model, embedding)
    found = getattr(model, "embed_tokens", None)
    return found if isinstance(found, nn.Module) else None


def own_embedding(module: nn.Module) -> nn.Module | None:
    """What the module's `get_input_embeddings()` gives, if that looks tokens up."""
    if not hasattr(type(module), "get_input_embeddings"):
        return None
    try:
        embedding = module.get_input_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        return None
    return embedding if isinstance(embedding, nn.Module) and _looks_up(embedding) else None


def _of_the_trained(wrapper: nn.Module, first: nn.Module) -> nn.Module:
    """Of several models side by side in a module that has no embedding itself, that of the one that is trained."""
    models: dict[nn.Module, nn.Module] = {}
    inside: set[nn.Module] = set()
    for module in walk(wrapper):
        embedding = own_embedding(module)
        if embedding is not None and module not in inside:
            models[module] = embedding
            inside.update(walk(module))
    if len(set(models.values())) == 1:
        return first
    trained = {model for model in models if any(parameter.requires_grad for parameter in model.parameters())}
    embeddings = {models[model] for model in trained or models}
    if len(embeddings) == 1:
        return embeddings.pop()
    policy = getattr(wrapper, "policy", None)
    if policy in models:  # together with a value model, as PPO in TRL 0.19 wraps them
        return models[policy]
    names = sorted(named(wrapper, list(models)))
    raise NoiseNotAppliedError(
        f"{type(wrapper).__name__} holds several models with embeddings of their own ({', '.join(names)}), and not "
        "exactly one of them has trainable parameters: which of them should have noise is not clear. Install the noise "
        "in each that should, or call requires_grad_(False) on the others (a teacher, a reference model) before."
    )


# First parameters of forwards that project patches, frames or features.
_FEATURES = re.compile(r"pixel|patch|image|video|audio|feature|hidden|frames")


def _looks_up(embedding: nn.Module) -> bool:
    """Whether this can be a lookup of tokens, rather than a projection of patches or frames. A factorised table is a
    lookup that holds a projection."""
    kinds = [type(module) for module in walk(embedding)]
    if any(issubclass(kind, nn.Conv1d | nn.Conv2d | nn.Conv3d) for kind in kinds):
        return False
    if not any(issubclass(kind, nn.Linear) for kind in kinds):
        return True
    first = next(iter(inspect.signature(embedding.forward).parameters), "")
    return any(issubclass(kind, nn.Embedding) for kind in kinds) and not _FEATURES.search(first)


def above(model: nn.Module, part: nn.Module) -> list[nn.Module]:
    """The modules that `part` is in, outermost first. There may be several ways down to it."""
    over = parents(model)
    found: set[nn.Module] = set()
    todo = [part]
    while todo:
        new = set(over[todo.pop()]) - found
        found |= new
        todo += new
    return [module for module in over if module in found]


def parents(model: nn.Module) -> dict[nn.Module, list[nn.Module]]:
    """For each module of the model, in the order of `walk`, the modules that it is a child of."""
    found: dict[nn.Module, list[nn.Module]] = {module: [] for module in walk(model)}
    for module in found:
        for child in module._modules.values():
            if child is not None:
                found[child].append(module)
    return found


def decoder(model: nn.Module) -> nn.Module | None:
    """The decoder of an encoder-decoder model; None for all others. (That of Florence-2 is a whole BART.)"""
    for module in walk(model):
        config = vars(module).get("config")
        if getattr(config, "is_encoder_decoder", False) and hasattr(type(module), "get_decoder"):
            found = module.get_decoder()  # type: ignore[operator]
            return decoder(found) or found if isinstance(found, nn.Module) and found is not module else None
    return None


def pad_token_id(model: nn.Module) -> int | None:
    """What the model's configuration, or that of a module in it, says."""
    return next(iter(token_ids(model, "pad_token_id")), None)


def token_ids(model: nn.Module, name: str) -> tuple[int, ...]:
    """What the configuration of the model, or of a module in it, gives under that name: one id, several or none."""
    for module in walk(model):
        for holder in ("config", "generation_config"):
            found = getattr(vars(module).get(holder), name, None)
            given = found if isinstance(found, list | tuple) else [found]
            ids = tuple(one for one in given if isinstance(one, int) and one >= 0)
            if ids:
                return ids
    return ()
