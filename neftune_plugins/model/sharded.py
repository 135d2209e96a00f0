"""Adds noise to DTensors, which tensor and sequence parallelism shard over the processes of a mesh.

The noise is a function of the whole batch. Each process therefore computes the keys of the whole batch and adds the
noise to its own part of the embeddings. DTensors are recognised by their attributes, because importing their class
takes seconds; a program that has a DTensor has already imported it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor, nn

from neftune_plugins.errors import NoiseConfigError, NoiseNotAppliedError
from neftune_plugins.noise.draw import NoiseType, add_noise, add_noise_, channel_codes

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def is_shared(value: Any) -> TypeGuard[DTensor]:
    """Whether `value` is a DTensor."""
    return isinstance(value, Tensor) and hasattr(value, "device_mesh")


def whole(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Return the batch with its sharded tensors gathered. All processes of their mesh must call this."""
    return {name: value.full_tensor() if is_shared(value) else value for name, value in batch.items()}


def held(tensor: Tensor) -> Tensor:
    """Return this process's part of the tensor: all of it, unless it is sharded."""
    return tensor.to_local() if is_shared(tensor) else tensor


def has_shared_weight(embedding: nn.Module) -> bool:
    """Whether the embedding's forward returns a DTensor, which a later hook may turn into a local slice."""
    return is_shared(getattr(embedding, "weight", None))


def add_to_shared(
    output: DTensor, keys_BL: Tensor, scales_BL: Tensor, noise_type: NoiseType, energy_3: Tensor | None = None
) -> Tensor:
    """Add the noise to `output` (B, L, D), a DTensor in any placement. Returns a DTensor.

    Each process adds the noise of its own tokens and channels. Partial sums (vocabulary-parallel lookups) are reduced
    first, because the noise must be added once to the sum.
    keys_BL, scales_BL: `token_keys` and `token_scales` of the whole batch.
    energy_3: as in `add_noise`, for the part of this process.
    """
    from torch.distributed.tensor import DTensor, Replicate

    mesh = output.device_mesh
    placements = [Replicate() if place.is_partial() else place for place in output.placements]
    output = output.redistribute(placements=placements)
    row_B, column_L, channel_D = (_held_indices(output, dim) for dim in range(3))
    keys_BL, scales_BL = (tensor_BL[row_B][:, column_L] for tensor_BL in (keys_BL, scales_BL))
    arguments = (
        keys_BL.reshape(-1),
        scales_BL.reshape(-1),
        noise_type,
        channel_codes(channel_D.to(torch.int32)),
        energy_3,
    )
    if torch.compiler.is_compiling():
        local = output.to_local()
        noisy = add_noise(local.reshape(-1, local.shape[-1]), *arguments).view_as(local)
        return DTensor.from_local(noisy, mesh, placements, run_check=False, shape=output.shape, stride=output.stride())
    noised = output.clone(memory_format=torch.contiguous_format)
    local = held(noised.detach())
    add_noise_(local.view(-1, local.shape[-1]), *arguments)
    return noised


def _held_indices(tensor: DTensor, dim: int) -> Tensor:
    """Return the indices of this process's part along `dim` of the whole tensor."""
    from torch.distributed.tensor import DTensor, Replicate, Shard

    index = torch.arange(tensor.shape[dim], device=tensor.device)
    everywhere = DTensor.from_local(index, tensor.device_mesh, [Replicate()] * tensor.device_mesh.ndim, run_check=False)
    placements = [Shard(0) if place.is_shard(dim) else Replicate() for place in tensor.placements]
    return everywhere.redistribute(placements=placements).to_local()


def check_whole(embedding: nn.Module, output: Tensor, keys_BL: Tensor) -> None:
    """Raise NoiseNotAppliedError if `output`, an ordinary tensor, is not the embedding (B, L, D) of all tokens: a
    process cannot know which slice it has."""
    weight = getattr(embedding, "weight", None)
    width = weight.shape[-1] if is_shared(weight) else output.shape[-1]
    if output.shape != (*keys_BL.shape, width):
        raise NoiseNotAppliedError(
            f"{type(embedding).__name__} returned a tensor of shape {tuple(output.shape)}, a slice of "
            f"{(*keys_BL.shape, width)}. Its noise cannot be computed, because an ordinary tensor does not tell which "
            "slice it is. Let the module return DTensors (use_local_output=False in "
            "torch.distributed.tensor.parallel), or name the parallelised module in a plugin: "
            "neftune_embeddings(model) (neftune_plugins.plugins.hookspecs)."
        )


def refuse_context_parallel(sizes: Mapping[str, Any]) -> None:
    """Refuse to train with noise if a framework splits sequences before the model gets them. Adapters call this.

    sizes: for each of the framework's keys, over how many processes it splits a sequence, or None if it is not set.
    Raises NoiseConfigError for a size above 1.
    """
    for key, size in sizes.items():
        if isinstance(size, int) and size > 1:
            raise NoiseConfigError(
                f"{key}: {size} cannot be combined with neftune_noise_alpha: each process gets a slice of every "
                f"example, but the noise depends on the whole example. Leave out {key} or neftune_noise_alpha."
            )
