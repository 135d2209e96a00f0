"""docs/noise.md in plain integers, for a few tokens and channels: what the noise should be, by another way.

It shares no code with `neftune_plugins.noise`, which draws whole batches.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist

_64, _32 = 2**64 - 1, 2**32 - 1

TYPES = ("uniform", "gaussian", "bernoulli")
"""The types of which the values are specified."""

SPREAD = {"uniform": 0.45, "gaussian": 0.71, "bernoulli": 0.0}
"""Standard deviation of the root mean square of n values, as a share of it, times sqrt(n)."""


def noise(
    ids: Sequence[int],
    positions: Sequence[int],
    channels: int,
    *,
    kind: str,
    seed: int,
    stream: int,
    step: int,
    factor: float,
) -> list[list[float]]:
    """The noise of these positions of one example in its first channels.

    ids: all of its token ids. factor: alpha / sqrt(L d).
    """
    example = sum(_mix(_mix(token) ^ place) for place, token in enumerate(ids)) & _64
    run = _mix(_mix(_mix(seed) ^ stream) ^ (step & _64))
    keys = [_mix(_mix(example ^ run) ^ place) for place in positions]
    return [[factor * _value(kind, _bits(key, channel)) for channel in range(channels)] for key in keys]


def alpha_at(alpha: float, schedule: str, step: int, steps: int | None) -> float:
    """Alpha of a step, of `steps`."""
    done = min(1.0, step / steps) if steps else 0.0
    return alpha * {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[schedule]


def _mix(x: int) -> int:
    x = (x + 0x9E3779B97F4A7C15) & _64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _64
    return x ^ (x >> 31)


def _bits(key: int, channel: int) -> int:
    code = _fold(((channel ^ 0x21F0AAAD) * 0x7FEB352D) & _32)
    bits = _fold(((code ^ (key & _32)) * 0x21F0AAAD) & _32)
    return ((bits ^ (key >> 32)) * 0xD35A2D97) & _32


def _fold(bits: int) -> int:
    """bits ^ (bits >> 15) of a signed number."""
    signed = bits - 2**32 if bits & 2**31 else bits
    return (signed ^ (signed >> 15)) & _32


def _value(kind: str, bits: int) -> float:
    signed = bits - 2**32 if bits & 2**31 else bits
    if kind == "bernoulli":
        return -1.0 if signed < 0 else 1.0
    if kind == "gaussian":
        return NormalDist().inv_cdf((((signed >> 8) + 0.5) / 2**23 + 1) / 2)
    return (signed >> 8) / 2**23
