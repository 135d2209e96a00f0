"""Triangular noise: the sum of two uniform draws, most of it near zero. neftune_noise_type: triangular"""

import torch
from torch import Tensor

from neftune_plugins import NoiseType, hookimpl


def draw(bits: Tensor) -> Tensor:
    """Two 16-bit halves of the 32 random bits, each uniform in [0, 65536); their sum, centred."""
    return ((bits & 0xFFFF) + ((bits >> 16) & 0xFFFF) - 65535).to(torch.float32)


@hookimpl
def neftune_noise_types() -> list[NoiseType]:
    return [NoiseType("triangular", draw, rms=6**-0.5, unit=2.0**-16, summary="triangular in (-1, 1)")]
