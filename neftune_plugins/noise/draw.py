"""The noise: a pure function of (seed, step, stream, the example's tokens, position in the example, channel).

It uses no random number generator and no state. An example therefore gets the same noise at any place in a batch, and a
recomputed or resumed step draws the same noise again. `docs/noise.md` is the specification, with test vectors. This
module implements it for tensors, in plain integer arithmetic that wraps around (mod 2^64 and mod 2^32).

Shape suffixes: B rows of the batch, L tokens of a row, N tokens in any arrangement, D channels of the embedding.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from neftune_plugins.noise.kernels import has_memory, is_capturing, kernel_for, key_for
from neftune_plugins.noise.kernels.form import Arranged, Draw, KernelDraw
from neftune_plugins.noise.layout import Layout, total_per_example


def _signed(value: int, bits: int) -> int:
    """`value` mod 2^bits, as the signed integer with the same bits."""
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB
_CHANNEL_0 = 0x7FEB352D
_CHANNEL_1 = 0x21F0AAAD
_CHANNEL_2 = 0xD35A2D97

# Number of elements that one CPU thread noises at once: the temporary tensors must fit into its cache.
_CHUNK_PER_THREAD = 1 << 16
# The least for an accelerator, where only the memory of the temporary tensors matters.
_CHUNK_ON_ACCELERATOR = 1 << 17
# There, the temporary tensors of one element (12 bytes, of the float64 of gaussian noise) may take up to a quarter of
# this many bytes of x.
_SCRATCH = 52


@dataclass(frozen=True)
class NoiseType:
    """A distribution of the noise, for `neftune_noise_type`.

    >>> NoiseType("coin", lambda bits: ((bits >> 31) | 1).to(torch.float32), rms=1.0, summary="-1 or +1")
    NoiseType(name='coin', ...)

    name: the value of `neftune_noise_type` that selects it.
    draw: function from an int32 tensor of any shape, in which the upper 24 bits are uniformly random, to a float32
        tensor of that shape, elementwise. It may overwrite its argument. It must be plain tensor code, so that it can
        be compiled.
    rms: root mean square of unit noise: the noise of one embedding has norm about `alpha * rms / sqrt(L)`.
    unit: factor from the result of `draw` to unit noise, multiplied into the scale of each token. With a power of two
        this multiplication does not round.
    summary: one line for listings.
    kernel: the same draw for the fast paths; without it the noise of this type is added by plain tensor code.
    """

    name: str
    draw: Callable[[Tensor], Tensor]
    rms: float
    unit: float = 1.0
    summary: str = ""
    kernel: KernelDraw | None = None


def splitmix64(value: int) -> int:
    """The output function of SplitMix64 (Steele, Lea and Flood 2014, figure 16), mod 2^64."""
    value = (value + _GOLDEN) & (2**64 - 1)
    value = ((value ^ (value >> 30)) * _MIX_1) & (2**64 - 1)
    value = ((value ^ (value >> 27)) * _MIX_2) & (2**64 - 1)
    return value ^ (value >> 31)


def _splitmix64(x_N: Tensor) -> Tensor:
    """`splitmix64` of an int64 tensor. The masks undo the sign bits that torch shifts in."""
    x_N = x_N + _signed(_GOLDEN, 64)
    x_N = (x_N ^ ((x_N >> 30) & (2**34 - 1))) * _signed(_MIX_1, 64)
    x_N = (x_N ^ ((x_N >> 27) & (2**37 - 1))) * _signed(_MIX_2, 64)
    return x_N ^ ((x_N >> 31) & (2**33 - 1))


def stream_key(seed: int, stream: int) -> int:
    """The key of a noise stream of a run, as a signed 64-bit integer. Stream 1 is the decoder of an encoder-decoder
    model, and stream 0 everything else."""
    return _signed(splitmix64(splitmix64(seed & (2**64 - 1)) ^ stream), 64)


def token_keys(input_ids_BL: Tensor, layout: Layout, key: int, step: Tensor) -> Tensor:
    """Compute the key of each token's noise.

    input_ids_BL: integer token ids.
    key: the result of `stream_key`.
    step: the optimiser step, as a 0-d int64 tensor, so that a compiled graph does not depend on its value.
    Returns int64 (B, L).
    """
    token_BL = _splitmix64(_splitmix64(input_ids_BL.to(torch.int64)) ^ layout.position_BL)
    # A sum does not depend on the order of its terms, so the row, its offset and its neighbours have no influence.
    example_BL = total_per_example(torch.where(layout.real_BL, token_BL, 0), layout.example_BL)
    run = _splitmix64(step ^ key)
    return _splitmix64(_splitmix64(example_BL ^ run) ^ layout.position_BL)


def token_scales(layout: Layout, dim: int, alpha: Tensor | float, *, padded_length: bool = False) -> Tensor:
    """Compute alpha / sqrt(L d) (arXiv 2310.05914, Algorithm 1) for each token, and 0 for padding.

    alpha: a number, or a 0-d float32 tensor, so that a compiled graph does not depend on its value.
    padded_length: use the width of the row as L instead of the length of the token's example.
    Returns float32 (B, L).
    """
    length_BL = torch.full_like(layout.length_BL, layout.length_BL.shape[-1]) if padded_length else layout.length_BL
    # rsqrt instead of a division gives the same bits in eager mode and in a compiled graph.
    scale_BL = (length_BL.clamp(min=1) * dim).to(torch.float32).rsqrt() * alpha
    return torch.where(layout.real_BL, scale_BL, 0.0)


def keyed(input_ids_BL: Tensor, layout: Layout, draw: Draw) -> tuple[Tensor, Tensor, Tensor | None]:
    """Compute `token_keys` and `token_scales`. If `draw.energy` is given, also the numbers of sequences and of tokens
    and the expected energy of the noise, float32 (3,). A kernel does it in one pass over the rows, if there is one."""
    arranged = (layout.real_BL, layout.example_BL, layout.position_BL, layout.length_BL)
    ids_BL = input_ids_BL.to(torch.int64)
    dtypes = tuple(tensor.dtype for tensor in arranged)
    found = None
    if dtypes == _LAYOUT and all(tensor.shape == ids_BL.shape for tensor in arranged):
        key = key_for(ids_BL, *arranged, draw.step, draw.alpha, plain=plainly_keyed)
        found = None if key is None else key(ids_BL, arranged, draw)
    return found or plainly_keyed(ids_BL, arranged, draw)


_LAYOUT = (torch.bool, torch.int64, torch.int64, torch.int64)


def plainly_keyed(ids_BL: Tensor, arranged: Arranged, draw: Draw) -> tuple[Tensor, Tensor, Tensor | None]:
    """The plain path of `kernels.Key`."""
    layout = Layout(*arranged)
    keys_BL = token_keys(ids_BL, layout, draw.key, draw.step)
    scales_BL = token_scales(layout, draw.dim, draw.alpha, padded_length=draw.padded_length)
    if draw.energy is None:
        return keys_BL, scales_BL, None
    sequences = (layout.real_BL & (layout.position_BL == 0)).sum()
    expected = scales_BL.square().sum() * draw.energy
    return keys_BL, scales_BL, torch.stack((sequences, layout.real_BL.sum(), expected))


def channel_codes(channel_D: Tensor) -> Tensor:
    """Compute the code of each channel in the draw: int32 (D,) from the channel numbers, int32 (D,).

    The channel numbers differ too little: after two rounds of mixing, the lower bits of many channels vary less than
    random bits (docs/quality.md).
    """
    # The exclusive or comes first, because TorchInductor treats the product of an arange as an index and overflows.
    code_D = (channel_D ^ _signed(_CHANNEL_1, 32)) * _signed(_CHANNEL_0, 32)
    return code_D ^ (code_D >> 15)


def channel_bits(keys_N: Tensor, code_D: Tensor) -> Tensor:
    """Draw 32 random bits for each channel of each token: int32 (N, D) from keys, int64 (N,), and `channel_codes`."""
    low_N = keys_N.to(torch.int32).unsqueeze(-1)
    high_N = (keys_N >> 32).to(torch.int32).unsqueeze(-1)
    bits_ND = code_D ^ low_N
    bits_ND *= _signed(_CHANNEL_1, 32)
    bits_ND ^= bits_ND >> 15
    bits_ND ^= high_N
    bits_ND *= _signed(_CHANNEL_2, 32)
    return bits_ND


def noise(keys_N: Tensor, scales_N: Tensor, dim: int, noise_type: NoiseType) -> Tensor:
    """Compute the noise: float32 (N, D) from `token_keys`, int64 (N,), and `token_scales`, float32 (N,)."""
    return _noise(keys_N, scales_N * noise_type.unit, _all_codes(dim, keys_N.device), noise_type)


def _all_codes(dim: int, device: torch.device) -> Tensor:
    return channel_codes(torch.arange(dim, dtype=torch.int32, device=device))


@lru_cache(maxsize=16)
def _kept_codes(dim: int, device: torch.device) -> Tensor:
    """`_all_codes`, the same tensor for all calls of eager mode."""
    with torch.inference_mode(False):
        return _all_codes(dim, device)


def _noise(keys_N: Tensor, unit_scales_N: Tensor, code_D: Tensor, noise_type: NoiseType) -> Tensor:
    return noise_type.draw(channel_bits(keys_N, code_D)).mul_(unit_scales_N.unsqueeze(-1))


def add_noise(
    x_ND: Tensor,
    keys_N: Tensor,
    scales_N: Tensor,
    noise_type: NoiseType,
    code_D: Tensor | None = None,
    energy_3: Tensor | None = None,
) -> Tensor:
    """Return x + noise, added in float32 and rounded once to x's dtype. Differentiable; for compiled graphs, where it
    becomes one fused loop.

    code_D: `channel_codes` of the channels in x; default: all channels of the embedding.
    energy_3: float32 (3,), to which the function adds the `energy` of the noise.
    """
    if code_D is None:
        code_D = _all_codes(x_ND.shape[-1], x_ND.device)
    noise_ND = _noise(keys_N, scales_N * noise_type.unit, code_D, noise_type)
    if energy_3 is not None:
        energy_3 += energy(noise_ND, x_ND.detach(), scales_N, noise_type)
    return (x_ND + noise_ND).to(x_ND.dtype)


@torch.no_grad()
def add_noise_(
    x_ND: Tensor,
    keys_N: Tensor,
    scales_N: Tensor,
    noise_type: NoiseType,
    code_D: Tensor | None = None,
    energy_3: Tensor | None = None,
) -> Tensor:
    """Add the noise to x_ND in place, invisible to autograd (the gradient is the identity), and return x_ND.

    A kernel does it in one pass; without one it is done chunk by chunk, so that the temporary tensors stay small. x_ND
    must be contiguous. The other arguments are those of `add_noise`.
    """
    if code_D is None:
        # What is made while a CUDA graph is captured belongs to the graph.
        is_kept = has_memory(x_ND) and not is_capturing(x_ND.device)
        code_D = (_kept_codes if is_kept else _all_codes)(x_ND.shape[-1], x_ND.device)

    def plain(x_ND: Tensor, keys_N: Tensor, scales_N: Tensor, code_D: Tensor, measures: bool) -> Tensor | None:
        return _add_in_chunks(x_ND, keys_N, scales_N, code_D, noise_type, measures)

    add = kernel_for(x_ND, noise_type.name, noise_type.kernel, noise_type.unit, noise_type.rms**2, plain) or plain
    found_3 = add(x_ND, keys_N, scales_N, code_D, energy_3 is not None)
    if energy_3 is not None and found_3 is not None:
        energy_3 += found_3
    return x_ND


def _add_in_chunks(
    x_ND: Tensor, keys_N: Tensor, scales_N: Tensor, code_D: Tensor, noise_type: NoiseType, measures: bool
) -> Tensor | None:
    """The plain path of `kernels.Add`."""
    chunk = max(1, _elements_of_chunk(x_ND) // x_ND.shape[-1])
    norm_2N = torch.empty(2, len(x_ND), device=x_ND.device) if measures else None
    unit_scales_N = scales_N if noise_type.unit == 1 else scales_N * noise_type.unit
    for first in range(0, x_ND.shape[0], chunk):
        rows = slice(first, first + chunk)
        noise_ND = _noise(keys_N[rows], unit_scales_N[rows], code_D, noise_type)
        if norm_2N is not None:
            norm_2N[0, rows], norm_2N[1, rows] = _norms(noise_ND, x_ND[rows])
        x_ND[rows].add_(noise_ND)
        del noise_ND  # before the next is drawn
    return None if norm_2N is None else _energy(norm_2N[0], norm_2N[1], scales_N, x_ND.shape[-1], noise_type)


def _elements_of_chunk(x_ND: Tensor) -> int:
    if x_ND.device.type == "cpu":
        return _CHUNK_PER_THREAD * torch.get_num_threads()
    return max(_CHUNK_ON_ACCELERATOR, x_ND.nbytes // _SCRATCH)


def energy(noise_ND: Tensor, x_ND: Tensor, scales_N: Tensor, noise_type: NoiseType) -> Tensor:
    """Sums of squares: of the noise, of what it is on average, and of the x that have noise. Returns float32 (3,)."""
    return _energy(*_norms(noise_ND, x_ND), scales_N, x_ND.shape[-1], noise_type)


def _norms(noise_ND: Tensor, x_ND: Tensor) -> tuple[Tensor, Tensor]:
    """Token by token, which a compiler does in the loop that makes the noise."""
    x_N = torch.linalg.vector_norm(x_ND, dim=-1, dtype=_at_least_float32(x_ND.dtype))
    return torch.linalg.vector_norm(noise_ND, dim=-1), x_N


def _energy(noise_N: Tensor, x_N: Tensor, scales_N: Tensor, dim: int, noise_type: NoiseType) -> Tensor:
    """`energy` from the norms."""
    expected = expected_energy(scales_N, dim, noise_type)
    signal = torch.where(scales_N > 0, x_N.square().to(torch.float32), 0.0).sum()
    return torch.stack((noise_N.square().sum(), expected, signal))


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def expected_energy(scales_N: Tensor, dim: int, noise_type: NoiseType) -> Tensor:
    """Compute the expected sum of squares of the noise of these tokens. Returns a float32 scalar."""
    return scales_N.square().sum() * (dim * noise_type.rms**2)
