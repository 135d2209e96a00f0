"""docs/noise.md in plain Python integers, one token and one channel at a time; shares no code with the package."""

import math
import struct
from collections.abc import Collection, Mapping, Sequence
from statistics import NormalDist
from typing import Any

MASK_64 = 2**64 - 1
MASK_32 = 2**32 - 1


def mix(x: int) -> int:
    z = (x + 0x9E3779B97F4A7C15) & MASK_64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK_64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK_64
    return z ^ (z >> 31)


def shifted(h: int) -> int:
    """h ^ (h >> 15), where the shift is arithmetic."""
    return h ^ (h >> 15) ^ (0xFFFE0000 if h >> 31 else 0)


def float32(x: float) -> float:
    return struct.unpack("<f", struct.pack("<f", x))[0]


def draw(kind: str, bits: int) -> float:
    signed = bits - 2**32 if bits >= 2**31 else bits
    k = signed >> 8
    if kind == "uniform":
        return k / 2**23
    if kind == "gaussian":
        return float32(NormalDist().inv_cdf(((k + 0.5) / 2**23 + 1) / 2))
    assert kind == "bernoulli"
    return -1.0 if signed < 0 else 1.0


def alpha_at(schedule: str, alpha: float, step: int, steps: int) -> float:
    """Alpha of one step of a run of `steps`."""
    progress = step / steps if step < steps else 1.0
    factor = {"constant": 1.0, "linear": 1 - progress, "cosine": (1 + math.cos(math.pi * progress)) / 2}[schedule]
    return float32(alpha * factor)


def keys(ids: Sequence[int], *, seed: int, step: int, stream: int = 0) -> list[int]:
    """The key of each token of one example."""
    example = sum(mix(mix(token) ^ position) for position, token in enumerate(ids)) & MASK_64
    run = mix(mix(mix(seed) ^ stream) ^ step)
    return [mix(mix(example ^ run) ^ position) for position in range(len(ids))]


def channel_bits(key: int, channel: int) -> int:
    """The 32 bits of one channel of a token."""
    low, high = key & MASK_32, key >> 32
    code = shifted(((channel ^ 0x21F0AAAD) * 0x7FEB352D) & MASK_32)
    h = shifted(((code ^ low) * 0x21F0AAAD) & MASK_32)
    return ((h ^ high) * 0xD35A2D97) & MASK_32


def scale(length: int, dim: int, alpha: float) -> float:
    """alpha / sqrt(L d), each operation rounded to float32 as the specification says."""
    return float32(float32(1 / float32(math.sqrt(float32(length * dim)))) * float32(alpha))


def noise(
    ids: list[int], dim: int, *, alpha: float, seed: int, step: int, stream: int = 0, kind: str = "uniform"
) -> list[list[float]]:
    """The noise of one example: a list of `dim` float32 values for each of its tokens."""
    factor = scale(len(ids), dim, alpha)
    values = []
    for key in keys(ids, seed=seed, step=step, stream=stream):
        values.append([float32(draw(kind, channel_bits(key, channel)) * factor) for channel in range(dim)])
    return values


def examples(
    ids: Sequence[int],
    *,
    mask: Sequence[float] | None = None,
    visible: Sequence[Sequence[bool]] | None = None,
    positions: Sequence[int] | None = None,
    ends: Collection[int] | None = None,
    pad_id: int | None = None,
    is_decoder: bool = False,
) -> list[list[int]]:
    """The examples of one row of L columns, each as the columns of its tokens.

    mask: 0/1 or segment numbers (L,). visible: of a 4-D mask, whether column i sees column j (L, L). positions: (L,).
    ends: of `cu_seq_lens_q`. is_decoder: trailing padding is told by its id, where no mask is given.
    """
    found: list[list[int]] = []
    previous = None
    width = len(ids) if ends is None else max(ends)
    for column in range(width):
        if mask is not None and mask[column] <= 0:
            continue
        if visible is not None and not visible[column][column]:
            continue
        alone = mask is None and visible is None
        if alone and is_decoder and pad_id is not None and all(token == pad_id for token in ids[column:]):
            continue
        starts = (
            previous is None
            or (mask is not None and mask[column] != mask[previous])
            or (visible is not None and not visible[column][column - 1])
            or (positions is not None and positions[column] <= positions[previous])
            or (ends is not None and column in ends)
        )
        if starts:
            found.append([])
        found[-1].append(column)
        previous = column
    return [columns for columns in found if pad_id is None or any(ids[column] != pad_id for column in columns)]


def examples_of(batch: Mapping[str, Any]) -> list[list[list[int]]]:
    """`examples` of each row of a batch, whose tensors have the names of a model's arguments."""
    ids = batch["input_ids"].tolist()

    def rows(name: str) -> list[Any]:
        """What each row has of it: one for all, one for each, or none."""
        value = batch.get(name)
        if value is None or value.dim() == 3:  # positions of images
            return [None] * len(ids)
        return value.tolist() * (len(ids) if len(value) == 1 else 1)

    found = []
    for row, mask, positions in zip(ids, rows("attention_mask"), rows("position_ids"), strict=True):
        told: dict[str, Any] = {}
        if mask is not None and isinstance(mask[0], list):
            told["visible"] = [[_is_visible(value) for value in line[-len(row) :]] for line in mask[0][-len(row) :]]
        elif mask is not None:
            told["mask"] = mask[-len(row) :]
        if positions is not None and len(positions) == len(row):
            told["positions"] = positions
        if batch.get("cu_seq_lens_q") is not None:
            told["ends"] = set(batch["cu_seq_lens_q"].tolist())
        found.append(examples(row, **told, pad_id=batch.get("pad_token_id"), is_decoder=batch.get("is_decoder", False)))
    return found


def _is_visible(value: float | bool) -> bool:
    """In a 4-D mask, which is additive if it is of floats."""
    return value > -1000 if isinstance(value, float) else bool(value)
