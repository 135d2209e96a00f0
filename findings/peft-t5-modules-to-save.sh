#!/usr/bin/env bash
# modules_to_save=["shared"] in T5 and BART trains a copy that the model never uses
#
# Guess:   get_input_embeddings() returns the module "shared", so modules_to_save=["shared"] trains the embedding and
#          saves it with the adapter.
# Happens: Encoder and decoder look up tokens in modules of their own that hold the same weight; shared is never
#          called. Its copy counts as trainable, gets no gradient, is saved in every checkpoint, and does not affect
#          the outputs. There is no message.
# Matters: To anybody who adds tokens to T5 or BART and trains them this way: the new tokens keep their initial
#          values, although the number of trainable parameters and the size of the adapter suggest otherwise.
# With:    peft==0.21.2 transformers==5.24.0 torch==2.14.1
# Seen:    2026-11-27
# | T5ForConditionalGeneration: trainable values in the copy 1024, gradient none, saved with the adapter yes
# |   outputs when the copy's values change: the same
# | BartForConditionalGeneration: trainable values in the copy 1024, gradient none, saved with the adapter yes
# |   outputs when the copy's values change: the same
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
finding "${BASH_SOURCE[0]}" <<'PYTHON'
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from transformers import BartConfig, BartForConditionalGeneration, T5Config, T5ForConditionalGeneration

ids = torch.arange(3, 13).unsqueeze(0)
t5 = T5Config(
    vocab_size=64, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0, dropout_rate=0.0
)
bart = BartConfig(
    vocab_size=64,
    d_model=16,
    encoder_layers=1,
    decoder_layers=1,
    encoder_attention_heads=2,
    decoder_attention_heads=2,
    encoder_ffn_dim=32,
    decoder_ffn_dim=32,
    dropout=0.0,
)

for base, queries in ((T5ForConditionalGeneration(t5), "q"), (BartForConditionalGeneration(bart), "q_proj")):
    model = get_peft_model(base, LoraConfig(target_modules=[queries], modules_to_save=["shared"]))
    output = model(input_ids=ids, labels=ids)
    output.loss.backward()
    ((name, copy),) = ((name, p) for name, p in model.named_parameters() if "shared" in name and p.requires_grad)
    saved = any("shared" in key for key in get_peft_model_state_dict(model))
    print(
        f"{type(base).__name__}: trainable values in the copy {copy.numel()}, "
        f"gradient {'none' if copy.grad is None else 'some'}, saved with the adapter {'yes' if saved else 'no'}"
    )
    with torch.no_grad():
        copy.normal_()
    same = torch.equal(model(input_ids=ids, labels=ids).logits, output.logits)
    print(f"  outputs when the copy's values change: {'the same' if same else 'others'}")
PYTHON
