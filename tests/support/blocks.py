"""What enters the blocks of a model, read in front of them."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from neftune_plugins import NoiseConfig, install


def entered_blocks(
    model: nn.Module, blocks: Sequence[nn.Module], batch: Mapping[str, Any], config: NoiseConfig, *, step: int
) -> list[tuple[Tensor, Tensor]]:
    """What each of `blocks` is given (B, L, D) in a training forward and backward with noise, and in one without."""
    seen: list[Tensor] = []

    def see(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append((args[0] if args else kwargs["hidden_states"]).detach().clone())

    hooks = [block.register_forward_pre_hook(see, with_kwargs=True) for block in blocks]
    with install(model, config) as handle:
        handle.step = step
        model(**batch).loss.backward()
    noisy = seen[: len(blocks)]  # without the calls of an audit, which come after
    seen.clear()
    model(**batch)
    for hook in hooks:
        hook.remove()
    return list(zip(noisy, seen, strict=True))
