#!/usr/bin/env bash
# modules_to_save copies a module's hooks; removing the hook does not remove the copy
#
# Guess:   A forward hook on the embedding fires whenever the model looks up tokens, until handle.remove().
# Happens: That depends on the adapter, without a message. modules_to_save deep-copies the module with its hooks and
#          calls the copy: the hook fires for a module it was not registered on, and keeps firing after
#          handle.remove(). Trainable tokens read the table's weight and never call the module: the hook never fires.
#          LoRA keeps the module and calls it.
# Matters: To anybody who registers hooks (noise, statistics, offloading) before get_peft_model: in the first case
#          they cannot be removed, in the second they do nothing.
# With:    peft==0.21.2 transformers==5.24.0 torch==2.14.1
# Seen:    2026-11-27
# | lora: fires 1, for the module that it was put on 1; after remove() 0
# | modules_to_save: fires 1, for the module that it was put on 0; after remove() 1
# | trainable_token_indices: fires 0, for the module that it was put on 0; after remove() 0
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
finding "${BASH_SOURCE[0]}" <<'PYTHON'
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

config = LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
ids = torch.tensor([[3, 4, 5]])

for name, options in {
    "lora": {"target_modules": ["q_proj", "embed_tokens"]},
    "modules_to_save": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "trainable_token_indices": {"target_modules": ["q_proj"], "trainable_token_indices": [3]},
}.items():
    model = LlamaForCausalLM(config)
    embedding = model.get_input_embeddings()
    fired = []
    handle = embedding.register_forward_hook(lambda module, *_: fired.append(module))
    model = get_peft_model(model, LoraConfig(**options))
    model(ids)
    before, own = len(fired), sum(module is embedding for module in fired)
    handle.remove()
    model(ids)
    print(f"{name}: fires {before}, for the module that it was put on {own}; after remove() {len(fired) - before}")
PYTHON
