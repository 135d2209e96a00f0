#!/usr/bin/env bash
# Mamba accepts position_ids and ignores them: packed examples see those before
#
# Guess:   position_ids that begin again separate the examples of a packed row, as in Llama; a model that cannot use
#          them refuses them.
# Happens: Mamba's forward takes them among its other arguments and drops them. Its state runs through the whole row.
# Matters: To anybody who packs rows: with a state-space model each example is trained in the context of the others.
# With:    transformers==5.24.0 torch==2.14.1
# Seen:    2026-11-27
# | LlamaForCausalLM: another first example changes the second: no, the second equals itself alone: yes
# | MambaForCausalLM: another first example changes the second: yes, the second equals itself alone: no
# | Mamba2ForCausalLM: another first example changes the second: yes, the second equals itself alone: no
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
finding "${BASH_SOURCE[0]}" <<'PYTHON'
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Mamba2Config, MambaConfig

small = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2}
configs = (
    LlamaConfig(**small, intermediate_size=32, num_attention_heads=4),
    MambaConfig(**small, state_size=8),
    Mamba2Config(**small, state_size=8, num_heads=8, head_dim=8, n_groups=1),
)
one, other, second = torch.arange(4, 12)[None], torch.arange(20, 28)[None], torch.arange(40, 48)[None]
positions = torch.arange(8).repeat(2)[None]
for config in configs:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        rows = [torch.cat((first, second), 1) for first in (one, other)]
        packed = [model(input_ids=row, position_ids=positions, use_cache=False).logits[:, 8:] for row in rows]
        alone = model(input_ids=second, use_cache=False).logits
    changes, equal = not torch.allclose(*packed, atol=1e-5), torch.allclose(packed[0], alone, atol=1e-5)
    print(
        f"{type(model).__name__}: another first example changes the second: {'yes' if changes else 'no'}, "
        f"the second equals itself alone: {'yes' if equal else 'no'}"
    )
PYTHON
