"""Measure what an audited step costs: the time of training steps with the audit in each over that of steps without.

    python -m benchmarks.audit

Steps of both kinds alternate, so that a slower moment of the machine meets both. A run has one audited step of 100.
"""

import argparse
import statistics
import time

import torch
from torch import nn

from neftune_plugins import Handle, NoiseConfig, install
from neftune_plugins.model.audit import EVERY


class Model(nn.Module):
    """A small transformer of torch alone."""

    def __init__(self, width: int, layers: int, vocabulary: int) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(vocabulary, width)
        layer = nn.TransformerEncoderLayer(width, width // 64, 4 * width, batch_first=True, dropout=0.0)
        self.layers = nn.TransformerEncoder(layer, layers)
        self.head = nn.Linear(width, vocabulary)

    def get_input_embeddings(self) -> nn.Module:
        return self.embed_tokens

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        return self.head(self.layers(self.embed_tokens(input_ids)))


def seconds(handle: Handle, step: int, ids: torch.Tensor) -> float:
    handle.step = step
    begun = time.perf_counter()
    handle.model(ids, attention_mask=torch.ones_like(ids)).sum().backward()
    handle.metrics()
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    ids = torch.randint(1, 1000, (4, options.tokens))
    ratios = []
    with install(Model(options.width, options.layers, 1000).train(), NoiseConfig(alpha=5, audit="stop")) as handle:
        for number in range(options.rounds + 1):
            audited = seconds(handle, number * EVERY, ids)
            plain = seconds(handle, number * EVERY + 1, ids)
            if number:  # the first pays for imports and memory
                ratios.append(audited / plain)
    middle = statistics.median(ratios)
    low, _, high = statistics.quantiles(ratios, n=4)
    print(f"audited over plain step, {options.rounds} pairs: {middle:.4f} (quartiles {low:.4f} to {high:.4f})")
    print(f"one step of {EVERY} is audited: {(middle - 1) / EVERY:.4%} of a run")


if __name__ == "__main__":
    main()
