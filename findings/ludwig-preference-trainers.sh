#!/usr/bin/env bash
# Ludwig's trainers dpo, kto, orpo and grpo end in the weights of finetune
#
# Guess:   trainer.type dpo learns from pairs of a chosen and a rejected answer, and grpo from generated ones.
# Happens: All four train on the likelihood of the one output feature. They look for a second with "rejected" in its
#          name, and a language model cannot have two. Bit for bit, the weights are those of type finetune.
# Matters: To anybody who compares preference methods in Ludwig, or believes that rejected answers were used.
# With:    ludwig[llm]==0.17.10 torch==2.14.1 torchvision==0.29.2
# Seen:    2026-11-27
# | finetune: changes the weights: yes
# | dpo: weights of finetune: yes
# | kto: weights of finetune: yes
# | orpo: weights of finetune: yes
# | grpo: weights of finetune: yes
# | dpo with a second output feature, rejected: ConfigValidationError
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
finding "${BASH_SOURCE[0]}" <<'PYTHON'
import contextlib
import copy
import logging
import os
from pathlib import Path

import pandas
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

logging.disable(logging.CRITICAL)
with Path(os.devnull).open("w") as nothing, contextlib.redirect_stdout(nothing):
    from ludwig.api import LudwigModel
names = ["<pad>", "<unk>", "</s>", "<s>", *(f"w{number}" for number in range(30))]
words = Tokenizer(WordLevel({word: number for number, word in enumerate(names)}, "<unk>"))
words.pre_tokenizer = Whitespace()
special = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "</s>", "bos_token": "<s>"}
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, **special)
tokenizer.save_pretrained("model")
small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
torch.manual_seed(0)
LlamaForCausalLM(LlamaConfig(vocab_size=40, **small)).save_pretrained("model")
table = pandas.DataFrame(
    {
        "prompt": [f"w{number}" for number in range(16)],
        "chosen": [f"w{number + 1} w{number + 2}" for number in range(16)],
        "rejected": [f"w{29 - number}" for number in range(16)],
        "split": [0] * 12 + [1] * 2 + [2] * 2,
    }
)
config = {
    "model_type": "llm",
    "base_model": "model",
    "backend": {"type": "local"},
    "input_features": [{"name": "prompt", "type": "text"}],
    "output_features": [{"name": "chosen", "type": "text"}],
    "preprocessing": {"split": {"type": "fixed", "column": "split"}},
    "generation": {"max_new_tokens": 2},
}
trainer = {"train_steps": 3, "batch_size": 4, "learning_rate": 0.001, "skip_all_evaluation": True}


def trained(kind):
    given = copy.deepcopy(config) | {"trainer": trainer | {"type": kind}}
    model = LudwigModel(given, logging_level=logging.CRITICAL)
    silent = {"skip_save_model": True, "skip_save_progress": True, "skip_save_log": True}
    model.train(table.copy(), random_seed=7, output_directory=kind, skip_save_processed_input=True, **silent)
    return {name: value.detach().clone() for name, value in model.model.named_parameters()}


def same(one, other):
    return "yes" if all(torch.equal(one[name], other[name]) for name in one) else "no"


lines = []
with Path(os.devnull).open("w") as nothing, contextlib.redirect_stdout(nothing):
    weights = trained("finetune")
    start = LlamaForCausalLM.from_pretrained("model").state_dict()["model.norm.weight"]
    norm = next(value for name, value in weights.items() if name.endswith("model.norm.weight"))
    lines.append(f"finetune: changes the weights: {'no' if torch.equal(start, norm) else 'yes'}")
    for kind in ("dpo", "kto", "orpo", "grpo"):
        lines.append(f"{kind}: weights of finetune: {same(weights, trained(kind))}")
    config["output_features"].append({"name": "rejected", "type": "text"})
    try:
        trained("dpo")
        error = "no error"
    except Exception as problem:
        error = type(problem).__name__
    lines.append(f"dpo with a second output feature, rejected: {error}")
print("\n".join(lines))
PYTHON
