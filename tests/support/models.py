"""Models and batches for tests of the core, of torch alone."""

from types import SimpleNamespace

import torch
from torch import Tensor, nn

PAD = 0


class ToyModel(nn.Module):
    """An embedding, a mean over the tokens before, and a tied output layer: the least that has a transformer's
    interface. Forward gives (B, L, vocabulary) logits; `entered` is what came out of the embedding."""

    def __init__(self, vocabulary: int = 97, dim: int = 48) -> None:
        super().__init__()
        self.config = SimpleNamespace(pad_token_id=PAD)
        self.embed_tokens = nn.Embedding(vocabulary, dim)
        self.lm_head = nn.Linear(dim, vocabulary, bias=False)
        self.lm_head.weight = self.embed_tokens.weight
        self.entered: Tensor | None = None

    def get_input_embeddings(self) -> nn.Module:
        return self.embed_tokens

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: object,
    ) -> Tensor:
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        self.entered = x
        x = torch.tanh(x).cumsum(1) / torch.arange(1, x.shape[1] + 1, device=x.device)[:, None]
        return self.lm_head(x)

    def noise(self, input_ids: Tensor, **kwargs: object) -> Tensor:
        """What enters the model beyond the embedding in one forward: (B, L, D)."""
        self(input_ids, **kwargs)
        assert self.entered is not None
        return (self.entered - nn.functional.embedding(input_ids, self.embed_tokens.weight)).detach()


def examples(lengths: list[int], *, vocabulary: int = 97, seed: int = 0) -> list[list[int]]:
    """Random examples of these lengths, without the padding id."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(1, vocabulary, (length,), generator=generator).tolist() for length in lengths]


def padded(rows: list[list[int]], *, side: str = "right", width: int | None = None) -> tuple[Tensor, Tensor]:
    """(B, L) ids and 0/1 mask of the examples, one a row."""
    width = width or max(map(len, rows))
    ids, mask = torch.full((len(rows), width), PAD), torch.zeros(len(rows), width, dtype=torch.int64)
    for i, row in enumerate(rows):
        columns = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
        ids[i, columns] = torch.tensor(row)
        mask[i, columns] = 1
    return ids, mask
