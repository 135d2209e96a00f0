"""The noise against its specification, the paper's Algorithm 1; its statistics are in test_quality.py."""

import math

import pytest
import torch

from neftune_plugins.noise.draw import add_noise_, noise, stream_key, token_keys, token_scales
from neftune_plugins.noise.layout import Layout, read_layout
from neftune_plugins.noise.reference import noisy_embeddings
from neftune_plugins.plugins.manager import noise_types
from tests.support import specification
from tests.support.models import examples, padded

KINDS = ["uniform", "gaussian", "bernoulli"]


def noise_of(ids, layout: Layout, dim: int, *, alpha=5.0, seed=0, step=0, stream=0, kind="uniform"):
    """(B, L, dim) float32."""
    noise_type = noise_types()[kind]
    keys = token_keys(ids, layout, stream_key(seed, stream), torch.tensor(step))
    scales = token_scales(layout, dim, alpha)
    return noise(keys.reshape(-1), scales.reshape(-1), dim, noise_type).view(*ids.shape, dim)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("seed", "step", "stream"), [(0, 0, 0), (42, 7, 0), (2**63 + 5, 10**6, 1)])
def test_every_bit_is_as_specified(kind, seed, step, stream):
    rows = examples([1, 5, 13], vocabulary=50_000)
    ids, mask = padded(rows)
    layout = read_layout({"input_ids": ids, "attention_mask": mask})
    got = noise_of(ids, layout, 40, alpha=7.5, seed=seed, step=step, stream=stream, kind=kind)
    for i, row in enumerate(rows):
        want = specification.noise(row, 40, alpha=7.5, seed=seed, step=step, stream=stream, kind=kind)
        if kind == "gaussian":  # the specification allows the last bit of the inverse error function
            torch.testing.assert_close(got[i, : len(row)], torch.tensor(want), rtol=2**-23, atol=0)
        else:
            assert got[i, : len(row)].tolist() == want
        assert not got[i, len(row) :].any()


def test_the_mixing_function_is_splitmix64():
    # First output of the published generator from state 0.
    assert specification.mix(0) == 0xE220A8397B1DCDAF


@pytest.mark.parametrize("kind", KINDS)
def test_types_have_the_rms_that_they_state(kind):
    u = noise_of(*(lambda ids: (ids, read_layout({"input_ids": ids})))(padded(examples([512]))[0]), 512, kind=kind)
    unit = u.double() / (5 / math.sqrt(512 * 512))
    rms = noise_types()[kind].rms
    fourth = {"uniform": 1 / 5, "gaussian": 3.0, "bernoulli": 1.0}[kind]  # E[x^4]
    spread = math.sqrt(max(fourth - rms**4, 1e-12) / u.numel())
    assert abs(unit.square().mean() - rms**2) < 5 * spread + 1e-6
    assert abs(unit.mean()) < 5 * rms / math.sqrt(u.numel())


def test_agrees_in_distribution_with_the_reference_of_algorithm_1():
    lengths, dim, alpha = [3, 17, 64], 256, 5.0
    ids, mask = padded(examples(lengths))
    layout = read_layout({"input_ids": ids, "attention_mask": mask})
    draws = 40
    ours = torch.stack([noise_of(ids, layout, dim, alpha=alpha, step=step) for step in range(draws)])
    generator = torch.Generator().manual_seed(0)
    zeros = torch.zeros(3, 64, dim)
    theirs = torch.stack([noisy_embeddings(zeros, lengths, alpha, generator) for _ in range(draws)])
    for i, length in enumerate(lengths):
        a, b = ours[:, i, :length].double().flatten(), theirs[:, i, :length].double().flatten()
        bound = alpha / math.sqrt(length * dim)
        assert a.abs().max() <= bound
        # Two-sample Kolmogorov-Smirnov at p = 1e-6.
        grid = torch.linspace(-bound, bound, 2001, dtype=torch.float64)
        distance = (
            torch.searchsorted(a.sort().values, grid) - torch.searchsorted(b.sort().values, grid)
        ).abs().max() / len(a)
        assert distance < math.sqrt(-math.log(1e-6 / 2) / len(a))
        assert not ours[:, i, length:].any()
        assert not theirs[:, i, length:].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_adding_in_place_rounds_once_and_does_not_depend_on_the_chunks(dtype, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(37, 24, generator=generator).to(dtype)
    keys = torch.randint(-(2**63), 2**63 - 1, (37,), generator=generator)
    scales = torch.rand(37, generator=generator)
    uniform = noise_types()["uniform"]
    want = (x.float() + noise(keys, scales, 24, uniform)).to(dtype)
    assert torch.equal(add_noise_(x.clone(), keys, scales, uniform), want)
    monkeypatch.setattr("neftune_plugins.noise.draw._CHUNK_PER_THREAD", 1)
    assert torch.equal(add_noise_(x.clone(), keys, scales, uniform), want)


def test_leaves_the_global_random_state_alone():
    ids, mask = padded(examples([16]))
    state = torch.get_rng_state()
    noise_of(ids, read_layout({"input_ids": ids, "attention_mask": mask}), 16)
    assert torch.equal(torch.get_rng_state(), state)


def test_padded_length_is_the_width_of_the_row():
    ids, mask = padded(examples([4, 16]))
    layout = read_layout({"input_ids": ids, "attention_mask": mask})
    scales = token_scales(layout, 64, 5.0, padded_length=True)
    torch.testing.assert_close(scales[0, :4], torch.full((4,), 5 / math.sqrt(16 * 64)))
    assert not scales[0, 4:].any()
