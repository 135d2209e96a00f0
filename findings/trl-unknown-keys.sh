#!/usr/bin/env bash
# TRL's script for SFT ignores unknown keys of its configuration file; trl sft refuses the same file
#
# Guess:   `trl sft --config` and Python or `accelerate launch` with TRL's script for SFT read a file in the same way.
# Happens: The script passes over keys that it does not know. `trl sft` takes them for options of accelerate and stops.
# Matters: To anybody who launches the script by accelerate or torchrun: a misspelt key trains with the default.
# With:    trl==1.16.0 transformers==5.24.0 accelerate==1.15.0 datasets==5.2.0 torch==2.14.1
# Seen:    2026-11-27
# | learning_rate: 0.5, by the script: exit status 0, trained with 0.5
# | learning_ratee: 0.5, by the script: exit status 0, trained with 2e-05
# | learning_ratee: 0.5, by trl sft: exit status 2, unrecognized arguments: --learning_ratee
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
finding "${BASH_SOURCE[0]}" <<'PYTHON'
import json
import subprocess
import sys
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

words = Tokenizer(WordLevel({word: number for number, word in enumerate(("<pad>", "<unk>", "</s>", "a", "b"))}, "<unk>"))
words.pre_tokenizer = Whitespace()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", unk_token="<unk>", eos_token="</s>")
tokenizer.save_pretrained("model")
config = LlamaConfig(vocab_size=8, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
LlamaForCausalLM(config).save_pretrained("model")
Path("data").mkdir()
Path("data/train.jsonl").write_text(json.dumps({"text": "a b a b"}) + "\n")


def run(key, *command):
    file = Path(f"{key}.yaml")
    file.write_text(
        f"model_name_or_path: model\ndataset_name: data\noutput_dir: {key}\nuse_cpu: true\nbf16: false\n{key}: 0.5\n"
        "max_steps: 1\nlogging_steps: 1\nreport_to: none\nlr_scheduler_type: constant\n"
    )
    return subprocess.run([*command, "--config", file], capture_output=True, text=True, check=False)


for key in ("learning_rate", "learning_ratee"):
    ended = run(key, sys.executable, "-m", "trl.scripts.sft")
    state = json.loads(Path(key, "checkpoint-1", "trainer_state.json").read_text())
    rate = state["log_history"][0]["learning_rate"]
    print(f"{key}: 0.5, by the script: exit status {ended.returncode}, trained with {rate}")
ended = run("learning_ratee", Path(sys.executable).parent / "trl", "sft")
error = next((line.partition("error: ")[2] for line in ended.stderr.splitlines() if "error: " in line), "no error")
print(f"learning_ratee: 0.5, by trl sft: exit status {ended.returncode}, {error}")
PYTHON
