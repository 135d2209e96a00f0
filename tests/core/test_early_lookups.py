"""Embeddings that are looked up before the model is called: as they are, or with features merged in."""

import pytest
import torch
from torch import nn

from neftune_plugins import NoiseConfig, NoiseNotAppliedError, install
from tests.support.installing import untrained
from tests.support.models import ToyModel, examples, padded

CONFIG = NoiseConfig(alpha=5.0, seed=11)
DIM = 48
IDS, MASK = padded(examples([9, 12, 8]))
FEATURES = torch.zeros(IDS.shape, dtype=torch.bool)
FEATURES[0, 2:6] = FEATURES[2, 0:3] = True
VALUES = torch.randn(int(FEATURES.sum()), DIM, generator=torch.Generator().manual_seed(1))


def in_place(embeds: torch.Tensor) -> torch.Tensor:
    embeds[FEATURES] = VALUES
    return embeds


def out_of_place(embeds: torch.Tensor) -> torch.Tensor:
    return embeds.masked_scatter(FEATURES[..., None], VALUES)


def replaced(embeds: torch.Tensor) -> torch.Tensor:
    merged = embeds.clone()
    merged[FEATURES] = VALUES
    return merged


def with_a_dummy(embeds: torch.Tensor) -> torch.Tensor:
    """A batch of text alone: some templates add nothing times features, for the gradients of an image tower."""
    return embeds + VALUES.mean() * 0.0


@pytest.mark.parametrize("merge", [in_place, out_of_place, replaced, with_a_dummy], ids=lambda merge: merge.__name__)
def test_text_has_the_specified_noise_and_features_have_none(merge):
    torch.manual_seed(0)
    model = ToyModel(dim=DIM).train()
    with install(model, CONFIG) as handle:
        handle.step = 0
        want = model.noise(IDS, attention_mask=MASK)
        for _ in range(2):  # another lookup of that shape is not taken for this one
            other = model.embed_tokens(IDS.flip(0))
        embeds = merge(model.embed_tokens(IDS))
        model.embed_tokens(IDS.flip(1))
        clean = embeds.detach().clone()
        model(inputs_embeds=embeds, attention_mask=MASK).sum().backward()
        noise = (model.entered - clean).detach()
    if merge is with_a_dummy:
        torch.testing.assert_close(noise, want, rtol=0, atol=1e-6)
    else:
        torch.testing.assert_close(noise[~FEATURES], want[~FEATURES], rtol=0, atol=1e-6)
        assert not noise[FEATURES].any()
    assert want[FEATURES & MASK.bool()].any()
    assert model.embed_tokens.weight.grad.any()
    del other


@pytest.mark.parametrize("factor", [2.0, 0.5])
def test_what_was_changed_everywhere_is_refused(factor):
    """Rows of zeros equal themselves after any factor; they are no sign of a lookup."""
    model = ToyModel(dim=DIM).train()
    with torch.no_grad():
        model.embed_tokens.weight[0] = 0
    with untrained(model, CONFIG) as handle:
        handle.step = 0
        embeds = model.embed_tokens(IDS) * factor
        with pytest.raises(NoiseNotAppliedError, match="ToyModel had no noise"):
            model(inputs_embeds=embeds, attention_mask=MASK)


class Factorised(nn.Module):
    """A narrow table and a projection (ALBERT, DeBERTa, ELECTRA)."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(97, 8)
        self.projection = nn.Linear(8, DIM)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.projection(self.table(input_ids))


def test_a_factorised_table_is_a_lookup():
    model = ToyModel(dim=DIM).train()
    model.embed_tokens = Factorised()
    with install(model, CONFIG) as handle:
        handle.step = 0
        model(input_ids=IDS, attention_mask=MASK).sum().backward()
        assert handle.embeddings == ["embed_tokens"]
    noise = (model.entered - model.embed_tokens(IDS)).detach()
    bound = 5 / (9 * DIM) ** 0.5
    assert 0.9 * bound < noise[0].abs().max() <= bound * 1.001
    assert not noise[~MASK.bool()].any()


class Doubled(nn.Module):
    """Somebody's own wrapper of an embedding."""

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.base_layer(input_ids) * 2


@pytest.mark.parametrize("first", ["noise", "wrapper"])
def test_the_noise_follows_an_embedding_that_is_wrapped(first):
    torch.manual_seed(0)
    model = ToyModel(dim=DIM).train()
    with install(model, CONFIG) as handle:
        handle.step = 0
        want = model.noise(IDS, attention_mask=MASK)
    if first == "wrapper":
        model.embed_tokens = Doubled(model.embed_tokens)
    with install(model, CONFIG) as handle:
        handle.step = 0
        if first == "noise":
            model.embed_tokens = Doubled(model.embed_tokens)
        model(input_ids=IDS, attention_mask=MASK).sum().backward()
    torch.testing.assert_close((model.entered - model.embed_tokens(IDS)).detach(), want, rtol=0, atol=1e-6)


def test_a_lookup_that_was_taken_out_is_an_error_that_names_the_model():
    model = ToyModel(dim=DIM).train()
    with untrained(model, CONFIG) as handle:
        handle.step = 0
        model.embed_tokens = None
        with pytest.raises(NoiseNotAppliedError, match="no embedding of tokens found in ToyModel"):
            model(input_ids=IDS, attention_mask=MASK)


@pytest.mark.parametrize("metrics", [True, False])
def test_double_precision_and_functional_gradients(metrics):
    config = NoiseConfig(alpha=5.0, seed=11, metrics=metrics)
    torch.manual_seed(0)
    model = ToyModel(dim=DIM).double().train()
    with install(model, config) as handle:
        handle.step = 0
        model(input_ids=IDS, attention_mask=MASK).sum().backward()
        want = {name: parameter.grad for name, parameter in model.named_parameters()}

        def loss(parameters: dict[str, torch.Tensor]) -> torch.Tensor:
            return torch.func.functional_call(model, parameters, (IDS, MASK)).sum()

        found = torch.func.grad(loss)({name: p.detach() for name, p in model.named_parameters()})
    torch.testing.assert_close(found["embed_tokens.weight"], want["embed_tokens.weight"])
