#!/usr/bin/env bash
# lora_dropout does nothing on an embedding
#
# Guess:   lora_dropout applies in every layer that LoRA targets; each of them has a dropout module.
# Happens: LoRA on an embedding creates that module and never calls it. With a dropout of 0.9, the lookup in training
#          mode gives the same values every time, equal to evaluation mode; a linear layer gives different ones.
# Matters: To anybody who relies on dropout against overfitting of new tokens or a small corpus, or tunes it: for the
#          embedding, every value of lora_dropout trains the same.
# With:    peft==0.21.2 transformers==5.24.0 torch==2.14.1
# Seen:    2026-11-27
# | embedding: has a Dropout of 0.9, training mode gives evaluation's values: yes
# | linear layer: has a Dropout of 0.9, training mode gives evaluation's values: no
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
finding "${BASH_SOURCE[0]}" <<'PYTHON'
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

torch.manual_seed(0)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(64, 16)
        self.layer = nn.Linear(16, 16)

    def forward(self, ids):
        return self.layer(self.table(ids))


config = LoraConfig(target_modules=["table", "layer"], lora_dropout=0.9, init_lora_weights=False)
model = get_peft_model(Model(), config).base_model.model
for name, module, example in (
    ("embedding", model.table, torch.arange(32)),
    ("linear layer", model.layer, torch.randn(32, 16)),
):
    dropout = module.lora_dropout["default"]
    same = torch.equal(module.train()(example), module.eval()(example))
    print(
        f"{name}: has a {type(dropout).__name__} of {dropout.p}, "
        f"training mode gives evaluation's values: {'yes' if same else 'no'}"
    )
PYTHON
