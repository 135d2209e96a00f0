#!/usr/bin/env bash
# ms-swift's NEFTune tuner noises position embeddings too
#
# Guess:   NEFTuneConfig adds noise to the embeddings of the tokens, as `--neftune_noise_alpha` does.
# Happens: It hooks each nn.Embedding of the model. In a model with learned positions there are two noises: one for
#          tokens, and one for positions, which all rows of the batch share.
# Matters: To anybody who uses ms-swift's tuners from Python with GPT-2, OPT, BERT or the like: more noise than alpha
#          says, and half of it the same in all examples of a batch.
# With:    ms-swift==4.6.0 transformers==5.19.0 torch==2.14.1
# Seen:    2026-11-27
# | embeddings with a hook: wpe, wte
# | noise over that of alpha: 1.4
# | noise of two rows correlates: yes
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
finding "${BASH_SOURCE[0]}" <<'PYTHON'
import torch
from swift.tuners import NEFTuneConfig, Swift
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

torch.manual_seed(0)
config = GPT2Config(
    vocab_size=64, n_embd=64, n_layer=1, n_head=4, n_positions=64, embd_pdrop=0, bos_token_id=1, eos_token_id=1
)
model = Swift.prepare_model(GPT2LMHeadModel(config), NEFTuneConfig(noise_alpha=5.0))
tables = {name.split(".")[-1]: module for name, module in model.named_modules() if isinstance(module, nn.Embedding)}
print("embeddings with a hook:", ", ".join(sorted(name for name, table in tables.items() if table._forward_hooks)))

entered = []
block = next(module for name, module in model.named_modules() if name.endswith("h.0"))
block.register_forward_pre_hook(lambda module, args: entered.append(args[0].detach()))
ids = torch.randint(64, (2, 64))
model.train()(input_ids=ids)
model.eval()(input_ids=ids)
noise = entered[0] - entered[1]
bound = 5 / (64 * 64) ** 0.5
print(f"noise over that of alpha: {noise.square().mean().sqrt() / (bound / 3**0.5):.1f}")
print("noise of two rows correlates:", "yes" if torch.corrcoef(noise.flatten(1))[0, 1] > 0.3 else "no")
PYTHON
