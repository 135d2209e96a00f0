"""Tensors that the processes of a mesh share out among them: DTensors, as tensor and sequence parallelism make them.

Noise is a function of the whole batch, so each process works the keys out for all of it and adds to what it holds.
DTensors are told by what they have: to import their class takes seconds, and who has one has done so.
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
    """The batch with its shared tensors gathered: all processes of their mesh must call this."""
    return {name: value.full_tensor() if is_shared(value) else value for name, value in batch.items()}


def held(tensor: Tensor) -> Tensor:
    """What this process holds of the tensor: all of it, unless it is shared."""
    return tensor.to_local() if is_shared(tensor) else tensor


def has_shared_weight(embedding: nn.Module) -> bool:
    """Whether the embedding's output, as its forward makes it, is a DTensor, which a hook may then cut to pieces."""
    return is_shared(getattr(embedding, "weight", None))


def add_to_shared(
    output: DTensor, keys_BL: Tensor, scales_BL: Tensor, noise_type: NoiseType, energy_3: Tensor | None = None
) -> Tensor:
    """`output` (B, L, D), in any placement, plus the noise of the whole batch: a DTensor again.

    Each process adds to the tokens and channels that it holds. Sums that are still spread over the processes
    (vocabulary-parallel lookups) are brought together first, because noise belongs to the sum and not to each part.
    energy_3: as in `add_noise`, of what this process holds.
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
    """The indices along `dim` of the whole tensor that this process holds."""
    from torch.distributed.tensor import DTensor, Replicate, Shard

    index = torch.arange(tensor.shape[dim], device=tensor.device)
    everywhere = DTensor.from_local(index, tensor.device_mesh, [Replicate()] * tensor.device_mesh.ndim, run_check=False)
    placements = [Shard(0) if place.is_shard(dim) else Replicate() for place in tensor.placements]
    return everywhere.redistribute(placements=placements).to_local()


def check_whole(embedding: nn.Module, output: Tensor, keys_BL: Tensor) -> None:
    """Raises NoiseNotAppliedError where `output`, an ordinary tensor, is not the embedding (B, L, D) of all tokens: a
    process that has a slice of it cannot know which."""
    weight = getattr(embedding, "weight", None)
    width = weight.shape[-1] if is_shared(weight) else output.shape[-1]
    if output.shape != (*keys_BL.shape, width):
        raise NoiseNotAppliedError(
            f"the output of {type(embedding).__name__} is {tuple(output.shape)}, a slice of "
            f"{(*keys_BL.shape, width)} that does not say which. Have it give DTensors (use_local_output=False in "
            "torch.distributed.tensor.parallel), or name the module that is parallelised in a plugin: "
            "neftune_embeddings(model) (neftune_plugins.plugins.hookspecs)."
        )


def refuse_context_parallel(sizes: Mapping[str, Any]) -> None:
    """For adapters of frameworks that cut sequences before the model sees them; to be called for a run with noise.

    sizes: the framework's keys, and over how many processes each spreads a sequence; None where it says nothing.
    Raises NoiseConfigError for one above 1.
    """
    for key, size in sizes.items():
        if isinstance(size, int) and size > 1:
            raise NoiseConfigError(
                f"{key}: {size} cannot go with neftune_noise_alpha: each process is given a slice of every example, "
                f"and noise depends on the whole example. Leave out {key} or neftune_noise_alpha."
            )
