"""Algorithm 1 of the NEFTune paper in the paper's symbols. The tests compare the fast implementation with it.

Jain et al., "NEFTune: Noisy Embeddings Improve Instruction Finetuning", arXiv 2310.05914, section 2 and Algorithm 1.
Footnote 1 defines L as the length of each sequence of the batch without its padding. No module of the package imports
this one.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def noisy_embeddings(X_emb: Tensor, lengths: Sequence[int], alpha: float, generator: torch.Generator) -> Tensor:
    """X_emb' = X_emb + (alpha / sqrt(L d)) eps with eps ~ Uniform(-1, 1), for a right-padded batch.

    X_emb: (B, L_max, d) embeddings.
    lengths: L of each of the B sequences.
    Returns a new tensor, in which the padding is unchanged.
    """
    B, _, d = X_emb.shape
    X_noisy = X_emb.clone()
    for b in range(B):
        L = lengths[b]
        eps = torch.rand(L, d, generator=generator) * 2 - 1
        X_noisy[b, :L] = X_emb[b, :L] + (alpha / math.sqrt(L * d)) * eps
    return X_noisy
