"""Triangular noise: the sum of two uniform draws, most of it near zero. neftune_noise_type: triangular"""

import torch
from torch import Tensor

from neftune_plugins import NoiseType, hookimpl


def draw(bits: Tensor) -> Tensor:
    """Two halves of the 24 random bits, each uniform in [0, 4096); their sum, centred."""
    return (((bits >> 8) & 0xFFF) + ((bits >> 20) & 0xFFF) - 4095).to(torch.float32)


@hookimpl
def neftune_noise_types() -> list[NoiseType]:
    return [NoiseType("triangular", draw, rms=6**-0.5, unit=2.0**-12, summary="triangular in (-1, 1)")]
