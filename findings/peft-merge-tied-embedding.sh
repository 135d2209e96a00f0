#!/usr/bin/env bash
# Merging LoRA on a tied embedding changes the outputs; with ensure_weight_tying the change is merged twice
#
# Guess:   merge_and_unload() returns a model with the adapter's outputs. If the embedding and the output layer share
#          a weight, PEFT warns, and ensure_weight_tying=True, which the warning names, makes the merge correct.
# Happens: Without the option, merging applies the adapter's change, which was trained for the lookup alone, to the
#          output layer too. With the option, both layers have an adapter with the same numbers and each adds its
#          change to the one weight they share: the merged table contains the change twice.
# Matters: To anybody who trains token embeddings with LoRA in a model with a tied output layer, as many small models
#          have, and publishes the merged model: it is not the model that was evaluated.
# With:    peft==0.21.2 transformers==5.24.0 torch==2.14.1
# Seen:    2026-11-27
# | untied, ensure_weight_tying=False: the table gains 1.00 x the change, outputs stay the same
# | tied, ensure_weight_tying=False: the table gains 1.00 x the change, outputs change
# | tied, ensure_weight_tying=True: the table gains 2.00 x the change, outputs change
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
finding "${BASH_SOURCE[0]}" <<'PYTHON'
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

ids = torch.arange(3, 13).unsqueeze(0)

for tied, ensured in ((False, False), (True, False), (True, True)):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        tie_word_embeddings=tied,
    )
    base = LlamaForCausalLM(config).eval()
    before = base.get_input_embeddings().weight.detach().clone()
    model = get_peft_model(base, LoraConfig(target_modules=["embed_tokens"], ensure_weight_tying=ensured)).eval()
    layer = model.get_input_embeddings()
    with torch.no_grad():  # in place of training
        layer.lora_embedding_A["default"].normal_(std=0.1)
        change = layer.get_delta_weight("default")
        adapted = model(input_ids=ids).logits
        merged = model.merge_and_unload()
        gained = ((merged.get_input_embeddings().weight - before) * change).sum() / change.square().sum()
        same = torch.allclose(merged(input_ids=ids).logits, adapted, atol=1e-4)
    print(
        f"{'tied' if tied else 'untied'}, ensure_weight_tying={ensured}: the table gains {gained:.2f} x the change, "
        f"outputs {'stay the same' if same else 'change'}"
    )
PYTHON
