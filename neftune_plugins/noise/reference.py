"""Algorithm 1 of the NEFTune paper, in its own symbols: what the fast path is tested against.

Jain et al., "NEFTune: Noisy Embeddings Improve Instruction Finetuning", arXiv 2310.05914, section 2 and Algorithm 1;
footnote 1 makes L the length of each sequence of the batch, without its padding. Nothing in the package imports this.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def noisy_embeddings(X_emb: Tensor, lengths: Sequence[int], alpha: float, generator: torch.Generator) -> Tensor:
    """X_emb' = X_emb + (alpha / sqrt(L d)) eps with eps ~ Uniform(-1, 1), for a right-padded batch.

    X_emb: (B, L_max, d) embeddings.
    lengths: L of each of the B sequences.
    Returns a new tensor; padding is as it was.
    """
    B, _, d = X_emb.shape
    X_noisy = X_emb.clone()
    for b in range(B):
        L = lengths[b]
        eps = torch.rand(L, d, generator=generator) * 2 - 1
        X_noisy[b, :L] = X_emb[b, :L] + (alpha / math.sqrt(L * d)) * eps
    return X_noisy
