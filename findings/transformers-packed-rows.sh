#!/usr/bin/env bash
# A packed row's examples are separate only if the model gets no mask and makes no cache
#
# Guess:   Position ids that restart at 0 tell the model where each example of a packed row begins, so no token sees
#          another example. An attention mask of ones only says that there is no padding, so it changes nothing.
# Happens: The model looks at the positions only if it gets no mask and makes no cache. It makes a cache in training
#          mode too, because use_cache is on in the configuration: called with ids, positions and labels, an example
#          sees the examples before it in its row. With use_cache=False the examples are separate, and adding a mask
#          of ones joins them again.
# Matters: To anybody who packs rows in their own training loop, or uses a collator that adds a mask. Nothing fails;
#          the model trains with attention across examples. Trainer turns the cache off, but it does not remove a
#          collator's mask.
# With:    transformers==5.24.0 torch==2.14.1
# Seen:    2026-11-27
# | ids, positions and labels: the second example sees the first
# | the same with use_cache=False: the second example does not see the first
# | the same with use_cache=False and a mask of ones: the second example sees the first
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
finding "${BASH_SOURCE[0]}" <<'PYTHON'
import torch
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=64,
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    initializer_range=0.5,
)
model = LlamaForCausalLM(config).train()
ids = torch.randint(3, 64, (1, 12))
other = ids.clone()
other[0, :6] = (ids[0, :6] + 1) % 64  # another first example, the same second one
positions = torch.arange(6).repeat(1, 2)


def report(name, **options):
    first, second = (model(row, position_ids=positions, labels=row, **options).logits[0, 6:] for row in (ids, other))
    sees = not torch.allclose(first, second, atol=1e-4)
    print(f"{name}: the second example {'sees' if sees else 'does not see'} the first")


report("ids, positions and labels")
report("the same with use_cache=False", use_cache=False)
report("the same with use_cache=False and a mask of ones", use_cache=False, attention_mask=torch.ones_like(ids))
PYTHON
