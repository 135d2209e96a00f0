#!/usr/bin/env bash
# torchao's QAT prepare drops the hooks of the modules that it replaces
#
# Guess:   Preparing a model for quantization-aware training keeps its hooks, as PEFT's adapters do, or says that they go.
# Happens: Each module is replaced by a new one that has its weights but not its hooks, without a message. Removing the
#          hook through its handle afterwards is no error either.
# Matters: To anybody whose noise, probe, gradient checkpointing or logging is a hook that was added before: it stops.
# With:    torchao==0.18.0 torch==2.14.1 numpy==2.4.6
# Seen:    2026-11-27
# | embedding: Embedding becomes FakeQuantizedEmbedding, calls of its hook: 1 before, 0 after
# | linear layer: Linear becomes FakeQuantizedLinear, calls of its hook: 1 before, 0 after
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
finding "${BASH_SOURCE[0]}" <<'PYTHON'
import torch
from torch import nn
from torchao.quantization import quantize_
from torchao.quantization.qat import IntxFakeQuantizeConfig, QATConfig

torch.manual_seed(0)
model = nn.Sequential(nn.Embedding(64, 32), nn.Linear(32, 32))
calls = [0, 0]


def count(index):
    def hook(*_):
        calls[index] += 1

    return hook


def called():
    calls[:] = [0, 0]
    model(torch.arange(8))
    return [(type(module).__name__, number) for module, number in zip(model, calls, strict=True)]


for index, module in enumerate(model):
    module.register_forward_hook(count(index))
before = called()
weights = QATConfig(weight_config=IntxFakeQuantizeConfig(torch.int4, group_size=32), step="prepare")
quantize_(model, weights, filter_fn=lambda module, name: isinstance(module, (nn.Embedding, nn.Linear)))
for what, (kind, once), (other, then) in zip(("embedding", "linear layer"), before, called(), strict=True):
    print(f"{what}: {kind} becomes {other}, calls of its hook: {once} before, {then} after")
PYTHON
