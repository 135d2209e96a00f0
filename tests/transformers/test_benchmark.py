"""`python -m benchmarks.noise` runs; how long anything takes is not tested."""

import json

import pytest
import torch

from benchmarks import counts, lengths, noise


def test_the_tables_and_the_json_have_every_measure(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(noise, "LAYERS", (1, 2))
    file = tmp_path / "noise.json"
    noise.main(["--rounds", "1", "--shapes", "2x8x16", "--dtypes", "bfloat16", "--json", str(file)])
    result = json.loads(file.read_text())
    assert [(row["shape"], row["dtype"], row["mode"]) for row in result["forward"]] == [
        ("2x8x16", "bfloat16", "eager"),
        ("2x8x16", "bfloat16", "compiled"),
    ]
    for row in result["forward"]:
        assert all(row["ms"][name] > 0 for name in ("lookup", "native", "ours", "add"))
        assert {"forward/native", "forward/lookup", "noise/native", "noise/add", "metrics"} <= row.keys()
    # Output and zeros, beside the sum that it gives.
    assert result["forward"][0]["memory"]["native"] >= 2
    assert [row["modules"] for row in result["installation"]] == [20, 33]
    assert result["training"]["ours/none"]["median"] > 0
    assert capsys.readouterr().out == noise.tables(result) + "\n"


def test_the_counts_know_what_an_addition_and_the_native_hook_cost():
    for dtype, size in (("float32", 4), ("bfloat16", 2)):
        add, native = (counts.forward(kind, dtype, "ids alone", metrics=False) for kind in ("add", "native"))
        assert (add["bytes an element"], add["launches"]) == (2 * size, 1)
        # Zeros, random numbers in them, and a sum in a new tensor.
        assert (native["bytes an element"], native["launches"], native["scratch"]) == (5 * size, 3, 2)


def test_the_noise_adds_nothing_to_the_backward():
    model = noise.Lookup(torch.nn.Parameter(torch.randn(10, 4)))
    ids = torch.tensor([[1, 2, 3]])
    with noise.install(model, noise.NoiseConfig(alpha=5.0)):
        noisy = model(ids, attention_mask=torch.ones_like(ids))
    clean = model(ids, attention_mask=torch.ones_like(ids))
    assert not torch.equal(noisy, clean)
    assert type(noisy.grad_fn) is type(clean.grad_fn)


def test_the_noise_by_length_is_what_the_picture_shows():
    """Ours is alpha / sqrt(3 L), the native hook's that of the row, within the error of so many draws."""
    found = lengths.measure((8, 24, 64))
    for number, length in enumerate(found["lengths"]):
        # Of the mean norm of L vectors of d uniform draws: that of the root mean square, and its bias of 1 / (10 d).
        error = 5 * (9 / 5 - 1) ** 0.5 / (2 * (length * lengths.WIDTH) ** 0.5) + 1 / (10 * lengths.WIDTH)
        for series, expected in (
            ("ours, padded", length),
            ("ours, packed", length),
            ("native, padded", 64),
            ("native, packed", 96),
        ):
            assert found[series][number] == pytest.approx(5 / (3 * expected) ** 0.5, rel=error), series
