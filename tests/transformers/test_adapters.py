"""Trained adapters on embeddings: the noise enters outside of them, whichever came first. New adapters change nothing,
so only trained ones tell."""

import copy
import dataclasses

import peft
import pytest
import torch
import transformers
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BartConfig,
    Gemma2Config,
    LlamaConfig,
    PreTrainedModel,
    T5Config,
)

from neftune_plugins import NoiseConfig, install
from tests.support import specification

ALPHA, SEED, STEP = 5.0, 3, 2
CONFIG = NoiseConfig(alpha=ALPHA, seed=SEED)
SMALL = {"vocab_size": 97, "pad_token_id": 0}
DECODER = {
    **SMALL,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 8,
}
CAUSAL = {
    "Llama": lambda tied: LlamaConfig(**DECODER, tie_word_embeddings=tied),
    "Gemma2": lambda tied: Gemma2Config(**DECODER, tie_word_embeddings=tied),
}
SEQ2SEQ = {
    "T5": lambda tied: T5Config(
        **SMALL,
        d_model=32,
        d_kv=8,
        d_ff=32,
        num_layers=1,
        num_heads=4,
        dropout_rate=0,
        decoder_start_token_id=0,
        tie_word_embeddings=tied,
    ),
    "BART": lambda tied: BartConfig(
        **SMALL,
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        dropout=0,
        decoder_start_token_id=0,
        forced_eos_token_id=None,
        tie_word_embeddings=tied,
    ),
}
IDS = torch.tensor([[5, 6, 7, 8, 9], [7, 8, 0, 0, 0]])
MASK = (IDS != 0).long()
TARGETS = torch.tensor([[9, 8, 7, 1], [5, 1, 0, 0]])


def adapters(task: str) -> dict[str, peft.PeftConfig]:
    one = {"target_modules": ["embed_tokens"], "task_type": task}
    other = {"target_modules": r".*\.(v|v_proj)", "task_type": task}
    return {
        "LoRA": peft.LoraConfig(r=4, **one),
        "DoRA": peft.LoraConfig(r=4, use_dora=True, **one),
        "saved": peft.LoraConfig(r=4, modules_to_save=["embed_tokens"], **other),
        "tokens": peft.TrainableTokensConfig(token_indices=[5, 7], **one),
        "tokens beside LoRA": peft.LoraConfig(r=4, trainable_token_indices={"embed_tokens": [5, 7]}, **other),
        "the parameter": peft.LoraConfig(r=4, target_parameters=["embed_tokens.weight"], task_type=task),
    }


def model_of(family: str, tied: bool) -> PreTrainedModel:
    torch.manual_seed(0)
    kind, config = (
        (AutoModelForCausalLM, CAUSAL[family]) if family in CAUSAL else (AutoModelForSeq2SeqLM, SEQ2SEQ[family])
    )
    return kind.from_config(config(tied))


def train(model: nn.Module) -> None:
    """As if it had been trained for long: every trainable parameter is far from where it began."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad and parameter.is_floating_point():
                parameter.mul_(1 + torch.rand_like(parameter)).add_(torch.randn_like(parameter) * 0.3)


def entered(model: nn.Module, *, seq2seq: bool) -> list[torch.Tensor]:
    """What the first consumer of each stack's embedding is given in a training forward and backward."""
    base = model.get_base_model() if isinstance(model, peft.PeftModel) else model
    if seq2seq:
        stacks = [base.get_encoder(), base.get_decoder()]
        first = [getattr(stack, "layernorm_embedding", None) or stack.block[0] for stack in stacks]
    else:
        first = [base.model.layers[0]]
    seen: list[torch.Tensor] = []
    hooks = [
        module.register_forward_pre_hook(
            lambda m, args, kwargs: seen.append((args[0] if args else kwargs["hidden_states"]).detach().clone()),
            with_kwargs=True,
        )
        for module in first
    ]
    batch = {"input_ids": IDS, "attention_mask": MASK, "labels": TARGETS if seq2seq else IDS}
    if seq2seq:
        batch["decoder_input_ids"] = TARGETS
    model.train()(**batch).loss.backward()
    for hook in hooks:
        hook.remove()
    return seen[: len(first)]  # without the calls of an audit, which come after


def assert_specified(difference: torch.Tensor, ids: torch.Tensor, stream: int) -> None:
    for row, tokens in zip(difference, ids, strict=True):
        real = tokens != 0
        expected = specification.noise(
            tokens[real].tolist(), row.shape[-1], alpha=ALPHA, seed=SEED, step=STEP, stream=stream
        )
        torch.testing.assert_close(row[real], torch.tensor(expected), rtol=0, atol=2e-5)
        assert not row[~real].any()


CASES = [
    pytest.param(family, tied, name, first, id=f"{family}-{'tied' if tied else 'untied'}-{name}-{first} first")
    for family in (*CAUSAL, *SEQ2SEQ)
    for tied in (True, False)
    for name in adapters("CAUSAL_LM")
    for first in ("adapter", "noise")
    if tied or family != "BART"
    # In transformers 4, encoder and decoder of T5 are the shared module's own: test_peft.py has that form.
    if transformers.__version__ >= "5" or family != "T5"
]


@pytest.mark.parametrize(("family", "tied", "name", "first"), CASES)
def test_the_noise_is_outside_of_a_trained_adapter(family, tied, name, first):
    seq2seq = family in SEQ2SEQ
    config = copy.deepcopy(adapters("SEQ_2_SEQ_LM" if seq2seq else "CAUSAL_LM")[name])
    model = model_of(family, tied)
    if first == "noise":
        handle = install(model, CONFIG)
        model = peft.get_peft_model(model, config)
    else:
        model = peft.get_peft_model(model, config)
        handle = install(model, CONFIG)
    train(model)
    handle.step = STEP
    noisy = entered(model, seq2seq=seq2seq)
    handle.remove()
    clean = entered(model, seq2seq=seq2seq)
    for stream, (with_noise, without) in enumerate(zip(noisy, clean, strict=True)):
        assert_specified(with_noise - without, TARGETS if stream else IDS, stream)


@pytest.mark.parametrize("end", ["unload", "merge_and_unload"])
@pytest.mark.parametrize("name", ["LoRA", "DoRA", "saved"])
def test_the_noise_stays_when_adapters_go(name, end):
    model = peft.get_peft_model(model_of("Llama", tied=False), copy.deepcopy(adapters("CAUSAL_LM")[name]))
    train(model)
    inner = model.get_base_model()
    with install(inner, CONFIG) as handle:
        handle.step = 0
        inner.train()(input_ids=IDS, attention_mask=MASK, labels=IDS).loss.backward()
        handle.step = STEP
        inner = getattr(model, end)().requires_grad_(True)
        (noisy,) = entered(inner, seq2seq=False)
    (clean,) = entered(inner, seq2seq=False)
    assert_specified(noisy - clean, IDS, 0)


# What each method needs beside the modules of the attention, of a model that is 256 wide.
SETTINGS = {
    "ADAPTION_PROMPT": {"adapter_len": 4, "adapter_layers": 1},
    "MULTITASK_PROMPT_TUNING": {"num_tasks": 2},
    "ADALORA": {"init_r": 4, "target_r": 2, "total_step": 9},
    "C3A": {"block_size": 64},
    "IA3": {"feedforward_modules": []},
    "MISS": {"r": 8},
    "POLY": {"n_tasks": 2},
    "ROAD": {"group_size": 64},
    "SHIRA": {"r": 2},
    "VBLORA": {"vector_length": 64, "num_vectors": 8},
    "WAVEFT": {"n_frequency": 64},
}
OWN_TARGETS = {"ADAPTION_PROMPT", "SHADOW"}  # these find the layers that they change by themselves
TASKS = {"MULTITASK_PROMPT_TUNING", "POLY"}  # these are told the task of each row
# Trainable tokens are on the embedding (above), and X-LoRA mixes adapters that exist (below).
ELSEWHERE = {"TRAINABLE_TOKENS", "XLORA"}


def methods() -> dict[str, type[peft.PeftConfig]]:
    mapping = peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING
    return {str(getattr(kind, "value", kind)): cls for kind, cls in mapping.items()}


@pytest.mark.parametrize("name", sorted(set(methods()) - ELSEWHERE))
def test_every_method_leaves_the_noise_as_it_is(name):
    cls = methods()[name]
    fields = cls.__dataclass_fields__
    settings = {"task_type": "CAUSAL_LM", **SETTINGS.get(name, {})}
    if "num_virtual_tokens" in fields:
        settings["num_virtual_tokens"] = 4
    elif "target_modules" in fields and name not in OWN_TARGETS:
        settings["target_modules"] = ["q_proj", "v_proj"]
    torch.manual_seed(0)
    wide = DECODER | {"hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 64}
    model = peft.get_peft_model(AutoModelForCausalLM.from_config(LlamaConfig(**wide)), cls(**settings))
    noisy = []
    with install(model, CONFIG) as handle:
        handle.step = STEP
        noisy = last_of(model, name)
    clean = last_of(model, name)
    difference = (noisy - clean)[:, -IDS.shape[1] :]
    assert_specified(difference, IDS, 0)
    assert not (noisy - clean)[:, : -IDS.shape[1]].any()


def last_of(model: nn.Module, name: str) -> torch.Tensor:
    """What the first block is given in the last pass of a training forward: some methods make two."""
    seen = []
    block = model.get_base_model().model.layers[0]

    def see(module: nn.Module, args: tuple[object, ...]) -> None:
        states = getattr(args[0], "hidden", args[0])  # SHADOW carries two
        seen.append(states.detach().clone())

    hook = block.register_forward_pre_hook(see)
    tasks = {"task_ids": torch.tensor([0, 1])} if name in TASKS else {}
    model.train()(input_ids=IDS, attention_mask=MASK, **tasks).logits.logsumexp(-1).sum().backward()
    hook.remove()
    return seen[-1]


def test_x_lora_has_the_noise_in_its_second_pass(tmp_path):
    """Its first pass, without gradients and adapters, weighs the adapters."""
    lora = peft.LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM")
    for number in "01":
        peft.get_peft_model(model_of("Llama", tied=False), lora).save_pretrained(tmp_path / number)
    model = model_of("Llama", tied=False)
    model.config.use_cache = False
    adapters = {number: str(tmp_path / number) for number in "01"}
    config = peft.XLoraConfig(task_type="CAUSAL_LM", hidden_size=32, xlora_depth=2, xlora_size=16, adapters=adapters)
    model = peft.get_peft_model(model, config)
    unaudited = dataclasses.replace(CONFIG, audit="off")  # whose clean pass would be the last that is seen here
    with install(model, unaudited) as handle:
        handle.step = STEP
        noisy = last_of(model, "XLORA")
    assert_specified(noisy - last_of(model, "XLORA"), IDS, 0)


def test_multitask_prompt_tuning_of_an_encoder_decoder_that_is_given_labels_alone():
    config = peft.MultitaskPromptTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=4, num_tasks=2)
    model = peft.get_peft_model(model_of("T5", tied=True), config).train()
    base = model.get_base_model()
    batch = {"input_ids": IDS, "attention_mask": MASK, "labels": TARGETS, "task_ids": torch.tensor([0, 1])}
    seen = []
    for stack in (base.encoder, base.decoder):
        stack.block[0].register_forward_pre_hook(lambda m, args: seen.append(args[0].detach().clone()))
    with install(model, CONFIG) as handle:
        handle.step = STEP
        model(**batch).loss.backward()
    noisy = seen[:2]  # without the calls of the audit, which come after
    seen.clear()
    model(**batch)
    encoder, decoder = (with_noise - without for with_noise, without in zip(noisy, seen, strict=True))
    assert_specified(encoder[:, 4:], IDS, 0)
    assert not encoder[:, :4].any()
    shifted = torch.cat((torch.zeros(2, 1, dtype=torch.int64), TARGETS[:, :-1]), 1)
    assert not decoder[:, :4].any()
    for row, tokens in zip(decoder[:, 4:], shifted, strict=True):  # begins with the padding id
        end = int(tokens.nonzero()[-1]) + 1
        expected = specification.noise(tokens[:end].tolist(), 32, alpha=ALPHA, seed=SEED, step=STEP, stream=1)
        torch.testing.assert_close(row[:end], torch.tensor(expected), rtol=0, atol=2e-5)


@pytest.mark.parametrize("first", ["noise", "quantisation"])
def test_the_noise_stays_where_quantisation_replaces_the_embedding(first):
    """torchao 0.18's QAT makes another module of it, without its hooks (findings/torchao-qat-hooks.sh)."""
    quantization = pytest.importorskip("torchao.quantization")
    qat = pytest.importorskip("torchao.quantization.qat")
    model = model_of("Llama", tied=False)

    def prepare() -> None:
        weights = qat.IntxFakeQuantizeConfig(torch.int4, group_size=32)
        config = qat.QATConfig(weight_config=weights, step="prepare")
        quantization.quantize_(model, config, filter_fn=lambda module, name: name.endswith("embed_tokens"))

    if first == "quantisation":
        prepare()
    with install(model, CONFIG) as handle:
        handle.step = STEP
        if first == "noise":
            prepare()
        (noisy,) = entered(model, seq2seq=False)
    assert type(model.model.embed_tokens) is not nn.Embedding
    (clean,) = entered(model, seq2seq=False)
    assert_specified(noisy - clean, IDS, 0)
