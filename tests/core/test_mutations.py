"""Faults of the installation, put back on purpose: each is caught, by name, by the audit or by the batch's witnesses.

A mutation patches the code that adds the noise; beside it stand the words with which it is caught.
"""

import math
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from neftune_plugins import NoiseConfig, NoiseNotAppliedError, WrongNoiseError, install
from neftune_plugins.model import hooks, structure
from neftune_plugins.noise import Layout
from neftune_plugins.proof import examples_of
from tests.support.installing import untrained
from tests.support.models import PAD, examples, padded
from tests.support.proving import DIM, EncoderDecoder, Normed, Scaled, hooked

LENGTHS = [40, 23, 31]
CONFIG = NoiseConfig(alpha=5.0, seed=3, audit="stop")
Patch = Callable[[pytest.MonkeyPatch], None]


def batch() -> dict[str, Tensor]:
    ids, mask = padded(examples(LENGTHS))
    return {"input_ids": ids, "attention_mask": mask}


def drawn(change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> Patch:
    """The keys and the scales are changed."""
    original = hooks.keyed

    def keyed(*args: Any) -> tuple[Tensor, Tensor, Tensor | None]:
        keys, scales, tokens_3 = original(*args)
        return *change(keys, scales), tokens_3

    return lambda monkeypatch: monkeypatch.setattr(hooks, "keyed", keyed)


def scales(change: Callable[[Tensor], Tensor]) -> Patch:
    return drawn(lambda keys, scales: (keys, change(scales)))


def keys(change: Callable[[Tensor], Tensor]) -> Patch:
    return drawn(lambda keys, scales: (change(keys), scales))


def added(change: Callable[[Tensor, Tensor], Tensor]) -> Patch:
    """What comes out of the embedding is `change(clean, noisy)`."""
    original = hooks.EmbeddingHook.__call__

    def call(self: Any, module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> Tensor:
        clean = output.clone()
        return change(clean, original(self, module, args, kwargs, output))

    return lambda monkeypatch: monkeypatch.setattr(hooks.EmbeddingHook, "__call__", call)


def even(noisy: Tensor) -> Tensor:
    """True in every other column."""
    return (torch.arange(noisy.shape[1]) % 2 == 0)[None, :, None]


MUTANTS: dict[str, tuple[Patch, str]] = {
    "no noise": (added(lambda clean, noisy: clean), "no noise entered the model"),
    "half": (scales(lambda scale: scale / 2), r"has 0\.5\d* of the noise"),
    "a tenth more": (scales(lambda scale: scale * 1.1), r"has 1\.\d+ of the noise"),
    "twice": (added(lambda clean, noisy: 2 * noisy - clean), r"has (2\.0|1\.9)\d* of the noise"),
    "wrong sign": (added(lambda clean, noisy: 2 * clean - noisy), "has the opposite sign"),
    "width without its root": (scales(lambda scale: scale / math.sqrt(DIM)), r"has 0\.12\d of the noise"),
    "L of the longest row": (scales(lambda scale: scale.clamp(max=5 / math.sqrt(40 * DIM))), r"right for L = 4\d"),
    "L of the first row for all": (scales(lambda scale: scale[:1].expand_as(scale).contiguous()), "of the noise"),
    "noise on padding": (scales(lambda scale: scale.clamp(min=5 / math.sqrt(40 * DIM))), "padding has noise"),
    "first tokens left out": (scales(lambda scale: scale * (torch.arange(scale.shape[1]) > 7)), "tokens without noise"),
    "last row left out": (
        scales(lambda scale: scale * (torch.arange(len(scale)) < 2)[:, None]),
        "31 tokens without noise",
    ),
    "every other token": (added(lambda clean, noisy: torch.where(even(noisy), noisy, clean)), "tokens without noise"),
    "half of the channels": (
        added(lambda clean, noisy: torch.where(torch.arange(DIM) < DIM // 2, noisy, clean)),
        r"has 0\.7\d* of the noise",
    ),
    "keys swapped between rows": (keys(lambda key: key.roll(1, 0)), "is not what is specified"),
    "keys one token late": (keys(lambda key: key.roll(1, 1)), "is not what is specified"),
    "one key for all tokens": (keys(lambda key: key[:, :1].expand_as(key).contiguous()), "is not what is specified"),
    "channels reversed": (
        added(lambda clean, noisy: clean + (noisy - clean).flip(-1)),
        "is not what is specified",
    ),
    "the same noise in every channel": (
        added(lambda clean, noisy: clean + (noisy - clean)[..., :1]),
        "is not what is specified|of the noise",
    ),
    "only positive": (added(lambda clean, noisy: clean + (noisy - clean).abs()), "is not what is specified"),
    "another seed": (keys(lambda key: key ^ 12345), "is not what is specified"),
}


def trained(model: nn.Module, **given: Any) -> None:
    with install(model.train(), CONFIG) as handle:
        for handle.step in range(2):
            model(**(given or batch())).sum().backward()
        handle.metrics()


def test_without_a_mutation_nothing_is_caught():
    trained(Normed())


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_of_the_installation_is_caught(name, monkeypatch):
    patch, words = MUTANTS[name]
    patch(monkeypatch)
    with pytest.raises(WrongNoiseError, match=words):
        trained(Normed())


def test_a_stale_step_is_caught(monkeypatch):
    begin = hooks.Noise.begin_step
    monkeypatch.setattr(hooks.Noise, "begin_step", lambda self, step, alpha: begin(self, 0, alpha))
    model = Normed().train()
    with untrained(model, CONFIG) as handle:
        handle.step = 5
        with pytest.raises(WrongNoiseError, match="is not what is specified"):
            model(**batch())


def test_streams_that_are_exchanged_are_caught(monkeypatch):
    stream_key = hooks.stream_key
    monkeypatch.setattr(hooks, "stream_key", lambda seed, stream: stream_key(seed, 1 - stream))
    decoder, mask = padded(examples([11, 29, 5], seed=1))
    with pytest.raises(WrongNoiseError, match="is not what is specified"):
        trained(EncoderDecoder(), **batch(), decoder_input_ids=decoder, decoder_attention_mask=mask)


def test_noise_in_evaluation_is_caught(monkeypatch):
    monkeypatch.setattr(hooks.Noise, "lookup", always_noised)
    model = Normed()
    message = "noise where there should be none"
    with untrained(model.eval(), CONFIG), torch.no_grad(), pytest.raises(WrongNoiseError, match=message):
        model(**batch())


def always_noised(self: hooks.Noise, hook: Any, embedding: nn.Module, ids: Tensor, output: Tensor) -> Tensor:
    return self._noised(hook, embedding, ids, output, None)


def no_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader believes every batch, as it did before it was checked."""
    monkeypatch.setattr("neftune_plugins.noise.checks._check", lambda batch, reading: None)


def tree() -> Tensor:
    """A text of 24 tokens and four continuations of 4, of which none sees the text's last tokens."""
    seen = torch.ones(40, 40, dtype=torch.bool).tril()
    for start in range(24, 40, 4):
        seen[start:, 20:start] = False
    return seen[None, None]


def test_fault_1_a_model_in_evaluation_mode_trains_without_noise():
    model = Normed().eval()
    with untrained(model, CONFIG) as handle:
        handle.step = 0
        model(**batch()).sum().backward()
        with pytest.raises(NoiseNotAppliedError, match="evaluation mode"):
            handle.step = 1


def test_fault_2_a_model_whose_noise_a_second_install_took_away_is_caught():
    model, other = Normed().train(), Normed().train()
    other.embed_tokens = model.embed_tokens
    with untrained(model, CONFIG) as handle, untrained(other, CONFIG):
        handle._embedding_hooks.remove()  # as the second install did
        handle.step = 0
        with pytest.raises(NoiseNotAppliedError, match="a training forward pass of Normed had no noise"):
            model(**batch())


class Distilled(nn.Module):
    """A student that learns from a frozen teacher, which comes first."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher, self.student = Normed().requires_grad_(False), Normed()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        with torch.no_grad():
            self.teacher(input_ids, attention_mask=attention_mask)
        return self.student(input_ids, attention_mask=attention_mask)


def test_fault_6_noise_in_the_teacher_in_place_of_the_student_is_caught(monkeypatch):
    monkeypatch.setattr(structure, "_of_the_trained", lambda wrapper, first: first)
    with pytest.raises(NoiseNotAppliedError, match="the model in it was called only without gradients"):
        trained(Distilled())


def test_fault_4_and_22_lengths_of_a_whole_row_are_caught(monkeypatch):
    """Packed rows whose positions are dropped."""
    ids = torch.tensor(examples([40]))
    positions = torch.tensor([[*range(10), *range(30)]])
    layout_of = hooks.Noise.__init__

    def init(self: hooks.Noise, *args: Any, layout: Any, **options: Any) -> None:
        layout_of(self, *args, layout=lambda given: layout({**given, "position_ids": None}), **options)

    monkeypatch.setattr(hooks.Noise, "__init__", init)
    with pytest.raises(WrongNoiseError, match="an example of L = 10"):
        trained(Normed(), input_ids=ids, position_ids=positions)


def test_fault_5_a_mask_that_is_misread_is_caught(monkeypatch):
    no_checks(monkeypatch)
    scales(lambda scale: scale * 0)(monkeypatch)
    ids, mask = padded(examples(LENGTHS))
    with pytest.raises(WrongNoiseError, match="no noise entered"):
        trained(Normed(), input_ids=ids, attention_mask=(1 - mask.float()) * -10000)


def test_fault_7_native_noise_beside_ours_is_caught():
    model = hooked(Normed(), lambda output: torch.empty_like(output).uniform_(-1, 1) * 5 / math.sqrt(40 * DIM))
    with pytest.raises(WrongNoiseError, match=r"has 1\.4\d* of the noise"):
        trained(model)


def test_fault_20_noise_inside_a_trained_adapter_is_caught(monkeypatch):
    model = Normed(embedding=Scaled(0.43))
    monkeypatch.setattr(
        sys.modules["neftune_plugins.model.install"], "_embeddings", lambda model: [model.embed_tokens.base_layer]
    )
    with pytest.raises(WrongNoiseError, match=r"has 0\.4\d* of the noise.*added on embed_tokens\.base_layer"):
        trained(model)


def test_fault_21_branching_rows_read_as_packing_are_caught(monkeypatch):
    no_checks(monkeypatch)
    with pytest.raises(WrongNoiseError, match="an example of L = 40"):
        trained(Normed(), input_ids=torch.tensor(examples([40])), attention_mask=tree())
    found = examples_of({"attention_mask": tree()}, torch.tensor(examples([40])), pad_token_id=PAD)
    assert not isinstance(found, str) and found.lengths == [[40]]


def test_fault_24_padding_that_looks_like_an_example_is_caught(monkeypatch):
    positions = torch.tensor([[*range(30), *range(10)]])
    ids = torch.tensor(examples([40]))
    ids[:, 30:] = 0
    keep = hooks.Noise.__init__

    def init(self: hooks.Noise, *args: Any, layout: Any, **options: Any) -> None:
        def read(given: Any) -> Layout:
            return layout({**given, "input_ids": given["input_ids"].clamp(min=7)})

        keep(self, *args, layout=read, **options)

    monkeypatch.setattr(hooks.Noise, "__init__", init)
    model = Normed()
    model.config.pad_token_id = 96
    with pytest.raises(WrongNoiseError, match="padding has noise"):
        trained(model, input_ids=ids, position_ids=positions)
