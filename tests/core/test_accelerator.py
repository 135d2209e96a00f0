"""Training forwards on an accelerator that this machine does not have: tensors have a device and a shape, no values."""

import pytest
import torch
from torch import nn

from benchmarks.counts import DIM, Counts, accelerator, batches_by_name, forward
from neftune_plugins import NoiseConfig, install
from tests.support.models import ToyModel, ToySeq2Seq, emptied

pytest.importorskip("triton")
FORMS = ("ids alone", "mask of 0 and 1", "positions (packed)", "mask of 4 dimensions")


@pytest.mark.parametrize("form", FORMS)
def test_the_noise_is_few_launches_and_waits_for_nothing(form):
    assert form in batches_by_name()
    for metrics, most in ((False, 15), (True, 16)):
        found = forward("uniform", "bfloat16", form, metrics=metrics)
        assert found["launches"] <= most and found["waits"] == 0
        assert found["bytes an element"] == 4 and found["scratch"] < 0.05


@pytest.mark.parametrize("form", FORMS)
def test_the_plain_path_waits_for_nothing_either(form):
    found = forward("uniform", "float32", form, metrics=True, with_kernels=False)
    assert found["waits"] == 0 and found["scratch"] < 0.25


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gaussian_noise_needs_little_memory(dtype):
    assert forward("gaussian", dtype, "ids alone", metrics=True)["scratch"] <= 0.25


class Wrapped(nn.Module):
    """As PEFT wraps an embedding that it trains with LoRA."""

    def __init__(self, base_layer: nn.Embedding) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.weight = base_layer.weight
        self.down = nn.Parameter(torch.zeros(4, base_layer.num_embeddings))
        self.up = nn.Parameter(torch.zeros(base_layer.embedding_dim, 4))

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.base_layer(input_ids) + nn.functional.embedding(input_ids, self.down.T) @ self.up.T


def trained(model: nn.Module, **batch: torch.Tensor) -> Counts:
    """The second training forward. (A backward needs the device.)"""
    with install(model.train(), NoiseConfig(alpha=5.0, seed=0)) as handle:
        for handle.step in range(2):
            with Counts(DIM) as counts:
                model(**batch)
    return counts


def test_step_and_alpha_follow_an_embedding_that_is_replaced_by_one_on_the_accelerator():
    with accelerator():
        ids = torch.randint(1, 90, (2, 16), device="cuda")
        model = ToyModel().train()
        with install(model, NoiseConfig(alpha=5.0, seed=0)) as handle:
            model.embed_tokens = nn.Embedding(97, 48, device="cuda")
            model.lm_head.weight = model.embed_tokens.weight
            for handle.step in range(3):
                with Counts() as counts:
                    model(input_ids=ids, attention_mask=torch.ones_like(ids))
    assert counts.waits == [] and counts.launches.count("add_noise_kernel") == 1


def test_an_encoder_decoder_draws_both_noises_there():
    model = ToySeq2Seq()
    with accelerator():
        ids = torch.randint(1, 90, (2, 16), device="cuda")
        counts = trained(emptied(model, "cuda"), input_ids=ids, decoder_input_ids=ids[:, :8])
    assert counts.waits == [] and counts.launches.count("add_noise_kernel") == 2


def test_a_wrapped_embedding_is_noised_there():
    model = ToyModel()
    model.embed_tokens = Wrapped(model.embed_tokens)
    with accelerator():
        ids = torch.randint(1, 90, (2, 16), device="cuda")
        counts = trained(emptied(model, "cuda"), input_ids=ids, attention_mask=torch.ones_like(ids))
    assert counts.waits == [] and counts.launches.count("add_noise_kernel") == 1
