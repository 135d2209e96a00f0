"""The instrument that measures the noise from outside, on models of torch alone."""

import math
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from neftune_plugins import NoiseConfig, install
from neftune_plugins.proof import Blind, Measurement, Route, Watch, examples_of, measure, repeatable
from tests.support.installing import untrained
from tests.support.models import PAD, ToyModel, examples, padded
from tests.support.proving import DIM, VOCABULARY, EncoderDecoder, Normed, Scaled, hooked

LENGTHS = [40, 23, 31]
CONFIG = NoiseConfig(alpha=5.0, seed=3)
# Of the root mean square of 23 x 64 uniform values: 5 standard deviations.
NEAR = 5 * 0.45 / math.sqrt(23 * DIM)


def ids_and_mask(side: str = "right") -> dict[str, Tensor]:
    ids, mask = padded(examples(LENGTHS), side=side)
    return {"input_ids": ids, "attention_mask": mask}


def native(output: Tensor, alpha: float = 5.0) -> Tensor:
    """The frameworks' own: L is the width of the batch, and padding is noised."""
    return torch.empty_like(output).uniform_(-1, 1) * alpha / math.sqrt(output.shape[1] * output.shape[2])


def measured(model: nn.Module, **batch: Any) -> Measurement:
    found = measure(model, (), batch, 5.0)
    assert isinstance(found, Measurement), found
    return found


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("factor", [1.0, 8.0])
def test_the_installed_noise_is_the_papers(side, factor):
    model = Normed().train()
    with untrained(model, CONFIG):
        found = measured(model, **ids_and_mask(side))
    assert found.ratios == pytest.approx([1.0] * 3, abs=NEAR)
    assert found.padding == 0
    [stream] = found.streams
    assert (stream.lookup, stream.consumer) == ("embed_tokens", "norm")
    model.factor = factor
    with untrained(model, CONFIG):
        assert measured(model, **ids_and_mask(side)).ratios == pytest.approx([factor] * 3, abs=factor * NEAR)


def test_without_noise_it_measures_none_and_of_dropout_nothing():
    model = Normed().train()
    assert measured(model, **ids_and_mask()).ratios == [0.0] * 3
    assert measured(model, **ids_and_mask()).streams[0].examples[0].own_length == math.inf


def test_the_native_hook_is_seen_for_what_it_is():
    model = hooked(Normed(), native).train()
    found = measured(model, **ids_and_mask())
    expected = [math.sqrt(length / max(LENGTHS)) for length in LENGTHS]
    assert found.ratios == pytest.approx(expected, abs=NEAR)
    assert found.padding == pytest.approx(1.0, abs=0.02)
    # Noise says itself for which length it is.
    assert found.streams[0].examples[1].own_length == pytest.approx(40, rel=0.02)


def test_native_noise_beside_ours_does_not_cancel():
    model = hooked(Normed(), native).train()
    with untrained(model, CONFIG):
        found = measured(model, **ids_and_mask())
    expected = [math.sqrt(1 + length / max(LENGTHS)) for length in LENGTHS]
    assert found.ratios == pytest.approx(expected, abs=2 * NEAR)


def test_nothing_of_the_model_changes():
    model = hooked(Normed(), native).train()
    before = {name: dict(vars(module)) for name, module in model.named_modules()}
    hooks = [dict(module._forward_hooks) for module in model.modules()]
    call, state = nn.Module.__call__, torch.get_rng_state()
    measured(model, **ids_and_mask())
    assert torch.equal(torch.get_rng_state(), state)
    assert nn.Module.__call__ is call
    assert {name: dict(vars(module)) for name, module in model.named_modules()} == before
    assert [dict(module._forward_hooks) for module in model.modules()] == hooks


def test_evaluation_and_gradient_free_passes_are_clean_and_noise_there_is_seen():
    model = Normed()
    with untrained(model.eval(), CONFIG):
        assert measured(model, **ids_and_mask()).ratios == [0.0] * 3
        with torch.no_grad():
            assert measured(model.train(), **ids_and_mask()).ratios == [0.0] * 3
    model.embed_tokens.register_forward_hook(lambda module, args, output: output + native(output))
    assert min(measured(model.eval(), **ids_and_mask()).ratios) > 0.5


def test_noise_inside_an_adapter_has_the_adapters_factor():
    embedding = Scaled(0.4)
    model = Normed(embedding=embedding).train()
    embedding.base_layer.register_forward_hook(lambda module, args, output: output + native(output))
    found = measured(model, input_ids=ids_and_mask()["input_ids"][:1])
    assert found.ratios == pytest.approx([0.4], abs=NEAR)
    assert found.streams[0].lookup == "embed_tokens"  # the adapter, not what it wraps


def test_encoder_and_decoder_are_measured_apart():
    model = EncoderDecoder().train()
    decoder, decoder_mask = padded(examples([11, 29, 5], seed=1))
    batch = ids_and_mask() | {"decoder_input_ids": decoder, "decoder_attention_mask": decoder_mask}
    with untrained(model, CONFIG):
        found = measured(model, **batch)
        assert [example.length for stream in found.streams for example in stream.examples] == [*LENGTHS, 11, 29, 5]
        assert found.ratios == pytest.approx([1.0] * 6, abs=2 * NEAR)
    model.encoder.embed_tokens.register_forward_hook(lambda module, args, output: output + native(output) / 2)
    first, second = measured(model, **batch).streams
    assert first.examples[0].ratio == pytest.approx(0.5, abs=NEAR)
    assert [example.ratio for example in second.examples] == [0.0] * 3


def test_a_forward_that_happens_anyway_is_the_noised_run():
    model = Normed().train()
    batch = ids_and_mask()
    with install(model, CONFIG) as handle:
        handle.step = 4
        watch = Watch(model)
        with watch:
            loss = model(**batch).sum()
        captured = watch.compare((), batch)
        loss.backward()
        assert not isinstance(captured, Blind)
        found = captured.judged(5.0)
        assert isinstance(found, Measurement)
        assert found.ratios == pytest.approx([1.0] * 3, abs=NEAR)


class Seeing(nn.Module):
    """Looks the tokens up, and then reads an image in a tensor of the same shape (Idefics 3 with equal widths)."""

    def __init__(self) -> None:
        super().__init__()
        self.text, self.vision = Normed(), nn.Linear(DIM, DIM)

    def get_input_embeddings(self) -> nn.Module:
        return self.text.embed_tokens

    def forward(self, input_ids: Tensor, image: Tensor, attention_mask: Tensor) -> Tensor:
        embeddings_BLD = self.text.embed_tokens(input_ids)
        return self.text.norm(embeddings_BLD + self.vision(image)).sum()


def test_a_module_that_does_not_use_the_lookup_is_no_proof():
    model, batch = Seeing().train(), ids_and_mask()
    image = torch.rand(*batch["input_ids"].shape, DIM)
    assert "first module that is called" not in str(measure(model, (), {**batch, "image": image}, 5.0))
    with install(model, CONFIG) as handle:
        handle.step = 0
        found = measure(model, (), {**batch, "image": image}, 5.0)
        assert isinstance(found, Blind) and "vision, the first module" in found.reason
        model(image=image, **batch).backward()  # the audit does not stop it


class Columns(nn.Module):
    """A loss over columns of features, to which it adds its results, as in sentence-transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Normed()

    def forward(self, columns: list[dict[str, Tensor]]) -> Tensor:
        for features in columns:
            features["sentence"] = self.model(**features)
        return torch.stack([features["sentence"].sum() for features in columns])


def test_what_a_forward_writes_into_its_arguments_is_not_in_the_second_one():
    model, columns = Columns().train(), [ids_and_mask(), ids_and_mask("left")]
    hooked(model.model, native)
    again = repeatable((columns,), {})
    assert again is not None
    with Watch(model) as watch:
        model(columns)
    found = watch.compare(*again)
    assert not isinstance(found, Blind), found
    found = found.judged(5.0)
    assert isinstance(found, Measurement), found
    assert len(found.streams) == 2 and all(stream.padding > 0 for stream in found.streams)


def test_several_forwards_of_a_model_with_installed_noise_in_one_call_of_a_loss():
    """The first of them ends in the clean pass, in which nothing is to miss its noise."""
    model, columns = Columns().train(), [ids_and_mask(), ids_and_mask("left")]
    again = repeatable((columns,), {})
    assert again is not None
    with install(model.model, CONFIG) as handle:
        handle.step = 0
        with handle.training_forwards():  # as the loss of the adapter for sentence-transformers
            with Watch(model) as watch:
                model(columns)
            found = watch.compare(*again)
    assert not isinstance(found, Blind), found
    found = found.judged(5.0)
    assert isinstance(found, Measurement), found
    assert len(found.streams) == 2
    assert found.ratios == pytest.approx([1.0] * 6, abs=NEAR)


def test_it_says_where_it_cannot_see():
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(VOCABULARY, DIM))

        def forward(self, input_ids: Tensor) -> Tensor:
            return nn.functional.embedding(input_ids, self.weight).sum()

    found = measure(Functional(), (), {"input_ids": ids_and_mask()["input_ids"]}, 5.0)
    assert isinstance(found, Blind) and "no module of Functional was called with the looked-up embeddings" in str(found)
    toy = ToyModel().train()
    with untrained(toy, CONFIG):
        found = measure(toy, (), ids_and_mask(), 5.0)
    assert isinstance(found, Blind) and "does more with the embeddings than to multiply and to add" in str(found)


def test_a_compiled_model_runs_eagerly_or_is_blind():
    model = Normed().train()
    compiled = torch.compile(model, backend="eager")
    with untrained(model, CONFIG):
        assert measured(compiled, **ids_and_mask()).ratios == pytest.approx([1.0] * 3, abs=NEAR)
    torch._dynamo.reset()
    outer = nn.ModuleDict({"inner": torch.compile(Normed(), backend="eager")}).train()
    outer.forward = lambda **batch: outer["inner"](**batch)  # type: ignore[method-assign, assignment]
    outer(**ids_and_mask())
    watch = Watch(outer)
    with watch:
        pass
    assert "inner is compiled" in str(watch.compare((), ids_and_mask()))


def test_the_observer_ends_with_an_error_in_the_forward():
    model = Normed().train()
    route, call = Route(model), nn.Module.__call__
    with pytest.raises(IndexError):
        route.run((torch.tensor([[VOCABULARY]]),), {})
    assert nn.Module.__call__ is call


FLAT = [*range(5), *range(9), *range(3)]
COLUMNS = [[0, 1, 2, 3, 4], list(range(5, 14)), [14, 15, 16]]


def pairs(lengths: list[int]) -> Tensor:
    """A mask (1, 1, L, L) of packed examples."""
    number = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    seen = (number[:, None] == number[None]) & torch.ones(len(number), len(number), dtype=torch.bool).tril()
    return seen[None, None]


SEEN = pairs([5, 9, 3])
NUMBERS = torch.repeat_interleave(torch.arange(3), torch.tensor([5, 9, 3]))[None]


@pytest.mark.parametrize(
    "batch",
    [
        {"position_ids": torch.tensor([FLAT])},
        {"position_ids": torch.tensor(FLAT)},
        {"position_ids": torch.tensor([FLAT]), "attention_mask": torch.ones(1, 17)},
        {"position_ids": torch.tensor([FLAT]).expand(3, 1, 17)},
        {"attention_mask": NUMBERS + 1},
        {"attention_mask": SEEN},
        {"attention_mask": SEEN.float()},
        {"attention_mask": torch.where(SEEN, 0.0, torch.finfo(torch.float32).min)},
        {"cu_seq_lens_q": torch.tensor([0, 5, 14, 17])},
        {"cu_seq_lens_q": [0, 5, 14, 17]},
        {"seq_idx": NUMBERS},
    ],
    ids=str,
)
def test_packed_examples_are_read_from_whatever_the_batch_has(batch):
    ids = torch.tensor([examples([17])[0]])
    found = examples_of(batch, ids, pad_token_id=PAD)
    assert not isinstance(found, str) and (found.rows, found.doubts) == ([COLUMNS], [])


@pytest.mark.parametrize(
    ("batch", "pad", "ends", "expected"),
    [
        ({}, 0, (), [[0, 1, 2, 3]]),
        ({}, None, (), [[0, 1, 2, 3, 4, 5]]),
        ({}, 0, (0,), [[0, 1, 2, 3, 4]]),  # the first padding id ends the text
        ({"attention_mask": torch.tensor([[1, 1, 1, 0, 0, 0]])}, 0, (), [[0, 1, 2]]),
        ({"attention_mask": torch.tensor([[1, 1, 0, 1, 0, 0]])}, 0, (), [[0, 1, 3]]),
        ({"position_ids": torch.tensor([[0, 1, 0, 1, 0, 1]])}, 0, (), [[0, 1], [2, 3]]),
        ({"position_ids": torch.tensor([[0, 1, 0, 1, 0, 1]])}, 50, (), [[0, 1], [2, 3]]),
        ({"labels": torch.tensor([[7, 8, 9, 10, 0, 0]])}, 0, (), [[0, 1, 2, 3]]),  # labels that were padded with 0
        (
            {"position_ids": torch.tensor([[0, 1, 0, 1, 0, 1]]), "labels": torch.tensor([[7, 8, 9, 10, 0, 0]])},
            50,
            (),
            [[0, 1], [2, 3], [4, 5]],
        ),
    ],
    ids=str,
)
def test_padding(batch, pad, ends, expected):
    found = examples_of(batch, torch.tensor([[7, 8, 9, 10, 0, 0]]), pad_token_id=pad, eos_token_ids=ends)
    assert not isinstance(found, str) and found.rows == [expected]


# The columns before those that are trained, and the last.
KEPT = torch.tensor([False, True, False, True, True, False, False, True])


@pytest.mark.parametrize(
    "labels",
    [
        {"labels": torch.tensor([[-100, -100, 7, -100, 9, 0, -100, -100]])},
        {"labels": torch.tensor([[-100, 7, -100, 9, 0, -100, -100]]), "logits_to_keep": 7},
        {"labels": torch.tensor([[-100, 7, 9, 0]]), "logits_to_keep": KEPT},
    ],
    ids=["whole", "last columns", "compacted"],
)
def test_labels_are_read_at_their_columns(labels):
    """ms-swift 4.6 makes them narrower than the ids. Here they train an id 0, which would be padding otherwise."""
    ids = torch.tensor([[5, 6, 7, 8, 9, 0, 0, 0]])
    batch = {"position_ids": torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4]])}
    read = examples_of(batch | labels, ids, pad_token_id=3)
    assert not isinstance(read, str) and read.rows == [[[0, 1, 2], [3, 4, 5]]]
    narrow = labels["labels"].masked_fill(labels["labels"] == 0, -100)
    unread = examples_of(batch | {"labels": narrow[:, :4]}, ids, pad_token_id=3)  # nothing says of which columns
    assert not isinstance(unread, str) and unread.rows == [[[0, 1, 2], [3, 4]]]


def test_a_slice_has_the_lengths_of_the_whole_row():
    ids, mask = padded(examples(LENGTHS))
    batch = {"outer": {"input_ids": ids, "attention_mask": mask}}
    found = examples_of(batch, ids[:, 20:40].clone(), pad_token_id=PAD)
    assert not isinstance(found, str)
    assert found.lengths == [[40], [23], [31]]
    assert [columns[0] for columns in found.rows] == [[*range(20)], [0, 1, 2], [*range(11)]]


def test_a_branching_row_is_one_example_and_contradictions_are_named():
    ids = torch.tensor([examples([17])[0]])
    tree = torch.ones(17, 17, dtype=torch.bool).tril()
    tree[12:, 9:12] = False  # two continuations of one text
    found = examples_of({"attention_mask": tree[None, None]}, ids)
    assert not isinstance(found, str) and found.lengths == [[17]]
    found = examples_of({"attention_mask": SEEN, "position_ids": torch.tensor([[*range(3), *range(14)]])}, ids)
    assert not isinstance(found, str)
    assert found.doubts == ["row 0: position_ids begins an example at column 3, inside one of attention_mask"]


def test_an_unknown_form_has_a_reason():
    ids = torch.tensor([[5, 6, 7]])
    assert examples_of({"attention_mask": torch.ones(1, 3, 3)}, ids) == (
        "attention_mask has the shape (1, 3, 3), and the ids (1, 3)"
    )
    assert examples_of({"attention_mask": object()}, ids) == "attention_mask is a object"


def rank_main(rank: int, folder: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.manual_seed(0)
    model = Normed().train()
    wrapped = nn.parallel.DistributedDataParallel(model)
    batch = {"input_ids": torch.tensor(examples([30 + 10 * rank], seed=rank))}
    with install(model, CONFIG) as handle:
        handle.step = 0
        watch = Watch(wrapped)
        with watch:
            loss = wrapped(**batch).sum()
        captured = watch.compare((), batch)
        loss.backward()
    assert not isinstance(captured, Blind)
    found = captured.judged(5.0)
    assert isinstance(found, Measurement)
    torch.save((found.ratios, model.norm.weight.grad), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def test_under_ddp_the_gradients_stay_those_of_all_ranks(tmp_path):
    spawned = multiprocessing.get_context("spawn")
    processes = [spawned.Process(target=rank_main, args=(rank, tmp_path)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
        assert process.exitcode == 0
    (one, gradient), (other, same) = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert [*one, *other] == pytest.approx([1.0, 1.0], abs=2 * NEAR)
    assert torch.equal(gradient, same)
