"""Instruction fine-tuning with the arguments of TrainingArguments, as docs/results.md measures it by `neftune sweep`.

python benchmarks/instruct.py --model MODEL --rows ROWS.jsonl --output_dir FOLDER --neftune_noise_alpha 5

Rows are as `neftune_plugins.sweep.measure` takes them: instructions go through the model's chat template, and the loss
is on the answers alone.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neftune_transformers import NEFTuneCallback
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
)

from neftune_plugins.sweep.rows import read

IGNORED = -100


@dataclass
class Arguments:
    """Besides those of TrainingArguments."""

    model: str
    rows: str
    neftune_noise_type: str = "uniform"
    neftune_noise_length: str = "sequence"


def train() -> None:
    """Train, and leave model and tokenizer in `--output_dir`."""
    parser = HfArgumentParser((Arguments, TrainingArguments))
    own: Arguments
    training: TrainingArguments
    own, training = parser.parse_args_into_dataclasses()
    tokenizer = AutoTokenizer.from_pretrained(own.model)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token  # the attention mask tells which are padding
    trainer = Trainer(
        model=AutoModelForCausalLM.from_pretrained(own.model, torch_dtype="float32"),
        args=training,
        train_dataset=_dataset(Path(own.rows), tokenizer),
        data_collator=DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=IGNORED),
        callbacks=[NEFTuneCallback(type=own.neftune_noise_type, length=own.neftune_noise_length)]
        if training.neftune_noise_alpha
        else [],
    )
    trainer.train()
    trainer.save_model()
    tokenizer.save_pretrained(training.output_dir)


def _dataset(rows: Path, tokenizer: Any) -> list[dict[str, list[int]]]:
    encoded = [row.encode(tokenizer) for row in read(rows, "chat")]
    return [{"input_ids": prompt + answer, "labels": [IGNORED] * len(prompt) + answer} for prompt, answer in encoded]


if __name__ == "__main__":
    train()
