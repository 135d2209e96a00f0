"""Trainers of sentence-transformers: several columns, merged columns, and losses that cache gradients."""

import pytest
import torch
from datasets import Dataset
from neftune_transformers import NEFTuneCallback
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor, nn
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, TrainerCallback

from tests.support import specification

sentence_transformers = pytest.importorskip("sentence_transformers")
from sentence_transformers import (  # noqa: E402
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
    losses,
)

ALPHA, SEED = 5.0, 7
WORDS = ["[PAD]", "[UNK]", *(f"w{number}" for number in range(60))]
PAD = 2  # not 0, which sentence-transformers pads merged columns with


@pytest.fixture
def model(tmp_path):
    torch.manual_seed(0)
    vocabulary = dict(zip([WORDS[2], WORDS[1], WORDS[0], *WORDS[3:]], range(len(WORDS)), strict=True))
    raw = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    raw.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]")
    assert tokenizer.pad_token_id == PAD
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        pad_token_id=PAD,
        hidden_dropout_prob=0,
        attention_probs_dropout_prob=0,
    )
    BertModel(config).save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    return SentenceTransformer(str(tmp_path / "bert"), device="cpu")


def rows() -> Dataset:
    generator = torch.Generator().manual_seed(0)

    def text(length: int) -> str:
        return " ".join(f"w{int(word)}" for word in torch.randint(1, 60, (length,), generator=generator))

    lengths = [3, 9, 5, 7, 12, 4, 6, 8]
    return Dataset.from_dict({"anchor": [text(length) for length in lengths], "positive": [text(5) for _ in lengths]})


class Seen:
    """What the lookup of words gave, as the next module is given it, and with which ids."""

    def __init__(self, model: nn.Module) -> None:
        embedding = next(module for module in model.modules() if hasattr(module, "word_embeddings")).word_embeddings
        self.calls: list[tuple[Tensor, Tensor, bool]] = []
        self.embedding = embedding
        self.hook = embedding.register_forward_hook(self)

    def __call__(self, module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
        clean = nn.functional.embedding(args[0], module.weight)
        self.calls.append((args[0].clone(), (output - clean).detach().clone(), torch.is_grad_enabled()))


def train(model, loss, tmp_path, *, data=None, steps=1):
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(tmp_path / "out"),
        max_steps=steps,
        per_device_train_batch_size=8,
        learning_rate=0.0,
        max_grad_norm=0,
        report_to=[],
        seed=SEED,
        use_cpu=True,
        save_strategy="no",
    )
    trainer = SentenceTransformerTrainer(
        model=model, args=arguments, train_dataset=data or rows(), loss=loss, callbacks=[NEFTuneCallback(alpha=ALPHA)]
    )
    gradients = {}
    trainer.create_optimizer()
    step = trainer.optimizer.step

    def keep(*args, **kwargs):
        gradients.update({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
        return step(*args, **kwargs)

    trainer.optimizer.step = keep
    seen = []

    # Behind our hook, which is installed when the training begins.
    class Attach(TrainerCallback):
        def on_train_begin(self, *args, **kwargs):
            seen.append(Seen(kwargs["model"]))

    trainer.add_callback(Attach())
    trainer.train()
    seen[0].hook.remove()
    return gradients, seen[0].calls


def assert_specified(calls, mask_ids=(0, PAD)):
    for ids, noise, _ in calls:
        for tokens, row in zip(ids, noise, strict=True):
            real = torch.tensor([token not in mask_ids for token in tokens.tolist()])
            want = specification.noise(tokens[real].tolist(), row.shape[-1], alpha=ALPHA, seed=SEED, step=0)
            torch.testing.assert_close(row[real], torch.tensor(want), rtol=0, atol=2e-6)
            assert not row[~real].any()


def test_every_column_has_the_specified_noise(model, tmp_path):
    _, calls = train(model, losses.MultipleNegativesRankingLoss(model), tmp_path)
    assert len(calls) >= 1
    assert_specified(calls)


@pytest.mark.parametrize("side", ["left", "right"])
def test_merged_columns_are_padded_with_id_0_whatever_the_tokenizer_pads_with(model, tmp_path, side):
    """sentence-transformers 6.2: positives and negatives become one batch, filled up on the right with id 0."""
    model.tokenizer.padding_side = side
    data = rows()
    data = data.add_column("negative", [" ".join(["w7"] * (1 + number % 3)) for number in range(len(data))])
    _, calls = train(model, losses.MultipleNegativesRankingLoss(model), tmp_path, data=data)
    anchors, merged = (ids for ids, _, _ in calls)
    assert len(merged) == 2 * len(anchors)
    negatives = merged[len(anchors) :]
    assert (negatives[:, -1] == 0).all()
    if side == "left":
        assert (negatives[:, 0] == PAD).any()
    assert_specified(calls)


def test_cached_losses_have_the_gradients_of_the_uncached_ones(model, tmp_path):
    want, _ = train(model, losses.MultipleNegativesRankingLoss(model), tmp_path)
    model.zero_grad()
    found, calls = train(model, losses.CachedMultipleNegativesRankingLoss(model, mini_batch_size=3), tmp_path)
    assert {graded for _, _, graded in calls} == {True, False}
    assert len({ids.shape[1] for ids, _, _ in calls}) > 1  # a mini-batch is cut to its longest text
    assert_specified(calls)
    assert want.keys() == found.keys()
    flat = [torch.cat([one[name].flatten() for name in want]) for one in (want, found)]
    assert nn.functional.cosine_similarity(*flat, dim=0) > 1 - 1e-6
    torch.testing.assert_close(flat[1], flat[0], rtol=1e-3, atol=1e-6)


def test_setfit_trains_with_noise(model, tmp_path):
    """SetFit gives callbacks its own object for the model, which is no module."""
    setfit = pytest.importorskip("setfit")
    from sklearn.linear_model import LogisticRegression

    generator = torch.Generator().manual_seed(0)
    texts = [" ".join(f"w{int(w)}" for w in torch.randint(1, 60, (3 + i,), generator=generator)) for i in range(8)]
    data = Dataset.from_dict({"text": texts, "label": [0, 1] * 4})
    arguments = setfit.TrainingArguments(
        output_dir=str(tmp_path / "out"),
        batch_size=4,
        max_steps=1,
        body_learning_rate=0.0,
        report_to="none",
        seed=SEED,
        save_strategy="no",
    )
    seen = []

    class Attach(TrainerCallback):
        def on_train_begin(self, *args, **kwargs):
            seen.append(Seen(kwargs["st_model"]))

        def on_train_end(self, *args, **kwargs):
            seen[0].hook.remove()  # the classifier is trained on embeddings without noise

    trainer = setfit.Trainer(
        model=setfit.SetFitModel(model_body=model, model_head=LogisticRegression()),
        args=arguments,
        train_dataset=data,
        callbacks=[NEFTuneCallback(alpha=ALPHA), Attach()],
    )
    trainer.train()
    assert seen[0].calls
    assert_specified(seen[0].calls)
