"""A causal language model small enough to train on a CPU in seconds, made without any download."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

PAD, BOS, EOS, UNK = "<pad>", "<s>", "</s>", "<unk>"
VOCAB_SIZE = 512

# ChatML with this tokenizer's own begin and end tokens, so that the end of a turn is the end-of-sequence token.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ bos_token + message['role'] + '\\n' + message['content'] + eos_token + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ bos_token + 'assistant\\n' }}{% endif %}"
)

# The tokenizer learns its merges from this text. Its alphabet is bytes, so it encodes any other text too.
TEXT = """\
Below is an instruction that describes a task, paired with an input that provides further context.
Write a response that appropriately completes the request. The user asks a question, and the assistant answers it.
The ferry leaves the northern harbour every morning at seven and returns before the evening tide turns.
A small garden needs water, patience and a little shade; the beans climb, the onions wait, the mint goes everywhere.
When the old bridge was closed for repair, the children of the village learned the names of all the stepping stones.
Bread rises because yeast eats sugar and breathes out gas, and the dough is too stubborn to let it go.
To find the mean of a list of numbers, add them together and divide the sum by how many there are.
Nobody could say who had wound the station clock, yet each Monday it was right again, and each Friday it was late.
She explained that light takes about eight minutes to travel from the sun, which is longer than most good jokes.
Sort the words by their length, then by the alphabet, and show only the first three of them in the final answer.
The letter was written in pencil: please feed the cat, water the fern, and do not believe the barometer.
"""


def make_tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer of about 512 tokens on `TEXT`; `decode(encode(text)) == text` for any text."""
    tokenizer = Tokenizer(models.BPE(unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[PAD, BOS, EOS, UNK],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT.splitlines(keepends=True), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
    )


def make_tiny_model(folder: Path, *, hidden_size: int = 64, num_layers: int = 2, seed: int = 0) -> Path:
    """Save a random Llama and its tokenizer into `folder` and return it; the global RNG state is not touched.

    Embedding (512, hidden_size), 4 attention heads, output layer not tied. The same `seed` gives the same weights.

    Raises:
        ValueError: `hidden_size` does not divide into 4 heads of an even width (rotary positions come in pairs).
    """
    if hidden_size <= 0 or hidden_size % 8:
        raise ValueError(f"hidden_size is {hidden_size}, but 4 heads of an even width need a multiple of 8")
    tokenizer = make_tiny_tokenizer()
    special_ids = {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        initializer_range=0.02,
        tie_word_embeddings=False,
        **special_ids,
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also reseed the accelerators
        model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(**special_ids)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Path(folder)
