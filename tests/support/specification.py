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
    is_time: bool = False,
    offsets: Collection[int] | None = None,
    numbers: Sequence[int] | None = None,
    labels: Sequence[int] | None = None,
    pad_id: int | None = None,
    eos_ids: Collection[int] = (),
) -> list[list[int]]:
    """The examples of one row of L columns, each as the columns of its tokens, if the row can be read.

    mask: 0/1 or segment numbers (L,). visible: of a 4-D mask, whether column i sees column j (L, L). positions: (L,),
    with `is_time` the first row of M-RoPE's. offsets: those of `cu_seq_lens_q` from the row's first column on, some
    beyond it. numbers: of `seq_idx`.
    """
    real = []
    for column in range(len(ids)):
        real.append(
            (mask is None or mask[column] > 0)
            and (visible is None or visible[column][column])
            and (positions is None or positions[column] >= 0)
            and (offsets is None or column < max(offsets))
            and (numbers is None or numbers[column] >= 0)
        )
    found: list[list[int]] = []
    previous = first = None
    for column in range(len(ids)):
        if not real[column]:
            continue
        if previous is None or first is None:
            previous, first, starts = column, column, True
        else:
            falls = positions is not None and positions[column] < positions[previous]
            gap = 1 if is_time else column - previous  # hidden tokens may have had the positions before
            stays = positions is not None and positions[column] == positions[previous]
            starts = (
                (mask is not None and mask[column] != mask[previous])
                or (visible is not None and not visible[column][previous])
                or (falls and positions is not None and positions[column] - positions[first] < gap)
                or (stays and not is_time)
                or (offsets is not None and column in offsets)
                or (numbers is not None and numbers[column] != numbers[previous])
            )
        if starts:
            found.append([])
        found[-1].append(column)
        previous = column
    if pad_id is None:
        return found
    if mask is None and visible is None:
        has_positions = positions is not None or offsets is not None or numbers is not None
        zeros = [has_positions and ids[i] == 0 and (labels is None or labels[i] != 0) for i in range(len(ids))]
        filler = [ids[i] == pad_id or zeros[i] for i in range(len(ids))]
        tail = len(ids)
        while tail > 0 and real[tail - 1] and filler[tail - 1]:
            tail -= 1
        alone = [columns for columns in found if columns[0] >= tail]
        if alone or offsets is not None or numbers is not None:
            found = [columns for columns in found if columns not in alone]
        elif found and tail < len(ids):
            kept = tail + 1 if ids[tail] == pad_id and pad_id in eos_ids else tail
            found[-1] = [column for column in found[-1] if column < kept]
    return [columns for columns in found if any(ids[column] != pad_id for column in columns)]


def examples_of(batch: Mapping[str, Any]) -> list[list[list[int]]]:
    """`examples` of each row of a batch, whose tensors have the names of a model's arguments."""
    ids = batch["input_ids"].tolist()
    width = len(ids[0]) if ids else 0

    def rows(name: str) -> list[Any]:
        """What each row has of it: one for all, one for each, or none."""
        value = batch.get(name)
        if value is None:
            return [None] * len(ids)
        if name == "position_ids":
            value = value[0] if value.dim() == 3 else value[None] if value.dim() == 1 else value
        return value.tolist() * (len(ids) if len(value) == 1 else 1)

    mask = batch.get("attention_mask")
    is_additive = mask is not None and mask.dtype.is_floating_point and not _of_tokens(mask, width).gt(0).any()
    positions = batch.get("position_ids")
    names = ("attention_mask", "position_ids", "seq_idx", "labels")
    found = []
    for i, (row, masked, placed, numbers, labels) in enumerate(zip(ids, *map(rows, names), strict=True)):
        told: dict[str, Any] = {}
        if masked is not None and isinstance(masked[0], list):
            lines = [line[-width:] for line in masked[0]]
            lines = lines * width if len(lines) == 1 else lines[-width:]
            told["visible"] = [[_is_visible(value, is_additive) for value in line] for line in lines]
            if len(masked[0]) == 1 and width > 1:  # says what is padding, and no more
                told = {"mask": [float(seen) for seen in told["visible"][0]]}
        elif masked is not None:
            values = masked[-width:]
            told["mask"] = [float(_is_visible(value, True)) for value in values] if is_additive else values
        if batch.get("cu_seq_lens_q") is not None:
            told["offsets"] = {int(offset) - i * width for offset in batch["cu_seq_lens_q"]}
        told |= {"positions": placed, "is_time": positions is not None and positions.dim() == 3, "numbers": numbers}
        told |= {"labels": labels, "pad_id": batch.get("pad_token_id"), "eos_ids": batch.get("eos_token_ids", ())}
        found.append(examples(row, **told))
    return found


def _of_tokens(mask: Any, width: int) -> Any:
    """What a mask says of tokens, rather than of what one sees of another."""
    mask = mask[..., -width:] if width else mask[..., :0]
    return mask.diagonal(dim1=-2, dim2=-1) if mask.dim() == 4 and mask.shape[-2] == width > 1 else mask


def _is_visible(value: float | bool, is_additive: bool) -> bool:
    """Of a mask that is additive, or else of 0 and 1 or of segments."""
    return value > -1000 if is_additive else value > 0
