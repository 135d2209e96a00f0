"""Adds noise to the output of an embedding: in place if that is safe, else to a copy."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from neftune_plugins.model.sharded import add_to_shared, check_whole, is_shared
from neftune_plugins.noise import NoiseType, add_noise, add_noise_


def add(
    embedding: nn.Module,
    output: Tensor,
    keys: Tensor,
    scales: Tensor,
    noise_type: NoiseType,
    is_ours: Callable[[object], bool],
    energy_3: Tensor | None = None,
) -> Tensor:
    """`output` (B, L, D) of the embedding plus noise.

    keys, scales: of `token_keys` and `token_scales`, (B, L).
    is_ours: whether a forward hook is this package's.
    energy_3: as in `add_noise`.
    """
    if is_shared(output):
        return add_to_shared(output, keys, scales, noise_type, energy_3)
    check_whole(embedding, output, keys)
    if torch.compiler.is_compiling():
        flat = output.reshape(-1, output.shape[-1])
        arguments = (keys.reshape(-1), scales.reshape(-1), noise_type)
        return add_noise(flat, *arguments, energy_3=energy_3).view_as(output)
    if not _is_ours_alone(embedding, output, is_ours):
        output = output.clone(memory_format=torch.contiguous_format)
    flat = output.detach().view(-1, output.shape[-1])
    add_noise_(flat, keys.reshape(-1), scales.reshape(-1), noise_type, energy_3=energy_3)
    return output


def _is_ours_alone(embedding: nn.Module, output: Tensor, is_ours: Callable[[object], bool]) -> bool:
    """Whether nobody else can hold, or autograd need, the embedding's output: then it may be overwritten."""
    return (
        type(embedding) is nn.Embedding
        and type(output) is Tensor
        and output._base is None
        and output.is_contiguous()
        and is_ours(next(iter(embedding._forward_hooks.values())))
    )
