#!/usr/bin/env bash
# Under activation checkpointing a module's pre-hook can fire more often than its forward hook
#
# Guess:   A checkpointed layer runs twice, so its hooks fire twice, and a pre-hook fires as often as the forward
#          hook.
# Happens: The layer's own hooks fire once, because transformers checkpoints the forward inside the layer's __call__.
#          Inside the layer, the recomputation of the default (non-reentrant) mode stops with an exception as soon as
#          the last saved tensor exists: modules running at that moment have fired their pre-hook twice and their
#          forward hook once, unless it was registered with always_call=True. In reentrant mode everything inside the
#          layer fires twice.
# Matters: To anybody who counts calls, times modules, or pushes something in a pre-hook and pops it in the forward
#          hook: in the default mode the stack grows by one entry in each backward pass.
# With:    torch==2.14.1 transformers==5.24.0
# Seen:    2026-11-27
# | use_reentrant=False
# |   layers.0: pre-hook 1, forward hook 1, with always_call 1
# |   layers.0.self_attn: pre-hook 2, forward hook 2, with always_call 2
# |   layers.0.mlp: pre-hook 2, forward hook 1, with always_call 2
# | use_reentrant=True
# |   layers.0: pre-hook 1, forward hook 1, with always_call 1
# |   layers.0.self_attn: pre-hook 2, forward hook 2, with always_call 2
# |   layers.0.mlp: pre-hook 2, forward hook 2, with always_call 2
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
finding "${BASH_SOURCE[0]}" <<'PYTHON'
from collections import Counter

import torch
from transformers import LlamaConfig, LlamaModel

config = LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
NAMES = ("layers.0", "layers.0.self_attn", "layers.0.mlp")

for reentrant in (False, True):
    model = LlamaModel(config).train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    model.enable_input_require_grads()
    fired = Counter()
    for name in NAMES:
        module = model.get_submodule(name)
        module.register_forward_pre_hook(lambda *_, name=name: fired.update([(name, "pre")]))
        module.register_forward_hook(lambda *_, name=name: fired.update([(name, "post")]))
        module.register_forward_hook(lambda *_, name=name: fired.update([(name, "always")]), always_call=True)
    model(torch.tensor([[3, 4, 5]])).last_hidden_state.sum().backward()
    print(f"use_reentrant={reentrant}")
    for name in NAMES:
        pre, post, always = (fired[name, kind] for kind in ("pre", "post", "always"))
        print(f"  {name}: pre-hook {pre}, forward hook {post}, with always_call {always}")
PYTHON
