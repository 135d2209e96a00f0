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


class ToyStack(nn.Module):
    """An encoder or decoder that owns an embedding; `entered` is what came out of it."""

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        self.embed_tokens = embedding
        self.entered: Tensor | None = None

    def get_input_embeddings(self) -> nn.Module:
        return self.embed_tokens

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        self.entered = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        return self.entered


class ToySeq2Seq(nn.Module):
    """An encoder and a decoder; `tied` as T5 has them: twins of a shared embedding that nobody calls."""

    def __init__(self, *, tied: bool = True, vocabulary: int = 97, dim: int = 48) -> None:
        super().__init__()
        self.config = SimpleNamespace(pad_token_id=PAD, is_encoder_decoder=True)
        self.encoder = ToyStack(nn.Embedding(vocabulary, dim))
        self.decoder = ToyStack(nn.Embedding(vocabulary, dim))
        self.shared = nn.Embedding(vocabulary, dim) if tied else self.encoder.embed_tokens
        if tied:
            self.encoder.embed_tokens.weight = self.decoder.embed_tokens.weight = self.shared.weight

    def get_input_embeddings(self) -> nn.Module:
        return self.shared

    def get_decoder(self) -> nn.Module:
        return self.decoder

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        encoder_outputs: Tensor | None = None,
    ) -> Tensor:
        if encoder_outputs is None:
            encoder_outputs = self.encoder(input_ids, attention_mask, inputs_embeds)
        return self.decoder(decoder_input_ids, None, decoder_inputs_embeds).mean() + encoder_outputs.mean()


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


def emptied(model: nn.Module, device: str) -> nn.Module:
    """The model with new parameters and buffers of that device, shared where the old ones were. (`Module.to` cannot
    move tensors without values.)"""
    made: dict[int, Tensor] = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is None:
                    continue
                if id(tensor) not in made:
                    empty = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
                    is_parameter = isinstance(tensor, nn.Parameter)
                    made[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if is_parameter else empty
                tensors[name] = made[id(tensor)]
    return model
