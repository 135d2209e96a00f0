"""Models of torch alone for the instrument in `neftune_plugins.proof`: a norm uses what they look up."""

from collections.abc import Callable
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from tests.support.models import PAD

VOCABULARY = 97
DIM = 64


class Normed(nn.Module):
    """An embedding, positions that are added, a norm, dropout and a head. `factor` multiplies the embeddings."""

    def __init__(self, *, factor: float = 1.0, embedding: nn.Module | None = None) -> None:
        super().__init__()
        self.config = SimpleNamespace(pad_token_id=PAD)
        self.factor = factor
        self.embed_tokens = nn.Embedding(VOCABULARY, DIM) if embedding is None else embedding
        self.places = nn.Embedding(200, DIM)
        self.norm = nn.LayerNorm(DIM)
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Linear(DIM, VOCABULARY)

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
        x = x * self.factor + self.places(torch.arange(x.shape[1], device=x.device)[None])
        return self.head(self.dropout(self.norm(x)))


class Scaled(nn.Module):
    """An adapter around an embedding: multiplies its output, as DoRA does."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.base_layer = nn.Embedding(VOCABULARY, DIM)
        self.factor = factor

    @property
    def weight(self) -> Tensor:
        return self.base_layer.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.base_layer(ids) * self.factor


class Stack(nn.Module):
    """An encoder or decoder."""

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(VOCABULARY, DIM)
        self.embed_tokens.weight = embedding.weight
        self.dropout = nn.Dropout(0.1)
        self.norm = nn.LayerNorm(DIM)

    def get_input_embeddings(self) -> nn.Module:
        return self.embed_tokens

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.norm(self.dropout(self.embed_tokens(input_ids)))


class EncoderDecoder(nn.Module):
    """Two stacks with twins of one embedding, as T5 has."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(pad_token_id=PAD, is_encoder_decoder=True)
        self.shared = nn.Embedding(VOCABULARY, DIM)
        self.encoder, self.decoder = Stack(self.shared), Stack(self.shared)

    def get_input_embeddings(self) -> nn.Module:
        return self.shared

    def get_decoder(self) -> nn.Module:
        return self.decoder

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
    ) -> Tensor:
        encoded = self.encoder(input_ids, attention_mask=attention_mask)
        return self.decoder(decoder_input_ids, attention_mask=decoder_attention_mask).mean() + encoded.mean()


def hooked(model: nn.Module, noise: Callable[[Tensor], Tensor]) -> nn.Module:
    """The model, with this noise on its embedding in training mode, as the frameworks' own hook adds it."""

    def hook(module: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
        return output + noise(output) if module.training else output

    model.get_input_embeddings().register_forward_hook(hook)  # type: ignore[operator, union-attr]
    return model
