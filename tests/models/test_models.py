"""The noise arrives in every architecture of transformers, or the run says why not."""

import functools

import pytest
import torch
import transformers

from tests.models.families import EXPECTED, QUICK
from tests.models.survey import Row, Stack, examine, examine_apart, judge, page, shown
from tests.models.tiny import model_classes
from tests.support.documentation import ROOT

CLASSES = model_classes()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "class_name" in metafunc.fixturenames:
        everything = metafunc.config.getoption("all_models")
        chosen = [key for key in CLASSES if everything or (key in QUICK and hasattr(transformers, key[1]))]
        metafunc.parametrize(("model_type", "class_name"), chosen, ids=["-".join(key) for key in chosen])


@functools.cache
def examined(model_type: str, class_name: str, *, apart: bool) -> Row:
    """`apart` where all are examined: some may crash. Autograd forbids to fork some processes that have used it."""
    return (examine_apart if apart else examine)(model_type, class_name, CLASSES[model_type, class_name])


@pytest.fixture(scope="module", autouse=True)
def imported():
    examine("llama", "LlamaForCausalLM", [])  # what all children need


def test_the_noise_is_right_or_as_expected(model_type, class_name, pytestconfig):
    row = examined(model_type, class_name, apart=pytestconfig.getoption("all_models"))
    if class_name in EXPECTED:
        assert shown(row.ours) == EXPECTED[class_name][0], row.message
    else:
        assert set(row.ours.values()) == {"right"}, (row.ours, row.message)


def test_the_page_is_what_the_survey_finds(pytestconfig):
    if not pytestconfig.getoption("all_models"):
        pytest.skip("--all-models makes the page")
    found = page([examined(*key, apart=True) for key in CLASSES])
    assert found == (ROOT / "docs" / "models.md").read_text(), (
        "run python -m tests.models.survey --write docs/models.md"
    )


MASK = (torch.arange(24) < torch.tensor([24, 17, 9])[:, None]).to(torch.int64)
IDS = torch.full(MASK.shape, 50)


@pytest.mark.parametrize(
    ("factor", "lengths", "on_padding", "verdict"),
    [
        (1.0, "own", 0.0, "right"),
        (1.0, "own", 1.0, "padding noised"),
        (0.0, "own", 0.0, "silent"),
        (1.0, "width", 1.0, "padded L"),
        (8.0, "own", 0.0, "scaled 8"),
        (8.0, "width", 1.0, "padded L, scaled 8"),
    ],
)
def test_the_judge_knows_right_from_wrong(factor, lengths, on_padding, verdict):
    d = 64
    noise = 2 * torch.rand(3, 24, d, generator=torch.Generator().manual_seed(0)) - 1
    length = MASK.sum(1) if lengths == "own" else torch.full((3,), 24)
    noise *= 5.0 / (length * d).sqrt()[:, None, None] * torch.where(MASK == 1, 1.0, on_padding)[..., None]
    clean = Stack(IDS, embedded=torch.zeros(3, 24, d), hidden=torch.ones(3, 24, d))
    got = Stack(IDS, embedded=noise, hidden=1 + factor * noise)
    assert judge(got, clean, MASK) == verdict


def test_the_judge_tells_noise_of_another_strength():
    d = 64
    noise = 1.3 * 5.0 / (MASK.sum(1) * d).sqrt()[:, None, None] * (2 * torch.rand(3, 24, d) - 1) * MASK[..., None]
    clean = Stack(IDS, embedded=torch.zeros(3, 24, d), hidden=torch.zeros(3, 24, d))
    assert judge(Stack(IDS, embedded=noise, hidden=noise), clean, MASK).startswith("other 1.")
