"""Whole training forwards of models of transformers on an accelerator that this machine does not have."""

from collections.abc import Callable

import pytest
import torch
import transformers
from torch import Tensor, nn

from benchmarks.counts import Counts, accelerator
from neftune_plugins import NoiseConfig, install
from tests.support.models import emptied

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(
    transformers.__version__ < "5", reason="transformers 4 reads the values of a mask, with and without noise"
)
SIZE = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2}


def llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(num_hidden_layers=2, vocab_size=100, pad_token_id=0, **SIZE))


def t5() -> nn.Module:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(vocab_size=100, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, decoder_start_token_id=0)
    return T5ForConditionalGeneration(config)


def lora() -> nn.Module:
    from peft import LoraConfig, get_peft_model

    return get_peft_model(llama(), LoraConfig(target_modules=["q_proj", "embed_tokens"], task_type="CAUSAL_LM"))


def masked(ids: Tensor) -> dict[str, Tensor]:
    return {"attention_mask": torch.ones_like(ids)}


def packed(ids: Tensor) -> dict[str, Tensor]:
    return {"position_ids": (torch.arange(ids.shape[1], device=ids.device) % 5).expand_as(ids)}


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[Tensor], dict[str, Tensor]], int, int]] = {
    "Llama": (llama, masked, 1, 15),
    "packed": (llama, packed, 1, 15),
    "T5": (t5, masked, 2, 30),
    "LoRA": (lora, masked, 1, 16),
}


def launches(model: nn.Module, name: str, *, noisy: bool) -> Counts:
    """Of the second training forward. (A backward needs the device.)"""
    _, arguments, _, _ = MODELS[name]
    emptied(model.train(), "cuda")
    ids = torch.randint(1, 90, (2, 16), device="cuda")
    batch = {"input_ids": ids, "labels": ids, **arguments(ids)}
    with install(model, NoiseConfig(alpha=5.0 if noisy else 0.0, seed=0)) as handle:
        for handle.step in range(2):
            with Counts() as counts:
                assert model(**batch).loss.device.type == "cuda"
    return counts


@pytest.mark.parametrize("name", MODELS)
def test_a_training_forward_reads_no_value_and_has_few_launches_more_than_one_without_noise(name):
    """A read of a value, or an operation on tensors of two devices, is an error of tensors without values."""
    make, _, draws, most = MODELS[name]
    model = make()
    with accelerator():
        clean, noisy = (launches(model, name, noisy=noisy) for noisy in (False, True))
    assert noisy.launches.count("add_noise_kernel") == draws
    assert noisy.waits == clean.waits
    assert len(noisy.launches) - len(clean.launches) <= most
