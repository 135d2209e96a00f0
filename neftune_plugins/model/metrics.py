"""The metrics of the noise: summed up in the forward passes, read at the logging steps."""

import math

import torch
from torch import Tensor


class Measurements:
    """Sums over the noised forward passes since the last `take`.

    The sums are a tensor on the device of the embeddings, so that a forward pass neither waits for this device nor
    breaks a compiled graph.
    """

    def __init__(self) -> None:
        self._tokens_3 = torch.zeros(3)
        self._energy_3 = torch.zeros(3)

    @property
    def sums(self) -> tuple[Tensor, Tensor]:
        return self._tokens_3, self._energy_3

    def follow(self, device: torch.device) -> None:
        """Let the sums be on this device."""
        if self._energy_3.device != device:
            self._tokens_3, self._energy_3 = self._tokens_3.to(device), self._energy_3.to(device)

    def energy(self, like: Tensor, scale: float) -> Tensor:
        """Where to add the `noise.energy` of the part of the batch that this process noises.

        like: a tensor on the device of the embeddings. scale: of the energies, which `add` then multiplies by it.
        """
        self.follow(like.device)
        return self._energy_3 if scale == 1 else torch.zeros(3, device=like.device)

    def add(self, tokens_3: Tensor, energy_3: Tensor, scale: float) -> None:
        """Add a forward pass.

        tokens_3: the third value of `noise.keyed` for the whole batch. energy_3: what `energy` gave for it.
        """
        self._tokens_3 += tokens_3
        if scale != 1:
            self._energy_3 += energy_3 * scale

    def take(self) -> dict[str, float]:
        """Return the metrics by name, empty if nothing was noised, and reset the sums. Waits for the device."""
        sums = torch.cat((self._tokens_3, self._energy_3)).tolist()
        sequences, tokens, expected, held, held_expected, signal = sums
        self._tokens_3.zero_()
        self._energy_3.zero_()
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
