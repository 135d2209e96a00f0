"""The metrics of the noise: summed up in the forward passes, read at the logging steps."""

import math

import torch
from torch import Tensor

from neftune_plugins.noise.layout import Layout


class Measurements:
    """Sums over the noised forward passes since the last `take`.

    The sums are a tensor on the device of the embeddings, so that a forward pass neither waits for this device nor
    breaks a compiled graph.
    """

    def __init__(self) -> None:
        self._sums = torch.zeros(6)

    def add(self, layout: Layout, expected: Tensor, energy_3: Tensor) -> None:
        """Add a forward pass.

        layout: the examples of the batch.
        expected: `noise.expected_energy` of the batch.
        energy_3: `noise.energy` of the part of the batch that this process noised.
        """
        if self._sums.device != energy_3.device:
            self._sums = self._sums.to(energy_3.device)
        sequences = (layout.real_BL & (layout.position_BL == 0)).sum()
        counts_2 = torch.stack((sequences, layout.real_BL.sum()))
        self._sums += torch.cat((counts_2, expected.unsqueeze(0), energy_3))

    def take(self) -> dict[str, float]:
        """Return the metrics by name, empty if nothing was noised, and reset the sums. Waits for the device."""
        sequences, tokens, expected, held, held_expected, signal = self._sums.tolist()
        self._sums.zero_()
        if not expected:
            return {}
        ratio = held / held_expected if held_expected else math.nan
        return {
            "neftune/noise_norm": math.sqrt(expected / sequences * ratio),
            "neftune/noise_norm_expected": math.sqrt(expected / sequences),
            "neftune/signal_to_noise_db": 10 * math.log10(signal / held) if signal and held else math.nan,
            "neftune/sequences": sequences,
            "neftune/mean_length": tokens / sequences,
        }
