#!/usr/bin/env bash
# torchao's quantize_ separates a tied output layer from the embedding; a small model grows
#
# Guess:   Quantised weights take less memory, and a tied weight is quantised for both layers or for neither.
# Happens: quantize_ selects linear layers, including an output layer that shares its weight with the embedding. The
#          layer gets its own quantised values and the table stays as it was: one tensor becomes two. A small model
#          with a large vocabulary becomes larger. Its configuration still says that they are tied.
# Matters: To anybody who quantises a small tied model, or trains its embedding afterwards: memory grows, and the two
#          layers drift apart.
# With:    torchao==0.18.0 transformers==5.24.0 torch==2.14.1
# Seen:    2026-11-27
# | before: tied yes, tie_word_embeddings True, parameters take 1.00 x the original
# | after: tied no, tie_word_embeddings True, parameters take 1.47 x the original
# | output layer Int8Tensor, embedding Parameter
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
finding "${BASH_SOURCE[0]}" <<'PYTHON'
import torch
from torchao.quantization import Int8WeightOnlyConfig, quantize_
from transformers import LlamaConfig, LlamaForCausalLM

config = LlamaConfig(
    vocab_size=8192,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=1,
    num_attention_heads=2,
    tie_word_embeddings=True,
)
model = LlamaForCausalLM(config).to(torch.bfloat16)


def size():
    return sum(
        sum(inner.nbytes for inner in vars(p).values() if isinstance(inner, torch.Tensor)) or p.nbytes
        for p in model.parameters()
    )


original = size()
for when in ("before", "after"):
    if when == "after":
        quantize_(model, Int8WeightOnlyConfig())
    tied = model.lm_head.weight is model.get_input_embeddings().weight
    print(
        f"{when}: tied {'yes' if tied else 'no'}, tie_word_embeddings {config.tie_word_embeddings}, "
        f"parameters take {size() / original:.2f} x the original"
    )
output, table = (type(layer.weight).__name__ for layer in (model.lm_head, model.get_input_embeddings()))
print(f"output layer {output}, embedding {table}")
PYTHON
