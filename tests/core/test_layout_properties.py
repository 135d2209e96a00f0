"""Random layouts against the specification in plain Python, and the noise of the same examples wherever they stand."""

import math
import os
from typing import Any

import pytest
import torch
from hypothesis import event, given, settings
from hypothesis import strategies as st
from torch import Tensor

from neftune_plugins import NoiseConfig, NoiseConfigError, NoiseNotAppliedError, install
from neftune_plugins.noise import CheckedReader
from neftune_plugins.noise.draw import noise, stream_key, token_keys, token_scales
from neftune_plugins.noise.layout import Layout, read_layout
from neftune_plugins.plugins.manager import noise_types
from tests.support import specification
from tests.support.models import PAD, ToyModel, padded

PROPERTY = settings(max_examples=300, deadline=None, derandomize="CI" in os.environ, database=None)
MASK_DTYPES = [torch.bool, torch.uint8, torch.int32, torch.int64, torch.float32, torch.bfloat16]
ID_DTYPES = [torch.int32, torch.int64]
SEED, STEP, DIM, ALPHA = 2**63 + 5, 11, 24, 5.0


def four_dimensional(segments: Tensor, pattern: str, form: str) -> Tensor:
    """The (B, 1, L, L) mask of segment numbers (B, L), 0 on padding."""
    i, j = torch.arange(segments.shape[1])[:, None], torch.arange(segments.shape[1])
    visible = (segments[:, :, None] == segments[:, None]) & (segments[:, :, None] > 0)
    if pattern != "bidirectional":
        visible &= j <= i
    if pattern == "sliding window":
        visible &= i - j < 2
    if pattern == "strided":
        visible &= (i == j) | (j % 3 == 0)
    if form == "bool":
        return visible[:, None]
    if form in ("integer", "0/1"):
        return visible[:, None].to(torch.int64 if form == "integer" else torch.float32)
    dtype = getattr(torch, form)
    return torch.zeros(visible.shape, dtype=dtype).masked_fill(~visible, torch.finfo(dtype).min)[:, None]


FORMS_4D = ["bool", "integer", "0/1", "float32", "bfloat16"]
FORM = st.sampled_from(FORMS_4D)
PATTERNS = st.tuples(st.sampled_from(["causal", "sliding window", "bidirectional"]), FORM)
ODD_PATTERNS = st.tuples(st.sampled_from(["causal", "sliding window", "bidirectional", "strided"]), FORM)


def mostly(usual: st.SearchStrategy[Any], unusual: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.sampled_from([True, True, True, False]).flatmap(lambda is_usual: usual if is_usual else unusual)


def tables(shape: tuple[int, ...], values: st.SearchStrategy[float], dtype: torch.dtype) -> st.SearchStrategy[Tensor]:
    size = math.prod(shape)
    return st.lists(values, min_size=size, max_size=size).map(lambda found: torch.tensor(found).to(dtype).view(shape))


WEIRD = st.sampled_from([-1e9, -1e4, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 3.0, math.nan, math.inf, -math.inf])
ANY_DTYPE = st.sampled_from([*MASK_DTYPES, torch.float16, torch.float64, torch.int8, torch.int16, torch.complex64])


@st.composite
def any_shape(draw: st.DrawFn, rows: int, width: int) -> tuple[int, ...]:
    """Of an argument for ids (rows, width): a right one, or nearly."""
    last = draw(mostly(st.just(width), st.sampled_from([1, width + 1, width + 2, max(1, width - 1)])))
    first = draw(mostly(st.sampled_from([1, rows]), st.integers(1, 4)))
    query = draw(mostly(st.sampled_from([1, width]), st.just(last)))
    others = [(last,), (3, first, last), (4, 1, last), (first, 1, query, last)]
    return draw(mostly(st.just((first, last)), st.sampled_from(others)))


@st.composite
def masks(draw: st.DrawFn, rows: int, width: int) -> Tensor:
    prefix = draw(mostly(st.just(0), st.integers(0, 2)))
    kind = draw(st.sampled_from(["0/1", "segments", "additive", "keys", "4-D", "4-D", "anything"]))
    if kind == "anything":
        values = draw(st.sampled_from([WEIRD, st.sampled_from([0.0, 1.0, 2.0]), st.sampled_from([0.0, -1e4])]))
        return draw(tables(draw(any_shape(rows, width)), values, draw(ANY_DTYPE)))
    if kind == "4-D":
        first = draw(st.sampled_from([1, rows]))
        segments = draw(tables((first, prefix + width), st.integers(0, 2).map(float), torch.int64))
        if draw(st.booleans()):
            segments = segments.sort(descending=draw(st.booleans())).values
        return four_dimensional(segments, *draw(ODD_PATTERNS))[:, :, prefix:]
    values = {"additive": [0.0, -1e4], "segments": [0.0, 1.0, 1.0, 2.0, 3.0]}.get(kind, [0.0, 1.0])
    mask = draw(tables((rows, prefix + width), st.sampled_from(values), draw(st.sampled_from(MASK_DTYPES))))
    if kind == "segments" and draw(st.booleans()) and mask.dtype != torch.bool:
        mask = mask.sort().values
    return mask[:, None, None] if kind == "keys" else mask


def restarts(lengths: list[int], width: int, first: int) -> list[int]:
    return [first + p for length in [*lengths, width] for p in range(length)][:width]


@st.composite
def batches(draw: st.DrawFn) -> dict[str, Any]:
    """Anything that a forward may be given, sensible or not: arguments of wrong shapes, types and conventions, and
    such as contradict each other."""
    rows, width = draw(st.integers(1, 3)), draw(st.integers(1, 9))
    ids = draw(tables((rows, width), st.sampled_from([0.0, 2.0, 7.0, 8.0]), draw(st.sampled_from(ID_DTYPES))))
    batch: dict[str, Any] = {
        "input_ids": ids,
        "pad_token_id": draw(st.sampled_from([None, PAD, 2])),
        "eos_token_ids": draw(st.sampled_from([(), (2,), (PAD, 8)])),
        "bos_token_ids": draw(st.sampled_from([(), (2,), (PAD,)])),
        "is_decoder": draw(st.booleans()),
    }
    lengths = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    if draw(st.booleans()):
        batch["attention_mask"] = draw(masks(rows, width))
    if draw(st.booleans()):
        good = st.sampled_from([0, 0, 1, 2]).map(lambda first: torch.tensor([restarts(lengths, width, first)]))
        free = tables(draw(any_shape(rows, width)), st.integers(-1, 3).map(float), draw(ANY_DTYPE))
        batch["position_ids"] = draw(st.one_of(good, good.map(lambda value: value[0]), free))
    if draw(st.integers(0, 3)) == 0:
        ends = torch.tensor([0, *lengths]).cumsum(0).clamp(max=rows * width)
        free = tables((draw(st.integers(1, 5)),), st.integers(-1, rows * width + 1).map(float), torch.int32)
        ends = draw(st.one_of(st.just(ends), free, free.map(lambda value: value.sort().values)))
        batch["cu_seq_lens_q"] = draw(st.sampled_from([ends, ends.tolist(), ends.int()]))
    if draw(st.integers(0, 5)) == 0:
        numbers = tables(draw(any_shape(rows, width)), st.integers(-1, 2).map(float), torch.int32)
        batch["seq_idx"] = draw(st.one_of(numbers, numbers.map(lambda value: value.sort().values)))
    if draw(st.integers(0, 3)) == 0:
        batch["labels"] = draw(st.sampled_from([ids, torch.full_like(ids, -100)]))
    batch["outer"] = draw(st.sampled_from([(), ({"input_ids": ids, "attention_mask": torch.ones_like(ids)},)]))
    return batch


def read(layout: Layout) -> list[list[list[int]]]:
    """The columns of the examples of each row, by the layout, whose positions and lengths are looked at too."""
    rows = []
    for real, example, position, length in zip(
        layout.real_BL.tolist(),
        layout.example_BL.tolist(),
        layout.position_BL.tolist(),
        layout.length_BL.tolist(),
        strict=True,
    ):
        assert all(0 <= number <= len(real) for number in example)
        columns: dict[int, list[int]] = {}
        for column in range(len(real)):
            if real[column]:
                columns.setdefault(example[column], []).append(column)
        for of_one in columns.values():
            assert [position[column] for column in of_one] == list(range(len(of_one)))
            assert {length[column] for column in of_one} == {len(of_one)}
        rows.append(list(columns.values()))
    return rows


@settings(PROPERTY, max_examples=1500)
@given(batches())
def test_any_batch_is_read_as_specified_or_refused(batch):
    try:
        layout = CheckedReader()(batch)
    except NoiseNotAppliedError as error:
        event("refused: " + str(error).split(". ")[1].split()[0])
        return
    event("read")
    assert read(layout) == specification.examples_of(batch)


@pytest.mark.parametrize("name", [None, "attention_mask", "position_ids"])
def test_rows_without_columns(name):
    none = torch.zeros(2, 0, dtype=torch.int64)
    batch = {"input_ids": none, "pad_token_id": PAD} | ({} if name is None else {name: none})
    assert read(read_layout(batch)) == [[], []]


@st.composite
def arrangements(draw: st.DrawFn) -> tuple[list[list[int]], dict[str, Any]]:
    """Some examples, and a batch that they stand in: one a row, or all in one row."""
    example = st.lists(st.integers(1, 50), min_size=1, max_size=5)
    found = draw(st.lists(example, min_size=1, max_size=5))
    gaps = st.lists(st.just(None), max_size=2)
    padding = st.sampled_from(["left", "right", "both", "holes"])
    if draw(st.booleans()):  # one a row; None is padding
        rows: list[list[int | None]] = []
        for ids in found:
            side = draw(padding)
            row: list[int | None] = [*draw(gaps)] if side in ("left", "both") else []
            for token in ids:
                row += [token, *(draw(gaps) if side == "holes" else [])]
            rows.append(row + (draw(gaps) if side == "both" else []))
        width = max(map(len, rows))
        rows = [row + [None] * (width - len(row)) for row in rows]
        mask = torch.tensor([[token is not None for token in row] for row in rows])
        batch: dict[str, Any] = {"attention_mask": mask.to(draw(st.sampled_from(MASK_DTYPES)))}
        if draw(st.booleans()):  # as generation and trainers make them
            position_ids = mask.long().cumsum(-1) - 1
            on_padding = draw(st.sampled_from([position_ids.clamp(min=0), torch.ones_like(position_ids)]))
            batch["position_ids"] = torch.where(mask, position_ids, on_padding)
        ids = [[token or PAD for token in row] for row in rows]
    else:  # packed
        tail = draw(st.integers(0, 3))
        ids = [[token for ids in found for token in ids] + [PAD] * tail]
        segments = torch.tensor([[i + 1 for i, ids in enumerate(found) for _ in ids] + [0] * tail])
        restarts = [p for ids in found for p in range(len(ids))]
        ends = torch.tensor([0, *(len(ids) for ids in found)]).cumsum(0)
        form = draw(st.sampled_from(["segments", "positions", "ones and positions", "ends", "4-D"]))
        batch = {}
        if form == "segments":
            batch["attention_mask"] = segments
        elif form == "4-D":
            batch["attention_mask"] = four_dimensional(segments, *draw(PATTERNS))
        elif form == "ends":
            batch["cu_seq_lens_q"] = ends.int()
        else:
            batch["position_ids"] = torch.tensor([restarts + draw(st.sampled_from([list(range(tail)), [0] * tail]))])
        if form == "ones and positions":
            batch["attention_mask"] = torch.ones_like(segments)
    batch |= {"input_ids": torch.tensor(ids, dtype=draw(st.sampled_from(ID_DTYPES))), "pad_token_id": PAD}
    return found, batch


def noise_of(batch: dict[str, Any], layout: Layout) -> Tensor:
    """(B, L, DIM) float32."""
    ids = batch["input_ids"]
    keys = token_keys(ids, layout, stream_key(SEED, 0), torch.tensor(STEP))
    scales = token_scales(layout, DIM, ALPHA)
    return noise(keys.flatten(), scales.flatten(), DIM, noise_types()["uniform"]).view(*ids.shape, DIM)


@PROPERTY
@given(arrangements())
def test_an_example_has_its_noise_wherever_it_stands(arrangement):
    examples, batch = arrangement
    layout = CheckedReader()(batch)
    got = noise_of(batch, layout)
    columns = [(row, of_one) for row, of_row in enumerate(read(layout)) for of_one in of_row]
    assert [batch["input_ids"][row, of_one].tolist() for row, of_one in columns] == examples
    for (row, of_one), ids in zip(columns, examples, strict=True):
        assert got[row, of_one].tolist() == specification.noise(ids, DIM, alpha=ALPHA, seed=SEED, step=STEP)
    assert not got[~layout.real_BL].any()


@pytest.mark.parametrize("form", ["mask", "segments", "positions", "ends"])
def test_a_very_long_row(form):
    generator = torch.Generator().manual_seed(0)
    width = 2**17
    ids = torch.randint(1, 50_000, (1, width), generator=generator)
    ends = torch.cat([torch.randint(1, width, (2000,), generator=generator).unique(), torch.tensor([width - 100])])
    ends = torch.cat([torch.tensor([0]), ends[ends <= width - 100]]).unique()
    segments = torch.searchsorted(ends, torch.arange(width), right=True)
    segments[width - 100 :] = 0
    batch: dict[str, Any] = {
        "mask": {"attention_mask": segments > 0},
        "segments": {"attention_mask": segments},
        "positions": {"position_ids": torch.arange(width) - ends[segments - 1]},
        "ends": {"cu_seq_lens_q": ends.int()},
    }[form]
    batch = {name: value if name == "cu_seq_lens_q" else value[None] for name, value in batch.items()}
    batch |= {"input_ids": ids.masked_fill(segments == 0, PAD), "pad_token_id": PAD}
    layout = read_layout(batch)
    assert read(layout) == specification.examples_of(batch)
    # The first tokens of the longest example: its key has all its tokens in it.
    [examples] = read(layout)
    columns = max(examples, key=len)
    keys = token_keys(batch["input_ids"], layout, stream_key(SEED, 0), torch.tensor(STEP))[0, columns]
    want = specification.keys(batch["input_ids"][0, columns].tolist(), seed=SEED, step=STEP)
    assert [key % 2**64 for key in keys.tolist()] == want


LARGE = st.one_of(
    st.integers(-(2**63), 2**63 - 1), st.sampled_from([-100, -200, 2**31 - 1, 2**31, 2**32, 2**63 - 1, -(2**63)])
)


@PROPERTY
@given(st.lists(LARGE, min_size=1, max_size=6), st.integers(0, 2**64 - 1), st.integers(0, 2**63 - 1))
def test_keys_of_any_ids_seed_and_step(ids, seed, step):
    """Ids that no vocabulary has, placeholders of images among them, are the model's affair."""
    tensor = torch.tensor([ids])
    keys = token_keys(tensor, read_layout({"input_ids": tensor}), stream_key(seed, 1), torch.tensor(step))
    assert [key % 2**64 for key in keys[0].tolist()] == specification.keys(ids, seed=seed, step=step, stream=1)


@pytest.mark.parametrize("value", [2**31 - 1, -(2**31), -100])
def test_ids_of_32_bits_have_the_keys_of_those_of_64(value):
    keys = []
    for dtype in ID_DTYPES:
        ids = torch.tensor([[5, value, 7]], dtype=dtype)
        keys.append(token_keys(ids, read_layout({"input_ids": ids}), stream_key(0, 0), torch.tensor(0)))
    assert torch.equal(*keys)


@PROPERTY
@given(st.integers(1, 2**31), st.integers(1, 2**20), st.floats(2**-10, 2**10, width=32))
def test_scales_of_any_length_and_width(length, dim, alpha):
    """Also where L d is more than 32 bits hold."""
    one = torch.ones(1, 1, dtype=torch.int64)
    layout = Layout(one.bool(), one, one - 1, one * length)
    assert token_scales(layout, dim, alpha).item() == specification.scale(length, dim, alpha)


@pytest.mark.parametrize("step", [2**31, 2**53 + 1, 2**63 - 1])
def test_large_steps(step):
    model = ToyModel().train()
    ids, mask = padded([[5, 6, 7]])
    with install(model, NoiseConfig(alpha=ALPHA, seed=SEED)) as handle:
        handle.step = step
        assert handle.step == step
        got = model.noise(ids, attention_mask=mask)[0]
    want = torch.tensor(specification.noise([5, 6, 7], 48, alpha=ALPHA, seed=SEED, step=step))
    torch.testing.assert_close(got, want, rtol=0, atol=2**-22)


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_seeds_that_64_bits_do_not_hold_are_refused(seed):
    with pytest.raises(NoiseConfigError, match=r"neftune_noise_seed: .* must be an integer from 0 to 2\^64 - 1"):
        NoiseConfig(alpha=ALPHA, seed=seed)


@pytest.mark.parametrize("token", [97, 2**31, -100], ids=["one too many", "32 bits", "a label's"])
def test_an_id_outside_the_vocabulary_is_the_models_own_error(token):
    model = ToyModel().train()
    ids, mask = torch.tensor([[5, token, 7]]), torch.ones(1, 3)

    def error() -> str:
        with pytest.raises(IndexError) as caught:
            model(ids, attention_mask=mask)
        return str(caught.value)

    without = error()
    with install(model, NoiseConfig(alpha=ALPHA)):
        assert error() == without
        assert model.noise(ids.clamp(0, 96), attention_mask=mask).any()  # and the next batch is as ever


def test_placeholders_that_the_model_replaces():
    """A model of images gets ids that its embedding has not, and looks others up in their place."""

    class Placeholders(ToyModel):
        def forward(self, input_ids=None, attention_mask=None, **kwargs):
            return super().forward(input_ids.clamp(min=0), attention_mask=attention_mask)

    model = Placeholders().train()
    ids = torch.tensor([[5, -200, 7]])
    with install(model, NoiseConfig(alpha=ALPHA, seed=SEED)) as handle:
        handle.step = STEP
        model(ids, attention_mask=torch.ones(1, 3))
        got = model.entered - torch.nn.functional.embedding(ids.clamp(min=0), model.embed_tokens.weight)
    want = torch.tensor(specification.noise([5, -200, 7], 48, alpha=ALPHA, seed=SEED, step=STEP))
    torch.testing.assert_close(got[0], want, rtol=0, atol=math.ulp(8.0) * 2**29)
