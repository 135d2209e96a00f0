"""The statistics of docs/quality.md with fewer values, and that they see what is wrong."""

import json
import subprocess
import sys

import pytest
import torch

from benchmarks import quality
from tests.support.documentation import ROOT

VALUES = 4_000_000


def test_the_noise_is_as_random_as_its_sample_can_tell(tmp_path, capsys):
    assert quality.main(["--values", str(VALUES), "--json", str(tmp_path / "quality.json")]) == 0
    found = [quality.Statistic(**row) for row in json.loads((tmp_path / "quality.json").read_text())]
    assert capsys.readouterr().out == f"{quality.statistics_table(found)}\n\n{quality.judgement(found)}\n"


def without_mixing(keys, codes):
    return torch.arange(len(codes), dtype=torch.int32) * 12345 ^ keys.to(torch.int32).unsqueeze(-1)


def with_one_biased_bit(keys, codes):
    bits = honest(keys, codes)
    return torch.where(bits & 0xF00 == 0, bits | (1 << 28), bits)


def with_channels_in_pairs(keys, codes):
    return honest(keys, codes[torch.arange(len(codes)) & ~8])


def with_plain_numbers(keys, codes):
    return honest(keys, torch.arange(len(codes), dtype=torch.int32))


honest = quality.channel_bits


@pytest.mark.parametrize(
    ("defect", "seen"),
    [
        (without_mixing, {"serial: chi-square of 256 x 256 pairs of neighbouring channels"}),
        (with_one_biased_bit, {"balance of the 32 bits: sum of 32 squared z", "uniform: mean", "gaussian: mean"}),
        (
            with_plain_numbers,
            {"spread of a bit's sum over a token's channels, 24 bits: sum of 24 squared z"},
        ),
        (
            with_channels_in_pairs,
            {"channels one bit apart: sum of 10 squared z", "Gram matrix of channels: sum of squared z"},
        ),
    ],
)
def test_a_defective_hash_is_seen(defect, seen, monkeypatch):
    monkeypatch.setattr(quality, "channel_bits", defect)
    found = quality.statistics(VALUES // 4)
    assert seen <= {statistic.name for statistic in found if statistic.p < 1e-6}
    assert quality.least(found) < quality.SIGNIFICANCE


@pytest.mark.parametrize(
    ("ignored", "seen"),
    [("step", "next step"), ("seed", "next seed"), ("stream", "decoder's noise")],
)
def test_noise_that_repeats_is_seen(ignored, seen, monkeypatch):
    bits = quality.bits
    monkeypatch.setattr(quality, "bits", lambda ids, **key: bits(ids, **{**key, ignored: 0}))
    found = {statistic.name: statistic for statistic in quality.statistics(VALUES // 4)}
    assert found[f"correlation with the {seen}, times root n"].p < 1e-6


@pytest.mark.parametrize("order", quality.ORDERS)
def test_raw_bits_are_those_that_the_draw_uses(order):
    command = [sys.executable, "-m", "benchmarks.quality", "--raw", order, "--seed", "3"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as process:
        got = torch.frombuffer(bytearray(process.stdout.read(3 * 16)), dtype=torch.uint8).view(16, 3).int()
        process.stdout.close()
    assert process.returncode == 0
    ids = next(quality.batches(3))
    want = torch.stack([quality.bits(ids, seed=3, step=step) for step in range(quality.RAW_STEPS)])
    first = {"channels": want[0, 0], "tokens": want[0, :, 0], "steps": want[:, 0, 0]}[order][:16]
    assert torch.equal(got[:, 0] | got[:, 1] << 8 | got[:, 2] << 16, first >> 8 & 0xFFFFFF)
