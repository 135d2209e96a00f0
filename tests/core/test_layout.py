"""Which tokens are real and belong together, from every form in which frameworks tell it."""

import pytest
import torch

from neftune_plugins import NoiseNotAppliedError
from neftune_plugins.noise.layout import read_layout
from tests.support.models import PAD, examples, padded

LENGTHS = [5, 1, 9, 3]


def found(batch: dict[str, object]) -> list[list[list[int]]]:
    """The examples of each row as their token ids in order of position, by the layout's own account."""
    ids = batch["input_ids"]
    layout = read_layout(batch)
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


def test_prefix_tuning_masks_are_longer_than_the_ids():
    rows = examples([5, 3])
    ids, mask = padded(rows)
    longer = torch.cat([torch.ones(2, 7, dtype=mask.dtype), mask], 1)
    assert found({"input_ids": ids, "attention_mask": longer}) == [[row] for row in rows]


def test_a_decoder_without_a_mask_ends_at_the_padding():
    rows = examples([5, 3])
    rows[0][0] = rows[1][0] = PAD  # T5 starts its decoder with the padding id
    ids, _ = padded(rows)
    assert found({"input_ids": ids, "pad_token_id": PAD, "is_decoder": True}) == [[row] for row in rows]


def test_positions_of_images_need_a_mask_beside_them():
    ids, mask = padded(examples([6]))
    positions = torch.zeros(3, 1, 6, dtype=torch.int64)
    assert found({"input_ids": ids, "position_ids": positions, "attention_mask": mask}) == [[ids[0].tolist()]]
    with pytest.raises(NoiseNotAppliedError, match="position_ids of 3 dimensions without an attention_mask"):
        read_layout({"input_ids": ids, "position_ids": positions})


@pytest.mark.parametrize("mask", [{"full_attention": None}, torch.ones(1, 6, 6)], ids=["dict", "3-D"])
def test_masks_of_another_form_are_refused(mask):
    ids, _ = padded(examples([6]))
    with pytest.raises(NoiseNotAppliedError, match=r"an attention_mask .* neftune_layout_reader"):
        read_layout({"input_ids": ids, "attention_mask": mask})
