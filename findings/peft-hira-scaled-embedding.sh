#!/usr/bin/env bash
# HiRA on Gemma's embedding leaves out the embedding's scale; merging it changes the outputs
#
# Guess:   An adapter on an embedding that multiplies its output by sqrt(width) is multiplied too, as LoRA's is, and the
#          merged model gives the outputs of the adapted one.
# Happens: HiRA adds its change to the scaled lookup without the scale. Merged into the table, the change is scaled.
# Matters: To anybody who trains HiRA on the embedding of Gemma: the change has 1 / sqrt(width) of its strength, and the
#          merged model is another one than the one that was evaluated.
# With:    peft==0.21.2 transformers==5.24.0 torch==2.14.1
# Seen:    2026-11-27
# | LlamaForCausalLM, LoRA: merging keeps the outputs: yes
# | LlamaForCausalLM, HiRA: merging keeps the outputs: yes
# | Gemma3ForCausalLM, LoRA: merging keeps the outputs: yes
# | Gemma3ForCausalLM, HiRA: merging keeps the outputs: no, its change of the lookup grows 5.7 times; sqrt(32) is 5.7
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
finding "${BASH_SOURCE[0]}" <<'PYTHON'
import torch
from peft import HiraConfig, LoraConfig, get_peft_model
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM

small = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 8,
    "tie_word_embeddings": False,
}
ids = torch.arange(8)[None]
for make, config in ((LlamaForCausalLM, LlamaConfig), (Gemma3ForCausalLM, Gemma3TextConfig)):
    for adapter in (LoraConfig, HiraConfig):
        torch.manual_seed(0)
        base = make(config(**small)).eval()
        plain = base.get_input_embeddings()(ids).detach()
        model = get_peft_model(base, adapter(r=4, target_modules=["embed_tokens"], task_type="CAUSAL_LM")).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * 0.3)
            adapted, change = model(input_ids=ids).logits, model.get_input_embeddings()(ids) - plain
            merged = model.merge_and_unload()
            grown = ((merged.get_input_embeddings()(ids) - plain).norm() / change.norm()).item()
            keeps = torch.allclose(adapted, merged(input_ids=ids).logits, atol=1e-4)
        name = adapter.__name__.removesuffix("Config").replace("Lora", "LoRA").replace("Hira", "HiRA")
        print(
            f"{make.__name__}, {name}: merging keeps the outputs: {'yes' if keeps else 'no'}"
            + ("" if keeps else f", its change of the lookup grows {grown:.1f} times; sqrt(32) is {32**0.5:.1f}")
        )
PYTHON
