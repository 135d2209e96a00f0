#!/usr/bin/env bash
# Hooks on the transformer inside a SentenceTransformer never fire
#
# Guess:   The transformer inside a SentenceTransformer is called like any module, once for each column of the data.
# Happens: Its forward method is called directly, so no hook of that module fires, in training or in encode(); hooks
#          of the modules inside it do. A row of anchor, positive and negative makes two calls: positives and
#          negatives are merged, after each was padded to its own longest text. The merge pads with id 0, whatever the
#          tokenizer's pad id is, so one row can end in two kinds of padding.
# Matters: To anybody who hooks the model to see its batches (noise, profiling, offloading), or computes lengths from
#          the pad id.
# With:    sentence-transformers==6.2.0 transformers==5.24.0 accelerate==1.15.0 datasets==5.2.0 torch==2.14.1
# Seen:    2026-11-27
# | encode: hooks of the model fire 0, of its embeddings 1
# | training step with 3 columns: hooks of the model fire 0, of its embeddings 2
# |   ids (pad id 2): [[3, 4], [5, 2]]
# |   ids (pad id 2): [[3, 4, 5, 0, 0], [6, 2, 2, 0, 0], [7, 2, 2, 2, 2], [3, 4, 5, 6, 7]]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
finding "${BASH_SOURCE[0]}" <<'PYTHON'
import contextlib
import os

from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.losses import MultipleNegativesRankingLoss
from sentence_transformers.models import Pooling, Transformer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

words = Tokenizer(
    models.WordLevel({word: number for number, word in enumerate("<unk> <eos> <pad> a b c d e".split())}, "<unk>")
)
words.pre_tokenizer = pre_tokenizers.Whitespace()
PreTrainedTokenizerFast(
    tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
).save_pretrained("model")
config = BertConfig(
    vocab_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, pad_token_id=2
)
BertModel(config).save_pretrained("model")

model = SentenceTransformer(modules=[Transformer("model"), Pooling(16)], device="cpu")
(inner,) = (module for module in model.modules() if isinstance(module, BertModel))
fired = {"model": 0, "embeddings": 0}
batches = []


def count(name, options):
    fired[name] += 1
    if name == "embeddings":
        batches.append(options["input_ids"].tolist())


inner.register_forward_pre_hook(lambda module, args, options: count("model", options), with_kwargs=True)
inner.embeddings.register_forward_pre_hook(lambda module, args, options: count("embeddings", options), with_kwargs=True)


def report(what):
    print(f"{what}: hooks of the model fire {fired['model']}, of its embeddings {fired['embeddings']}")
    fired.update(model=0, embeddings=0)


model.encode(["a b c"], show_progress_bar=False)
report("encode")
batches.clear()
columns = Dataset.from_dict({"anchor": ["a b", "c"], "positive": ["a b c", "d"], "negative": ["e", "a b c d e"]})
arguments = SentenceTransformerTrainingArguments(
    output_dir="output",
    max_steps=1,
    per_device_train_batch_size=2,
    save_strategy="no",
    logging_strategy="no",
    report_to="none",
    use_cpu=True,
    disable_tqdm=True,
)
with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing):
    loss = MultipleNegativesRankingLoss(model)
    SentenceTransformerTrainer(model, arguments, train_dataset=columns, loss=loss).train()
report("training step with 3 columns")
for batch in batches:
    print(f"  ids (pad id 2): {batch}")
PYTHON
