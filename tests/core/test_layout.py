"""Which tokens are real and belong together, from every form in which frameworks tell it."""

import math

import pytest
import torch
from torch import nn

from neftune_plugins import NoiseConfig, NoiseNotAppliedError, install
from neftune_plugins.noise import CheckedReader, check_layout, read_layout
from tests.support.models import PAD, ToyModel, examples, padded

LENGTHS = [5, 1, 9, 3]


def found(batch: dict[str, object]) -> list[list[list[int]]]:
    """The examples of each row as their token ids in order of position, by the layout's own account."""
    ids = batch["input_ids"]
    layout = CheckedReader()(batch)
    rows = []
    for i in range(ids.shape[0]):
        by_example: dict[int, dict[int, int]] = {}
        for t in range(ids.shape[1]):
            if layout.real_BL[i, t]:
                example = by_example.setdefault(int(layout.example_BL[i, t]), {})
                assert int(layout.position_BL[i, t]) not in example
                example[int(layout.position_BL[i, t])] = int(ids[i, t])
        for t in range(ids.shape[1]):
            if layout.real_BL[i, t]:
                assert int(layout.length_BL[i, t]) == len(by_example[int(layout.example_BL[i, t])])
        rows.append([[example[p] for p in range(len(example))] for example in by_example.values()])
    return rows


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float32, torch.uint8])
def test_0_1_mask(side, dtype):
    rows = examples(LENGTHS)
    ids, mask = padded(rows, side=side)
    assert found({"input_ids": ids, "attention_mask": mask.to(dtype)}) == [[row] for row in rows]


def test_0_1_mask_with_the_position_ids_that_generation_uses():
    rows = examples(LENGTHS)
    ids, mask = padded(rows, side="left")
    position_ids = (mask.cumsum(-1) - 1).masked_fill(mask == 0, 1)
    batch = {"input_ids": ids, "attention_mask": mask, "position_ids": position_ids, "pad_token_id": PAD}
    assert found(batch) == [[row] for row in rows]


def test_a_hole_in_a_0_1_mask_does_not_split_the_example():
    ids, mask = padded(examples([6]))
    mask[0, 2] = 0
    assert found({"input_ids": ids, "attention_mask": mask}) == [[[t for i, t in enumerate(ids[0].tolist()) if i != 2]]]


def test_nor_do_the_positions_around_it():
    mask = torch.tensor([[1, 1, 1, 0, 1, 1]])
    ids = torch.arange(4, 10)[None]
    for positions in ([[0, 1, 2, 3, 4, 5]], [[0, 1, 2, 1, 3, 4]]):  # with the hole counted, and as generation has them
        batch = {"input_ids": ids, "attention_mask": mask, "position_ids": torch.tensor(positions)}
        assert found(batch) == [[[4, 5, 6, 8, 9]]]


def test_positions_that_skip_some_do_not_split_the_example():
    """PoSE: a short example with the positions of a long one."""
    ids = torch.arange(4, 10)[None]
    batch = {"input_ids": ids, "position_ids": torch.tensor([[0, 1, 2, 1000, 1001, 1002]])}
    assert found(batch) == [ids.tolist()]


def test_an_example_begins_after_a_hole_too():
    ids = torch.arange(4, 10)[None]
    mask, positions = torch.tensor([[1, 1, 1, 0, 1, 1]]), torch.tensor([[0, 1, 2, 0, 1, 2]])
    assert found({"input_ids": ids, "attention_mask": mask, "position_ids": positions}) == [[[4, 5, 6], [8, 9]]]


def test_a_row_without_any_token_has_no_example():
    ids, mask = padded([*examples([4]), []])
    assert found({"input_ids": ids, "attention_mask": mask, "pad_token_id": PAD})[1] == []


def packed(tail: int = 4) -> tuple[list[list[int]], torch.Tensor, torch.Tensor, torch.Tensor]:
    """Examples in one row: ids, segment numbers 1..n with 0 on the padding, positions from 0; each (1, L)."""
    rows = examples(LENGTHS)
    ids = torch.tensor([[t for row in rows for t in row] + [PAD] * tail])
    segments = torch.tensor([[i + 1 for i, row in enumerate(rows) for _ in row] + [0] * tail])
    positions = torch.tensor([[p for row in rows for p in range(len(row))]])
    return rows, ids, segments, positions


def tails(kind: str, tail: int) -> torch.Tensor:
    return torch.arange(tail)[None] if kind == "range" else torch.zeros(1, tail, dtype=torch.int64)


def test_segment_mask():
    rows, ids, segments, _ = packed()
    assert found({"input_ids": ids, "attention_mask": segments}) == [rows]


@pytest.mark.parametrize("kind", ["range", "zeros"])
@pytest.mark.parametrize("mask", ["absent", "ones", "segments"])
def test_position_restarts(kind, mask):
    rows, ids, segments, positions = packed()
    batch = {
        "input_ids": ids,
        "position_ids": torch.cat([positions, tails(kind, 4)], 1),
        "attention_mask": {"absent": None, "ones": torch.ones_like(ids), "segments": segments}[mask],
        "pad_token_id": PAD,
    }
    assert found(batch) == [rows]


def test_position_restarts_in_two_rows_of_one_batch():
    rows, ids, _, positions = packed(tail=0)
    batch = {"input_ids": torch.cat([ids, ids.flip(1)]), "position_ids": torch.cat([positions, positions])}
    assert found(batch)[0] == rows
    assert [len(example) for example in found(batch)[1]] == LENGTHS


def test_cumulative_lengths():
    rows, ids, _, _ = packed()
    ends = torch.tensor([0, *torch.tensor(LENGTHS).cumsum(0).tolist()], dtype=torch.int32)
    assert found({"input_ids": ids, "cu_seq_lens_q": ends}) == [rows]


@pytest.mark.parametrize("form", ["bool", "additive", "additive bfloat16", "integer"])
@pytest.mark.parametrize("pattern", ["causal", "sliding window", "bidirectional"])
def test_mask_of_four_dimensions(form, pattern):
    rows, ids, segments, _ = packed()
    width = ids.shape[1]
    i, j = torch.arange(width)[:, None], torch.arange(width)
    visible = (segments[0][:, None] == segments[0]) & (segments[0] > 0)
    if pattern != "bidirectional":
        visible &= j <= i
    if pattern == "sliding window":
        visible &= i - j < 3
    if form == "bool":
        mask = visible[None, None]
    elif form == "integer":
        mask = visible[None, None].long()
    else:
        dtype = torch.bfloat16 if "bfloat16" in form else torch.float32
        mask = torch.zeros(1, 1, width, width, dtype=dtype).masked_fill(~visible, torch.finfo(dtype).min)
    assert found({"input_ids": ids, "attention_mask": mask}) == [rows]


def test_nothing_told_means_that_a_row_is_an_example():
    ids, _ = padded(examples([6, 6]))
    assert found({"input_ids": ids, "pad_token_id": PAD}) == [[row] for row in ids.tolist()]


def test_a_decoder_without_a_mask_ends_at_the_padding():
    rows = examples([5, 3])
    rows[0][0] = rows[1][0] = PAD  # T5 starts its decoder with the padding id
    ids, _ = padded(rows)
    assert found({"input_ids": ids, "pad_token_id": PAD, "is_decoder": True}) == [[row] for row in rows]


@pytest.mark.parametrize("eos", [(), (PAD,)], ids=["another eos", "pad is eos"])
@pytest.mark.parametrize("positions", [None, "counting on"])
def test_ids_alone_end_at_the_padding(eos, positions):
    """As the first stage of a pipeline gets them. Where the padding id also ends texts, the first of them does."""
    rows = [[5, 6, 7, 8, 9], [5, 6], [7]]
    ids, _ = padded(rows)
    batch = {"input_ids": ids, "pad_token_id": PAD, "eos_token_ids": eos}
    if positions:
        batch["position_ids"] = torch.arange(5)[None]
    assert found(batch) == [[row + [PAD] * (len(eos) if len(row) < 5 else 0)] for row in rows]


def test_ids_alone_that_are_padded_on_the_left_are_refused():
    ids, _ = padded(examples([6, 2]), side="left")
    with pytest.raises(NoiseNotAppliedError, match="begin with the padding id, and no attention_mask"):
        found({"input_ids": ids, "pad_token_id": PAD})
    stream = torch.tensor([[PAD, PAD, 5, 6]])  # two ends of texts, of which one was empty
    assert found({"input_ids": stream, "pad_token_id": PAD, "bos_token_ids": (PAD,)}) == [stream.tolist()]


@pytest.mark.parametrize("packed", [False, True], ids=["one example", "packed"])
@pytest.mark.parametrize("tail", [[0, 1, 2, 3], [0, 0, 0, 0], [-1, -1, -1, -1], "counting on"], ids=str)
@pytest.mark.parametrize("offsets", [False, True])
def test_a_tail_of_ids_0_is_padding_where_the_padding_id_is_another(packed, tail, offsets):
    """verl, Ulysses, ring attention: whoever cuts packed rows fills them up with 0."""
    rows = [[5, 6, 7], [8, 9, 0]] if packed else [[5, 6, 7, 8, 9]]  # an id 0 may be a word's
    positions = [p for row in rows for p in range(len(row))]
    positions += range(positions[-1] + 1, positions[-1] + 5) if tail == "counting on" else tail
    batch = {
        "input_ids": torch.tensor([[t for row in rows for t in row] + [0] * 4]),
        "position_ids": torch.tensor([positions]),
        "pad_token_id": 3,
    }
    if tail == "counting on":
        rows[-1] = [token for token in rows[-1] if token]  # which nobody can tell from padding
    elif offsets:
        batch["cu_seq_lens_q"] = torch.tensor([0, *torch.tensor([len(row) for row in rows]).cumsum(0).tolist()])
    assert found(batch) == [rows]


def test_a_tail_of_ids_0_that_is_trained_on_is_none():
    ids = torch.tensor([[5, 6, 0, 0]])
    batch = {"input_ids": ids, "position_ids": torch.arange(4)[None], "pad_token_id": 3}
    assert found(batch | {"labels": ids}) == [ids.tolist()]
    assert found(batch | {"labels": torch.tensor([[5, 6, -100, -100]])}) == [[[5, 6]]]


def narrowed(labels: torch.Tensor) -> dict[str, object]:
    """What ms-swift 4.6 gives the model (swift/trainers/mixin.py, prepare_logits_to_keep): of several rows the last
    columns of the labels, and their number; of one row the trained labels alone, and where their logits are."""
    if len(labels) > 1:
        kept = labels.shape[1] - int((labels != -100).int().argmax(-1).min()) + 1
        return {"labels": labels[:, -kept:], "logits_to_keep": kept}
    is_trained = (labels != -100)[0]
    compacted = nn.functional.pad(labels[:, is_trained], (1, 0), value=-100)
    return {"labels": compacted, "logits_to_keep": nn.functional.pad(is_trained[1:], (0, 1), value=True)}


NARROW_IDS = torch.tensor([[5, 6, 7, 8, 9, 0, 0, 0]])
NARROW_POSITIONS = torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4]])  # of the padding too, as some cutters count


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("last", [0, -100], ids=["trained", "padding"])
def test_labels_that_are_narrower_than_the_ids_are_read_at_their_columns(rows, last):
    """ms-swift 4.6: the last id 0 ends a text if it is trained on, and is padding if it is not."""
    labels = torch.tensor([[-100, -100, 7, -100, 9, last, -100, -100]]).repeat(rows, 1)
    batch = {"input_ids": NARROW_IDS.repeat(rows, 1), "position_ids": NARROW_POSITIONS.repeat(rows, 1)}
    given = batch | narrowed(labels)
    assert given["labels"].shape[1] < NARROW_IDS.shape[1]
    want = [[[5, 6, 7], [8, 9, 0] if last == 0 else [8, 9]]] * rows
    assert found(batch | {"labels": labels, "pad_token_id": 3}) == want
    assert found(given | {"pad_token_id": 3}) == want
    model = ToyModel()
    model.config.pad_token_id = 3
    with install(model.train(), NoiseConfig(alpha=5, seed=1)) as handle:
        handle.step = 0
        whole, narrow = model.noise(**batch, labels=labels), model.noise(**given)
        assert torch.equal(whole, narrow)
        assert whole[:, 5].any() == (last == 0)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("rows", [1, 3])
def test_a_mask_decides_whatever_the_width_of_the_labels(side, rows):
    texts = examples(LENGTHS)[:rows]
    ids, mask = padded(texts, side=side, width=9)
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :1] = -100
    batch = {"input_ids": ids, "attention_mask": mask, "pad_token_id": PAD}
    assert found(batch | narrowed(labels)) == [[text] for text in texts]


# M-RoPE: time, height and width of two examples, of which each has an image of 2 x 2 patches.
IMAGES = torch.tensor(
    [
        [0, 1, 2, 2, 2, 2, 4, 5, 0, 1, 1, 1, 1, 3],
        [0, 1, 2, 2, 3, 3, 4, 5, 0, 1, 1, 2, 2, 3],
        [0, 1, 2, 3, 2, 3, 4, 5, 0, 1, 2, 1, 2, 3],
    ]
)


@pytest.mark.parametrize("rows", [3, 4])
@pytest.mark.parametrize("first", ["time", "text"])
@pytest.mark.parametrize("mask", ["absent", "ones"])
def test_positions_of_images_in_packed_rows(rows, first, mask):
    """LLaMA-Factory puts the time, Qwen's own processing the position in the text before them."""
    text = torch.tensor([[*range(8), *range(6)]])
    positions = IMAGES if rows == 3 else torch.cat([text if first == "text" else IMAGES[:1], IMAGES])
    positions = torch.cat([positions, torch.arange(3).expand(rows, 3)], 1)[:, None]
    ids = torch.tensor([[*range(4, 18), PAD, PAD, PAD]])
    batch = {"input_ids": ids, "position_ids": positions, "pad_token_id": PAD}
    if mask == "ones":
        batch["attention_mask"] = torch.ones_like(ids)
    assert found(batch) == [[[*range(4, 12)], [*range(12, 18)]]]


def test_positions_of_images_beside_a_mask_of_a_padded_row():
    ids, mask = padded(examples([6, 4]), side="left")
    time = torch.tensor([[0, 1, 2, 2, 2, 4], [1, 1, 0, 1, 1, 2]])
    batch = {"input_ids": ids, "position_ids": time.expand(3, 2, 6), "attention_mask": mask}
    assert found(batch) == [[row[mask[i].bool()].tolist()] for i, row in enumerate(ids)]


def test_sound_beside_a_video_takes_time_back_but_opens_no_example():
    """Qwen2.5-Omni: two seconds of pictures, the same two seconds of sound."""
    ids = torch.arange(4, 13)[None]
    time = torch.tensor([[0, 1, 2, 2, 27, 27, 2, 15, 28]])
    assert found({"input_ids": ids, "position_ids": time.expand(3, 1, 9)}) == [ids.tolist()]


def test_positions_of_one_dimension_are_those_of_every_row():
    ids = torch.arange(4, 16).view(2, 6)
    batch = {"input_ids": ids, "position_ids": torch.tensor([0, 1, 2, 3, 0, 1])}
    assert found(batch) == [[row[:4].tolist(), row[4:].tolist()] for row in ids]


@pytest.mark.parametrize("first", [1, 2, 8], ids=["from 1", "RoBERTa", "from the padding id"])
def test_positions_that_do_not_count_from_0(first):
    ids = torch.arange(10, 20)[None]
    positions = torch.tensor([[*range(6), *range(4)]]) + first
    expected = [[[*range(10, 16)], [*range(16, 20)]]]
    assert found({"input_ids": ids, "position_ids": positions, "pad_token_id": 7}) == expected


def test_positions_that_count_the_padding_on_the_left():
    ids, mask = padded(examples([6, 2]), side="left")
    batch = {"input_ids": ids, "attention_mask": mask, "position_ids": torch.arange(6)[None]}
    assert found(batch) == [[row[mask[i].bool()].tolist()] for i, row in enumerate(ids)]


@pytest.mark.parametrize("kind", [list, tuple, torch.tensor])
def test_cumulative_lengths_count_over_all_rows(kind):
    ids = torch.arange(4, 20).view(2, 8)
    batch = {"input_ids": ids, "cu_seq_lens_q": kind([0, 3, 8, 10, 16])}
    assert [[len(example) for example in row] for row in found(batch)] == [[3, 5], [2, 6]]


def test_numbers_of_sequences():
    ids = torch.arange(4, 12)[None]
    batch = {"input_ids": ids, "seq_idx": torch.tensor([[0, 0, 1, 1, 1, 2, -1, -1]], dtype=torch.int32)}
    assert [[len(example) for example in row] for row in found(batch)] == [[2, 3, 1]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("hidden", [-math.inf, -1e4, "min"])
def test_additive_mask_of_two_dimensions(dtype, hidden):
    rows = examples(LENGTHS)
    ids, mask = padded(rows)
    additive = torch.zeros(mask.shape, dtype=dtype)
    additive[mask == 0] = torch.finfo(dtype).min if hidden == "min" else hidden
    assert found({"input_ids": ids, "attention_mask": additive}) == [[row] for row in rows]


FORMS = ["bool", "int64", "0/1", "additive"]


def in_form(visible: torch.Tensor, form: str) -> torch.Tensor:
    if form == "bool":
        return visible
    if form == "int64":
        return visible.long()
    return visible.float() if form == "0/1" else torch.where(visible, 0.0, -1e4)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rows", ["each", "all"])
@pytest.mark.parametrize("heads", [1, 3])
def test_mask_of_four_dimensions_of_every_type(form, rows, heads):
    width = 9
    segments = torch.tensor([[1, 1, 1, 2, 2, 3, 3, 0, 0], [1, 1, 2, 2, 2, 2, 2, 2, 2]][: 2 if rows == "each" else 1])
    visible = (segments[:, :, None] == segments[:, None]) & (segments[:, None] > 0) & torch.ones(9, 9).tril().bool()
    mask = in_form(visible[:, None], form).expand(-1, heads, -1, -1)
    ids = torch.arange(4, 22).view(2, 9)
    expected = [[3, 2, 2], [2, 7] if rows == "each" else [3, 2, 2]]
    assert [[len(example) for example in row] for row in found({"input_ids": ids, "attention_mask": mask})] == expected
    assert width == ids.shape[1]


@pytest.mark.parametrize("form", FORMS)
def test_mask_of_keys(form):
    rows = examples(LENGTHS)
    ids, mask = padded(rows)
    batch = {"input_ids": ids, "attention_mask": in_form(mask.bool()[:, None, None], form)}
    assert found(batch) == [[row] for row in rows]


def test_a_hole_in_a_mask_of_four_dimensions_does_not_split_the_example():
    shown = torch.tensor([1, 1, 0, 1, 1, 0]).bool()
    visible = shown & torch.ones(6, 6).tril().bool()
    ids = torch.arange(4, 10)[None]
    assert found({"input_ids": ids, "attention_mask": visible[None, None]}) == [[[4, 5, 7, 8]]]


def test_an_expanded_mask_is_not_made_real():
    """Nor is one compared as a whole: at this size it has 64 GB."""
    width = 2**18
    mask = torch.ones((), dtype=torch.bool).expand(1, 1, width, width)
    layout = read_layout({"input_ids": torch.ones(1, width, dtype=torch.int64), "attention_mask": mask})
    assert layout.length_BL.unique().tolist() == [width]


def branching(answers: int = 7, length: int = 4, text: int = 64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids, positions and mask (L, L) of a text with continuations, each of which sees a prefix and its own tokens."""
    width = text + answers * length
    visible = torch.zeros(width, width, dtype=torch.bool)
    visible[:text, :text] = torch.ones(text, text).tril().bool()
    positions = list(range(text))
    for answer in range(answers):
        first, prefix = text + answer * length, (answer + 1) * text // answers
        visible[first : first + length, :prefix] = True
        visible[first : first + length, first : first + length] = torch.ones(length, length).tril().bool()
        positions += range(prefix, prefix + length)
    return torch.arange(4, 4 + width)[None], torch.tensor([positions]), visible


@pytest.mark.parametrize("form", FORMS)
def test_branching_rows_are_refused_by_their_mask(form):
    """Axolotl's `rl: ebft`."""
    ids, positions, visible = branching()
    batch = {"input_ids": ids, "attention_mask": in_form(visible[None, None], form)}
    for also in ({}, {"position_ids": positions}):
        with pytest.raises(NoiseNotAppliedError, match=r"shows it earlier ones: a tree .*\(row 0, column 6[48]\)"):
            found(batch | also)


@pytest.mark.parametrize("mask", [None, torch.ones(1, 92, dtype=torch.int64)], ids=["no mask", "ones"])
def test_branching_rows_are_refused_by_their_positions(mask):
    ids, positions, _ = branching()
    with pytest.raises(NoiseNotAppliedError, match=r"position_ids .* a tree of continuations.*\(row 0, column 64\)"):
        found({"input_ids": ids, "position_ids": positions, "attention_mask": mask})


def test_prefix_tuning_masks_are_longer_than_the_ids():
    rows = examples([5, 3])
    ids, mask = padded(rows)
    longer = torch.cat([torch.ones(2, 7, dtype=mask.dtype), mask], 1)
    batch = {"input_ids": ids, "attention_mask": longer}
    past = ((torch.zeros(2, 1, 7, 4), torch.zeros(2, 1, 7, 4)),)
    for signs in ({"past_key_values": past}, {"outer": ({"input_ids": ids, "attention_mask": mask},)}):
        assert found(batch | signs) == [[row] for row in rows]


def test_a_model_that_is_given_such_a_batch_stops():
    ids, positions, visible = branching()
    model = ToyModel(vocabulary=97).train()
    with install(model, NoiseConfig(alpha=5)):
        for arguments in ({"position_ids": positions}, {"attention_mask": visible[None, None]}):
            with pytest.raises(NoiseNotAppliedError, match="a tree of continuations"):
                model(ids, **arguments)
        assert model.noise(ids).any()
        model.eval()
        model(ids, position_ids=positions)  # no noise, no layout


@pytest.mark.parametrize("columns", [slice(4), slice(4, 8), [0, 1, 6, 7]], ids=["head", "tail", "head and tail"])
@pytest.mark.parametrize("mask", ["whole", "cut", "none"])
def test_a_model_that_gives_its_inner_model_a_slice_stops(columns, mask):
    """Sequence parallelism by a hook, as in ms-swift."""

    class Sliced(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = ToyModel()

        def get_input_embeddings(self) -> nn.Module:
            return self.inner.embed_tokens

        def forward(self, input_ids, attention_mask=None):
            given = {"whole": attention_mask, "cut": attention_mask[:, columns], "none": None}[mask]
            return self.inner(input_ids[:, columns], attention_mask=given)

    ids = torch.tensor(examples([8, 8]))
    with (
        install(Sliced().train(), NoiseConfig(alpha=5)) as handle,
        pytest.raises(NoiseNotAppliedError, match=r"are a slice of those"),
    ):
        handle.model(ids, attention_mask=torch.ones_like(ids))


def refused(batch: dict[str, object], match: str) -> None:
    """Refused when it is checked; where its form alone tells, also when it is read."""
    with pytest.raises(NoiseNotAppliedError, match=match + r".*neftune_layout_reader"):
        check_layout(batch)


IDS = torch.arange(4, 16).view(2, 6)


@pytest.mark.parametrize(
    ("outer", "match"),
    [
        ((), "either virtual tokens stand before them .* or the ids are a slice"),
        (({"input_ids": torch.arange(4, 28).view(2, 12)},), r"the ids are a slice of those \(\(2, 12\)\)"),
    ],
    ids=["no sign", "outer ids"],
)
@pytest.mark.parametrize("shape", [(2, 12), (2, 1, 6, 12), (2, 1, 1, 12)], ids=str)
def test_masks_of_slices_are_refused(outer, match, shape):
    refused({"input_ids": IDS, "attention_mask": torch.ones(shape), "outer": outer}, match)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("columns", [slice(6, 12), [0, 1, 2, 9, 10, 11], slice(0, 6)], ids=["last", "two", "first"])
def test_slices_of_the_ids_of_the_call_around_are_refused(columns, masked):
    whole = torch.arange(4, 28).view(2, 12)
    batch = {"input_ids": whole[:, columns], "outer": ({"input_ids": whole},), "pad_token_id": PAD}
    if masked:
        batch["attention_mask"] = torch.ones_like(whole[:, columns])
    refused(batch, r"input_ids \(2, 6\) are a slice of those \(2, 12\)")


def test_a_model_may_cut_off_padding():
    ids, mask = padded(examples([5, 3]), width=9)
    outer = ({"input_ids": ids, "attention_mask": mask},)
    assert found({"input_ids": ids[:, :5], "attention_mask": mask[:, :5], "outer": outer}) == [
        [ids[0, :5].tolist()],
        [ids[1, :3].tolist()],
    ]


@pytest.mark.parametrize("masked", [False, True])
def test_positions_that_begin_in_the_middle_are_refused(masked):
    batch = {"input_ids": IDS, "position_ids": torch.arange(17, 23)[None]}
    if masked:
        batch["attention_mask"] = torch.ones_like(IDS)
    refused(batch, "position_ids begin in the middle of an example: .* slice")
    refused(batch | {"position_ids": torch.tensor([[3, 4, 5, 0, 1, 2]])}, "position_ids .* a slice of a packed row")


ONES = torch.ones(2, 6, dtype=torch.int64)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"input_ids": IDS[0]}, r"input_ids \(6,\)"),
        ({"input_ids": IDS[None]}, r"input_ids \(1, 2, 6\)"),
        ({"attention_mask": {"full_attention": None}}, "attention_mask of type dict"),
        ({"attention_mask": ONES[0]}, r"attention_mask \(6,\)"),
        ({"attention_mask": torch.ones(2, 6, 6)}, r"attention_mask \(2, 6, 6\)"),
        ({"attention_mask": torch.ones(2, 1, 3, 6)}, r"attention_mask \(2, 1, 3, 6\)"),
        ({"attention_mask": torch.ones(6, 6)}, "it has another number of rows"),
        ({"attention_mask": ONES[:, :4]}, "it has fewer columns than the ids"),
        ({"attention_mask": ONES.to(torch.complex64)}, "attention_mask .* of complex64"),
        ({"attention_mask": ONES * 0}, "attention_mask hides every token"),
        ({"attention_mask": ONES.float() * 0}, "attention_mask is 0 everywhere"),
        ({"attention_mask": ONES * -1}, "attention_mask is negative here"),
        ({"attention_mask": ONES * 0.5}, "attention_mask is neither 0 and 1"),
        ({"attention_mask": ONES * torch.nan}, "attention_mask is neither 0 and 1"),
        ({"attention_mask": torch.tensor([[1.0, 1, 1, 1, -1e4, -1e4]])}, "attention_mask is neither 0 and 1"),
        ({"attention_mask": torch.full((1, 1, 6, 6), 2)}, "attention_mask is neither 0 and 1 nor additive"),
        ({"attention_mask": torch.full((1, 1, 6, 6), -5.0)}, "attention_mask is neither 0 and 1 nor additive"),
        ({"attention_mask": torch.full((1, 1, 1, 6), 0.5)}, "attention_mask is neither 0 and 1 nor additive"),
        (
            {"attention_mask": torch.stack([torch.ones(6, 6), torch.ones(6, 6).triu(1)])[None]},
            "attention_mask hides different tokens from its heads",
        ),
        ({"attention_mask": ONES.bool()[:, None, None].logical_not()}, "attention_mask hides every token"),
        ({"position_ids": [[0, 1, 2, 3, 4, 5]]}, "position_ids of type list"),
        ({"position_ids": torch.arange(5)[None]}, r"position_ids \(1, 5\)"),
        ({"position_ids": torch.arange(12)}, r"position_ids \(12,\)"),
        ({"position_ids": torch.zeros(2, 2, 6)}, r"position_ids \(2, 2, 6\)"),
        ({"position_ids": torch.zeros(2, 6, 3)}, r"position_ids \(2, 6, 3\)"),
        ({"position_ids": torch.arange(18).view(3, 6)}, r"position_ids \(3, 6\)"),
        ({"cu_seq_lens_q": torch.tensor([[0, 6], [0, 6]])}, r"cu_seq_lens_q \(2, 2\)"),
        ({"cu_seq_lens_q": torch.tensor([0.0, 12.0])}, "cu_seq_lens_q .* of float32"),
        ({"cu_seq_lens_q": "0, 12"}, "cu_seq_lens_q of type str"),
        ({"cu_seq_lens_q": [6, 6]}, "cu_seq_lens_q does not begin with 0"),
        ({"cu_seq_lens_q": [0, 6, 4, 12]}, "cu_seq_lens_q goes down"),
        ({"cu_seq_lens_q": [0, 6, 24]}, "cu_seq_lens_q goes beyond the ids, which are then a slice"),
        ({"cu_seq_lens_q": [0, 4, 12]}, "cu_seq_lens_q has no offset at the beginning of this row"),
        ({"cu_seq_lens_q": [0, 3, 6]}, "cu_seq_lens_q ends before words of the batch"),
        ({"seq_idx": ONES[0]}, r"seq_idx \(6,\)"),
    ],
    ids=str,
)
def test_what_cannot_be_read_is_refused(arguments, match):
    refused({"input_ids": IDS, "pad_token_id": PAD} | arguments, match)


SEGMENTS = torch.tensor([[1, 1, 1, 1, 2, 2]])
RESTARTS = torch.tensor([[0, 1, 2, 3, 0, 1]])
OTHERS = torch.tensor([[0, 1, 2, 0, 1, 2]])


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (
            {"attention_mask": SEGMENTS, "position_ids": OTHERS},
            r"position_ids begins an example inside one of attention_mask \(row 0, column 3\)",
        ),
        (
            {"cu_seq_lens_q": [0, 4, 6], "position_ids": OTHERS},
            r"position_ids begins an example inside one of cu_seq_lens_q \(row 0, column 3\)",
        ),
        ({"cu_seq_lens_q": [0, 6], "position_ids": OTHERS}, "position_ids begins an example inside one of cu_seq_lens"),
        (
            {"cu_seq_lens_q": [0, 3, 6], "attention_mask": SEGMENTS},
            "cu_seq_lens_q begins an example inside one",
        ),
        ({"seq_idx": SEGMENTS, "position_ids": OTHERS}, "position_ids begins an example inside one of seq_idx"),
        (
            {"attention_mask": (SEGMENTS[0] == SEGMENTS[0][:, None])[None, None], "position_ids": OTHERS},
            "position_ids begins an example inside one of attention_mask",
        ),
        (
            {"cu_seq_lens_q": [0, 4, 6], "attention_mask": torch.tensor([[1, 1, 0, 1, 1, 1]])},
            r"attention_mask hides a token inside an example of cu_seq_lens_q \(row 0, column 2\)",
        ),
        (
            {
                "input_ids": torch.tensor([[4, 5, PAD, PAD, PAD, PAD]]),
                "attention_mask": torch.tensor([[0, 0, 1, 1, 1, 1]]),
            },
            "attention_mask shows the padding of this row and hides its words",
        ),
    ],
    ids=str,
)
def test_arguments_that_contradict_each_other_are_refused(arguments, match):
    refused({"input_ids": IDS[:1], "pad_token_id": PAD} | arguments, match)


@pytest.mark.parametrize(
    "arguments",
    [
        {"attention_mask": SEGMENTS, "position_ids": RESTARTS, "cu_seq_lens_q": [0, 4, 6], "seq_idx": SEGMENTS - 1},
        {"attention_mask": SEGMENTS, "position_ids": torch.arange(6)[None]},
        {"attention_mask": ONES[:1], "position_ids": RESTARTS},
        {"attention_mask": torch.ones(6, 6).tril()[None, None], "position_ids": RESTARTS},
    ],
    ids=["all agree", "positions count on", "a mask of ones", "a causal mask"],
)
def test_arguments_that_say_less_than_others_are_no_contradiction(arguments):
    assert found({"input_ids": IDS[:1]} | arguments) == [[IDS[0, :4].tolist(), IDS[0, 4:].tolist()]]


def test_a_batch_of_padding_alone_has_no_example():
    ids = torch.full((2, 4), PAD)
    for mask in (torch.zeros_like(ids), None):
        assert found({"input_ids": ids, "attention_mask": mask, "pad_token_id": PAD}) == [[], []]


@pytest.mark.parametrize(
    "arguments",
    [
        {"attention_mask": ONES},
        {"attention_mask": ONES.float()[:, None, None]},
        {"attention_mask": torch.ones(6, 6).tril().expand(2, 3, 6, 6), "position_ids": torch.arange(6)},
        {"position_ids": IMAGES[:, None, :6]},
        {"cu_seq_lens_q": torch.tensor([0, 6, 12])},
        {"cu_seq_lens_q": [0, 6, 12], "seq_idx": ONES},
        {},
    ],
    ids=str,
)
def test_every_form_is_read_in_one_graph(arguments):
    reader = CheckedReader()
    batch = {"input_ids": IDS, "pad_token_id": 2, "eos_token_ids": (2,)} | arguments
    graph = torch.compile(lambda batch: reader(batch).length_BL, fullgraph=True, backend="eager")
    assert torch.equal(graph(batch), reader(batch).length_BL)


def test_compiled_graphs_and_batches_without_values_are_read_unchecked():
    batch = {"input_ids": IDS, "position_ids": torch.arange(17, 23)[None]}
    reader = CheckedReader()
    graph = torch.compile(lambda: reader(batch).length_BL, fullgraph=True, backend="eager")
    assert graph().unique().tolist() == [6]
    assert reader({name: value.to("meta") for name, value in batch.items()}).length_BL.shape == (2, 6)
    lengths = torch.func.vmap(lambda ids: reader({"input_ids": ids, "attention_mask": ids > 0}).length_BL)(IDS[None])
    assert lengths.unique().tolist() == [6]
