#!/usr/bin/env bash
# DPOTrainer without ref_model loads the reference from disk instead of copying the model it was given
#
# Guess:   With ref_model=None the reference is a frozen copy of the model that was passed, so DPO's loss starts at ln
#          2.
# Happens: The reference is loaded from the path in the model's configuration. A model whose weights have changed
#          since it was loaded, by an SFT stage in the same process for example, is compared with the weights before
#          that stage.
# Matters: To anybody who chains stages in one process, merges adapters or edits embeddings before DPO: the KL term
#          pulls back to the earlier model. Save and reload between stages, or pass a copy as ref_model.
# With:    trl==1.16.0 transformers==5.24.0 torch==2.14.1
# Seen:    2026-11-27
# | model as loaded: reference equals the policy yes, loss of the first step is ln 2 yes
# | model changed after loading: reference equals the policy no, loss of the first step is ln 2 no
# |   reference equals the weights on disk yes
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
finding "${BASH_SOURCE[0]}" <<'PYTHON'
import contextlib
import math
import os

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer

words = Tokenizer(
    models.WordLevel({word: number for number, word in enumerate("<pad> <eos> <unk> a b c d e f".split())}, "<unk>")
)
words.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")
config = LlamaConfig(
    vocab_size=16,
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    initializer_range=0.5,
    pad_token_id=0,
    eos_token_id=1,
)
torch.manual_seed(0)
LlamaForCausalLM(config).save_pretrained("base")
pairs = Dataset.from_list([{"prompt": "a b", "chosen": " c d", "rejected": " e f"}] * 2)
arguments = DPOConfig(
    output_dir="output",
    max_steps=1,
    logging_steps=1,
    per_device_train_batch_size=2,
    save_strategy="no",
    report_to="none",
    use_cpu=True,
    bf16=False,
    disable_tqdm=True,
)


def same(one, other):
    equal = all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    return "yes" if equal else "no"


for name in ("model as loaded", "model changed after loading"):
    model = LlamaForCausalLM.from_pretrained("base")
    if name != "model as loaded":
        with torch.no_grad():  # in place of a first stage of training
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing):
        trainer = DPOTrainer(model, args=arguments, train_dataset=pairs, processing_class=tokenizer)
        equal = same(trainer.ref_model, model)
        trainer.train()
    (loss,) = (entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
    starts = "yes" if math.isclose(loss, math.log(2), abs_tol=1e-3) else "no"
    print(f"{name}: reference equals the policy {equal}, loss of the first step is ln 2 {starts}")
print(f"  reference equals the weights on disk {same(trainer.ref_model, LlamaForCausalLM.from_pretrained('base'))}")
PYTHON
