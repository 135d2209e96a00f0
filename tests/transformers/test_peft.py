"""Every way in which PEFT wraps a model or its embedding: what enters the first block."""

import copy

import peft
import pytest
import torch
from neftune_transformers.tiny import make_tiny_model
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer, T5Config

from neftune_plugins import NoiseConfig, install
from tests.support import specification
from tests.support.blocks import entered_blocks

TARGETS = {"target_modules": ["embed_tokens", "q_proj", "v_proj"]}
LM = {"task_type": "CAUSAL_LM"}
VIRTUAL = {"num_virtual_tokens": 5}
CONFIGS = {
    "LoRA": peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], **LM),
    "LoRA of the embedding": peft.LoraConfig(r=4, **TARGETS, **LM),
    "DoRA of the embedding": peft.LoraConfig(r=4, use_dora=True, **TARGETS, **LM),
    "saved embedding": peft.LoraConfig(r=4, modules_to_save=["embed_tokens"], **LM, target_modules=["q_proj"]),
    "trainable tokens": peft.LoraConfig(
        r=4, trainable_token_indices={"embed_tokens": [5, 7]}, target_modules=["q_proj"], **LM
    ),
    "trainable tokens alone": peft.TrainableTokensConfig(token_indices=[5, 7], target_modules=["embed_tokens"], **LM),
    "IA3": peft.IA3Config(target_modules=["k_proj", "v_proj"], feedforward_modules=[], **LM),
    "AdaLoRA": peft.AdaLoraConfig(init_r=4, target_r=2, total_step=9, target_modules=["q_proj"], **LM),
    "VeRA": peft.VeraConfig(r=4, target_modules=["q_proj"], **LM),
    "prompt tuning": peft.PromptTuningConfig(**VIRTUAL, **LM),
    "P-tuning": peft.PromptEncoderConfig(**VIRTUAL, encoder_hidden_size=16, **LM),
    "prefix tuning": peft.PrefixTuningConfig(**VIRTUAL, **LM),
}
ALPHA, SEED, STEP = 5.0, 3, 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def batch(folder):
    texts = ["The tide was out.", "It rained on the harbour all day."]
    found = AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    return {name: found[name] for name in ("input_ids", "attention_mask")}


def differences(model, blocks, batch):
    """By how much what enters each of `blocks` with noise differs from what enters it without: (B, L, D)."""
    pairs = entered_blocks(model, blocks, batch, NoiseConfig(alpha=ALPHA, seed=SEED), step=STEP)
    return [noisy - clean for noisy, clean in pairs]


def assert_specified(difference, ids, mask, stream=0):
    """`difference` (B, L, D) is the specified noise of the real tokens, but for the rounding of the embedding's sum."""
    for row, tokens, real in zip(difference, ids, mask.bool(), strict=True):
        expected = specification.noise(
            tokens[real].tolist(), row.shape[-1], alpha=ALPHA, seed=SEED, step=STEP, stream=stream
        )
        torch.testing.assert_close(row[real], torch.tensor(expected), rtol=0, atol=1e-6)
        assert not row[~real].any()


@pytest.mark.parametrize("name", CONFIGS)
def test_the_specified_noise_enters_the_first_block(name, folder, batch):
    torch.manual_seed(0)
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(folder), copy.deepcopy(CONFIGS[name])).train()
    block = model.get_base_model().model.layers[0]
    (difference,) = differences(model, [block], {**batch, "labels": batch["input_ids"]})
    virtual = difference.shape[1] - batch["input_ids"].shape[1]
    assert virtual == (VIRTUAL["num_virtual_tokens"] if name in ("prompt tuning", "P-tuning") else 0)
    assert not difference[:, :virtual].any()
    assert_specified(difference[:, virtual:], batch["input_ids"], batch["attention_mask"])


@pytest.mark.parametrize("name", ["LoRA", "prompt tuning", "prefix tuning"])
def test_encoder_decoders(name, batch):
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=512, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=4, dropout_rate=0, decoder_start_token_id=0
    )
    kinds = {
        "LoRA": peft.LoraConfig(r=4, target_modules=["shared", "q"], task_type="SEQ_2_SEQ_LM"),
        "prompt tuning": peft.PromptTuningConfig(**VIRTUAL, task_type="SEQ_2_SEQ_LM"),
        "prefix tuning": peft.PrefixTuningConfig(**VIRTUAL, task_type="SEQ_2_SEQ_LM"),
    }
    model = peft.get_peft_model(AutoModelForSeq2SeqLM.from_config(config), kinds[name]).train()
    targets = torch.tensor([[9, 8, 7, 1], [5, 1, 0, 0]])
    batch = {**batch, "decoder_input_ids": targets, "labels": targets}
    inner = model.get_base_model()
    encoder, decoder = differences(model, [inner.encoder.block[0], inner.decoder.block[0]], batch)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    assert_specified(encoder[:, -ids.shape[1] :], ids, mask)
    assert_specified(decoder, targets, targets != 0, stream=1)


def test_resized_embeddings(folder, batch):
    """Before the noise is installed, and after."""
    model = AutoModelForCausalLM.from_pretrained(folder).train()
    model.resize_token_embeddings(600)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    (difference,) = differences(model, [model.model.layers[0]], {**batch, "labels": ids})
    assert_specified(difference, ids, mask)
    seen = []
    with install(model, NoiseConfig(alpha=ALPHA, seed=SEED)) as handle:
        handle.step = STEP
        model.resize_token_embeddings(700)
        model.model.layers[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        model(**batch)
    clean = model.get_input_embeddings()(ids)
    assert_specified((seen[0] - clean).detach(), ids, mask)
