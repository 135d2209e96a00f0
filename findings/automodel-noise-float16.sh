#!/usr/bin/env bash
# NeMo Automodel's NEFTune adds no noise in float16 if the row is wide
#
# Guess:   The noise of a float16 model is that of a float32 model, rounded.
# Happens: The product of the row's length and the model's width is made a tensor of the embedding's type. Above 65504
#          that is infinite, and the bound of the noise 0. At a width of 2048 that is each row of 32 tokens or more.
# Matters: To anybody who fine-tunes in float16 with `neftune:`: the log says that NEFTune is active, and there is none.
# With:    nemo-automodel==0.7.0 torch==2.14.1
# Seen:    2026-11-27
# | float32, 31 tokens: noise yes
# | float32, 32 tokens: noise yes
# | bfloat16, 31 tokens: noise yes
# | bfloat16, 32 tokens: noise yes
# | float16, 31 tokens: noise yes
# | float16, 32 tokens: noise no
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
finding "${BASH_SOURCE[0]}" <<'PYTHON'
import torch
from nemo_automodel.components.training.neftune import NEFTune
from torch import nn

torch.manual_seed(0)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed_tokens = nn.Embedding(64, 2048)


for dtype in (torch.float32, torch.bfloat16, torch.float16):
    model = Model().to(dtype).train()
    NEFTune(noise_alpha=5.0).activate(model)
    for length in (31, 32):
        ids = torch.randint(64, (2, length))
        noise = model.embed_tokens(ids) - model.embed_tokens.weight[ids]
        print(f"{str(dtype).removeprefix('torch.')}, {length} tokens: noise {'yes' if noise.any() else 'no'}")
PYTHON
