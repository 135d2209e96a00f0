#!/usr/bin/env bash
# trl grpo of TRL 0.19.1 ignores --reward_funcs, and fails without a reward model
#
# Guess:   `trl grpo --reward_funcs NAME` trains with that function, and together with a reward model with both.
# Happens: The script collects the functions and then passes the reward model alone. Without one, it stops with an
#          UnboundLocalError when the model and the data are loaded.
# Matters: To anybody on that release: with a reward model, the functions that were given have no part in the reward.
# With:    trl==0.19.1 transformers==4.51.3 accelerate==1.15.0 datasets==5.0.1 torch==2.14.1
# Seen:    2026-11-27
# | a function alone: UnboundLocalError
# | a function and a reward model: the trainer gets LlamaForSequenceClassification
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
finding "${BASH_SOURCE[0]}" <<'PYTHON'
import json
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast
from trl import GRPOConfig, ModelConfig, TrlParser
from trl.scripts import grpo

words = Tokenizer(WordLevel({"<pad>": 0, "<unk>": 1, "a": 2}, "<unk>"))
PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", unk_token="<unk>").save_pretrained("model")
small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
LlamaForCausalLM(LlamaConfig(vocab_size=8, **small)).save_pretrained("model")
LlamaForSequenceClassification(LlamaConfig(vocab_size=8, num_labels=1, **small)).save_pretrained("reward")
Path("data").mkdir()
Path("data/train.jsonl").write_text(json.dumps({"prompt": "a"}) + "\n")


class Given(Exception):
    """What the trainer would have been made with."""


def trainer(reward_funcs, **others):
    given = reward_funcs if isinstance(reward_funcs, list) else [reward_funcs]
    raise Given(", ".join(type(one).__name__ for one in given))


grpo.GRPOTrainer = trainer
options = ["--model_name_or_path", "model", "--dataset_name", "data", "--output_dir", "out", "--use_cpu", "true"]
options += ["--bf16", "false", "--reward_funcs", "think_format_reward"]
for title, more in (("alone", []), ("and a reward model", ["--reward_model_name_or_path", "reward"])):
    parser = TrlParser((grpo.GRPOScriptArguments, GRPOConfig, ModelConfig))
    script, training, model = parser.parse_args_and_config([*options, *more])
    try:
        grpo.main(script, training, model)
    except Given as given:
        print(f"a function {title}: the trainer gets {given}")
    except UnboundLocalError as error:
        print(f"a function {title}: {type(error).__name__}")
PYTHON
