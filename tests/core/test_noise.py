"""The noise against its specification, the paper's Algorithm 1, and statistics."""

import math

import pytest
import torch

from neftune_plugins.layout import Layout, read_layout
from neftune_plugins.manager import noise_types
from neftune_plugins.noise import add_noise_, channel_bits, noise, stream_key, token_keys, token_scales
from neftune_plugins.reference import noisy_embeddings
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


def uniform_sample(n_tokens: int, dim: int, seed: int = 0) -> torch.Tensor:
    """(n_tokens, dim) unit noise of consecutive tokens of one long example, in float64."""
    ids = torch.randint(0, 50_000, (1, n_tokens), generator=torch.Generator().manual_seed(seed))
    layout = read_layout({"input_ids": ids})
    keys = token_keys(ids, layout, stream_key(seed, 0), torch.tensor(3))
    return noise(keys[0], torch.ones(n_tokens), dim, noise_types()["uniform"]).double()


def test_uniform_has_the_moments_and_the_histogram_of_a_uniform_distribution():
    u = uniform_sample(4096, 512)
    n = u.numel()
    assert abs(u.mean()) < 5 * math.sqrt(1 / 3 / n)
    assert abs(u.square().mean() - 1 / 3) < 5 * math.sqrt(4 / 45 / n)
    assert u.min() >= -1
    assert u.max() < 1
    bins = 1024
    count = torch.histc(u, bins, -1, 1)
    chi_square = ((count - n / bins) ** 2 / (n / bins)).sum().item()
    assert abs(chi_square - (bins - 1)) < 5 * math.sqrt(2 * (bins - 1))


def test_every_bit_is_fair():
    keys = torch.randint(-(2**63), 2**63 - 1, (4096,), generator=torch.Generator().manual_seed(1))
    bits = channel_bits(keys, torch.arange(512, dtype=torch.int32))
    for shift in range(32):
        ones = ((bits >> shift) & 1).double().mean().item()
        assert abs(ones - 0.5) < 5 * 0.5 / math.sqrt(bits.numel()), shift


def test_tokens_channels_steps_and_seeds_are_uncorrelated():
    u = uniform_sample(1024, 1024) * math.sqrt(3)
    n = u.numel()
    for lag in (1, 2, 3, 8, 64, 500):
        assert abs((u[:, lag:] * u[:, :-lag]).mean()) < 5 / math.sqrt(n - 1024 * lag), ("channel", lag)
        assert abs((u[lag:] * u[:-lag]).mean()) < 5 / math.sqrt(n - 1024 * lag), ("token", lag)
    ids, _ = padded(examples([256]))
    layout = read_layout({"input_ids": ids})
    one = noise_of(ids, layout, 1024, step=1, seed=1)
    bound = 5 / math.sqrt(one.numel())
    for other in (
        noise_of(ids, layout, 1024, step=2, seed=1),
        noise_of(ids, layout, 1024, step=1, seed=2),
        noise_of(ids, layout, 1024, step=1, seed=1, stream=1),
    ):
        assert abs(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1]) < bound


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
    monkeypatch.setattr("neftune_plugins.noise._CHUNK_PER_THREAD", 1)
    assert torch.equal(add_noise_(x.clone(), keys, scales, uniform), want)


def test_leaves_the_global_random_state_alone():
    state = torch.get_rng_state()
    uniform_sample(16, 16)
    assert torch.equal(torch.get_rng_state(), state)


def test_padded_length_is_the_width_of_the_row():
    ids, mask = padded(examples([4, 16]))
    layout = read_layout({"input_ids": ids, "attention_mask": mask})
    scales = token_scales(layout, 64, 5.0, padded_length=True)
    torch.testing.assert_close(scales[0, :4], torch.full((4,), 5 / math.sqrt(16 * 64)))
    assert not scales[0, 4:].any()
