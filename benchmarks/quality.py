"""Test how random the noise is: `python -m benchmarks.quality` prints statistics of 10^8 values, each with the value
that independent noise would have.

The values are computed as for a training batch: from token ids (with the frequencies of words, Zipf's law), through the
keys of the tokens, to the draw. To use other test suites, `python -m benchmarks.quality --raw channels | dieharder -a
-g 200` writes an endless stream of bits in which the channel, the token or the step changes fastest.

Shape suffixes: N tokens, D channels, S steps.
"""

import argparse
import ctypes
import json
import math
import os
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.record import RESULTS, table
from neftune_plugins.noise.draw import channel_bits, channel_codes, stream_key, token_keys
from neftune_plugins.noise.layout import read_layout
from neftune_plugins.plugins.manager import noise_types

ROWS, WIDTH, DIM, VOCABULARY = 2, 256, 1024, 49_152
TOKENS = ROWS * WIDTH
LAGS = (1, 2, 3, 8, 64, 250)
# Fourth moment of a uniform distribution of variance 1.
FOURTH = 9 / 5
# The noise fails if the smallest of all p-values is less probable than this.
SIGNIFICANCE = 1e-3
# Orders of (step, token, channel) for `--raw`; the last one changes fastest.
ORDERS = {"channels": (0, 1, 2), "tokens": (2, 0, 1), "steps": (1, 2, 0)}
RAW_STEPS = 32


@dataclass(frozen=True)
class Statistic:
    """A measured value, its expectation and standard error for independent noise, and the two-sided p-value."""

    name: str
    value: float
    expected: float
    error: float
    p: float


def batches(seed: int) -> Iterator[Tensor]:
    """An endless stream of batches of token ids (ROWS, WIDTH)."""
    generator = torch.Generator().manual_seed(seed)
    weight = 1 / (torch.arange(VOCABULARY, dtype=torch.float64) + 2.7)
    while True:
        yield torch.multinomial(weight, TOKENS, replacement=True, generator=generator).view(ROWS, WIDTH)


def bits(ids: Tensor, *, seed: int = 0, stream: int = 0, step: int = 0) -> Tensor:
    """The bits of a batch's noise: int32 (TOKENS, DIM)."""
    keys = token_keys(ids, read_layout({"input_ids": ids}), stream_key(seed, stream), torch.tensor(step))
    return channel_bits(keys.flatten(), channel_codes(torch.arange(DIM, dtype=torch.int32)))


def unit(bits_ND: Tensor, kind: str = "uniform") -> Tensor:
    """The noise that these bits give, before scaling: float64 (N, D)."""
    noise_type = noise_types()[kind]
    return noise_type.draw(bits_ND.clone()).double() * noise_type.unit


class _Totals:
    """Sums over the batches of a run, from which all statistics are computed.

    total: sums, histograms and Gram matrices, by name.
    dots: by family of statistics and member, a sum with mean 0 for independent values, and its variance.
    edges: for each batch the smallest and largest eigenvalue of the tokens' Gram matrix, ours and Mersenne Twister's.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.total: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), dtype=torch.float64))
        self.dots: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(lambda: [0.0, 0.0]))
        self.edges: list[list[Tensor]] = []
        self._generator = torch.Generator().manual_seed(seed)  # Mersenne Twister, to compare with

    def add(self, ids: Tensor, step: int) -> None:
        """Add the noise of a batch of token ids (ROWS, WIDTH)."""
        bits_ND = bits(ids, seed=self.seed, step=step)
        x_ND = unit(bits_ND) * math.sqrt(3)
        self._add_bits(bits_ND)
        self._add_distributions(bits_ND)
        self._add_pairs(bits_ND)
        self._add_neighbours(x_ND)
        self._add_other_draws(x_ND, ids, step)
        self._add_gram(x_ND)

    def _sum(self, family: str, member: object, value: float, variance: float) -> None:
        sums = self.dots[family][str(member)]
        sums[0] += value
        sums[1] += variance

    def _correlate(self, family: str, member: object, a: Tensor, b: Tensor) -> None:
        """Add the products of two sequences; their sum has mean 0, and their number as variance."""
        self._sum(family, member, (a * b).sum().item(), a.numel())

    def _add_bits(self, bits_ND: Tensor) -> None:
        for shift in range(32):
            ones_N = ((bits_ND >> shift) & 1).sum(1)
            self._sum("balance of the 32 bits", shift, 2 * ones_N.sum().item() - bits_ND.numel(), bits_ND.numel())
            if shift >= 8:
                squares = ((2 * ones_N - DIM).double().square() / DIM).sum().item()
                family = "spread of a bit's sum over a token's channels, 24 bits"
                self._sum(family, shift, squares - TOKENS, 2 * TOKENS)

    def _add_distributions(self, bits_ND: Tensor) -> None:
        u_ND, g_ND = unit(bits_ND), unit(bits_ND, "gaussian")
        total = self.total
        for kind, value in (("uniform", u_ND), ("gaussian", g_ND), ("bernoulli", unit(bits_ND, "bernoulli"))):
            total[f"{kind} sum"] = total[f"{kind} sum"] + value.sum()
            total[f"{kind} squares"] = total[f"{kind} squares"] + value.square().sum()
        for kind, cdf in (("uniform", (u_ND + 1) / 2), ("gaussian", torch.special.ndtr(g_ND))):
            total[f"{kind} bins"] = total[f"{kind} bins"] + _count((cdf * 2**20).long(), 2**20)

    def _add_pairs(self, bits_ND: Tensor) -> None:
        high_ND = (bits_ND >> 24).long() + 128
        for name, pairs in (
            ("channels", high_ND[:, ::2] * 256 + high_ND[:, 1::2]),
            ("tokens", high_ND[::2] * 256 + high_ND[1::2]),
        ):
            self.total[f"{name} pairs"] = self.total[f"{name} pairs"] + _count(pairs, 2**16)

    def _add_neighbours(self, x_ND: Tensor) -> None:
        for lag in LAGS:
            self._correlate("channels at a lag", lag, x_ND[:, lag:], x_ND[:, :-lag])
            self._correlate("tokens at a lag", lag, x_ND[lag:], x_ND[:-lag])
        channel_D = torch.arange(DIM)
        for bit in range(int(math.log2(DIM))):
            lower_D = channel_D[(channel_D >> bit) & 1 == 0]
            self._correlate("channels one bit apart", bit, x_ND[:, lower_D], x_ND[:, lower_D ^ (1 << bit)])

    def _add_other_draws(self, x_ND: Tensor, ids: Tensor, step: int) -> None:
        changed = ids.clone()
        changed[:, -1] = (changed[:, -1] + 1) % VOCABULARY
        for name, other in (
            ("next step", bits(ids, seed=self.seed, step=step + 1)),
            ("next seed", bits(ids, seed=self.seed + 1, step=step)),
            ("decoder's noise", bits(ids, seed=self.seed, step=step, stream=1)),
            ("example with another last token", bits(changed, seed=self.seed, step=step)),
        ):
            self._correlate(f"correlation with the {name}", 0, x_ND, unit(other) * math.sqrt(3))

    def _add_gram(self, x_ND: Tensor) -> None:
        gram_NN = x_ND @ x_ND.T / DIM
        self.total["tokens gram"] = self.total["tokens gram"] + gram_NN.triu(1).square().sum() * DIM
        self.total["channels gram"] = self.total["channels gram"] + x_ND.T @ x_ND
        theirs_ND = (torch.rand(TOKENS, DIM, generator=self._generator, dtype=torch.float64) * 2 - 1) * math.sqrt(3)
        spectra = [torch.linalg.eigvalsh(gram) for gram in (gram_NN, theirs_ND @ theirs_ND.T / DIM)]
        self.edges.append([spectrum[index] for spectrum in spectra for index in (0, -1)])


def statistics(values: int, seed: int = 0) -> list[Statistic]:
    """All statistics of about `values` values, rounded to whole batches and at least two of them."""
    count = max(2, round(values / (TOKENS * DIM)))
    totals = _Totals(seed)
    for step, ids in zip(range(count), batches(seed), strict=False):
        totals.add(ids, step)
    return [
        *_moments(totals.total, count * TOKENS * DIM),
        *_histograms(totals.total),
        *_correlations(totals.dots),
        *_grams(totals.total, count),
        *_eigenvalues(totals.edges),
    ]


def _moments(total: dict[str, Tensor], n: int) -> Iterator[Statistic]:
    for kind, square, fourth in (("uniform", 1 / 3, 1 / 5), ("gaussian", 1, 3), ("bernoulli", 1, 1)):
        yield _normal(f"{kind}: mean", total[f"{kind} sum"].item() / n, 0, math.sqrt(square / n))
        if fourth > square**2:
            error = math.sqrt((fourth - square**2) / n)
            yield _normal(f"{kind}: variance", total[f"{kind} squares"].item() / n, square, error)


def _histograms(total: dict[str, Tensor]) -> Iterator[Statistic]:
    yield _chi_square("uniform: chi-square of 65,536 bins", total["uniform bins"].view(2**16, -1).sum(1))
    for kind in ("uniform", "gaussian"):
        yield _kolmogorov_smirnov(f"{kind}: Kolmogorov-Smirnov, times root n", total[f"{kind} bins"])
    for name in ("channels", "tokens"):
        yield _chi_square(f"serial: chi-square of 256 x 256 pairs of neighbouring {name}", total[f"{name} pairs"])


def _correlations(dots: dict[str, dict[str, list[float]]]) -> Iterator[Statistic]:
    for family, members in dots.items():
        z = [product / math.sqrt(number) for product, number in members.values()]
        if len(z) == 1:
            yield _normal(f"{family}, times root n", z[0], 0, 1)
        else:
            yield _gamma(f"{family}: sum of {len(z)} squared z", sum(value**2 for value in z), len(z))


def _grams(total: dict[str, Tensor], count: int) -> Iterator[Statistic]:
    pairs, variance = _gram(TOKENS, DIM)
    squares, error = total["tokens gram"].item() / count, (variance / count) ** 0.5
    yield _normal("Gram matrix of tokens: sum of squared z", squares, pairs, error)
    pairs, variance = _gram(DIM, count * TOKENS)
    squares = total["channels gram"].triu(1).square().sum().item() / (count * TOKENS)
    yield _normal("Gram matrix of channels: sum of squared z", squares, pairs, variance**0.5)


def _eigenvalues(edges: list[list[Tensor]]) -> Iterator[Statistic]:
    edge = torch.tensor(edges, dtype=torch.float64).view(-1, 2, 2)  # batch, ours or theirs, smallest or largest
    for index, which in enumerate(("smallest", "largest")):
        mean, error = edge[:, :, index].mean(0), (edge[:, :, index].var(0).sum() / len(edge)).sqrt().item()
        name = f"Gram matrix of tokens: {which} eigenvalue, mean (expected: Mersenne Twister's)"
        yield _normal(name, mean[0].item(), mean[1].item(), error)


def _count(values: Tensor, bins: int) -> Tensor:
    return torch.bincount(values.flatten(), minlength=bins).double()


def _two_sided(upper: float) -> float:
    return min(1.0, 2 * min(upper, 1 - upper))


def _normal(name: str, value: float, expected: float, error: float) -> Statistic:
    return Statistic(name, value, expected, error, math.erfc(abs(value - expected) / error / math.sqrt(2)))


def _gamma(name: str, value: float, freedom: int) -> Statistic:
    """A statistic with a chi-square distribution of `freedom` degrees."""
    half = torch.tensor([freedom / 2, value / 2], dtype=torch.float64)
    p = _two_sided(torch.special.gammaincc(half[0], half[1]).item())
    return Statistic(name, value, freedom, math.sqrt(2 * freedom), p)


def _chi_square(name: str, counts: Tensor) -> Statistic:
    expected = counts.sum() / counts.numel()
    return _gamma(name, ((counts - expected).square() / expected).sum().item(), counts.numel() - 1)


def _kolmogorov_smirnov(name: str, counts: Tensor) -> Statistic:
    n = counts.sum().item()
    distance = (counts.cumsum(0) / n - torch.arange(1, counts.numel() + 1) / counts.numel()).abs().max().item()
    value = distance * math.sqrt(n)
    upper = 2 * sum((-1) ** (k - 1) * math.exp(-2 * (k * value) ** 2) for k in range(1, 100))
    # Mean and standard deviation of Kolmogorov's distribution.
    mean = math.sqrt(math.pi / 2) * math.log(2)
    return Statistic(name, value, mean, math.sqrt(math.pi**2 / 12 - mean**2), _two_sided(upper))


def _gram(m: int, n: int) -> tuple[float, float]:
    """Mean and variance of the sum of the squares of z_ij = sum_t x_it x_jt / sqrt(n) over the pairs of m vectors of
    n independent values each."""
    alone = m * (m - 1) / 2 * (2 + (FOURTH**2 - 3) / n)
    sharing_one = m * (m - 1) * (m - 2) * (FOURTH - 1) / n
    return m * (m - 1) / 2, alone + sharing_one


def least(found: list[Statistic]) -> float:
    """The probability that the smallest p of this many independent statistics is as small as the one found."""
    return 1 - (1 - min(statistic.p for statistic in found)) ** len(found)


def statistics_table(found: list[Statistic]) -> str:
    rows = [[s.name, f"{s.value:.7g}", f"{s.expected:.7g}", f"{s.error:.2g}", f"{s.p:.3f}"] for s in found]
    return table(["statistic", "value", "expected", "standard error", "p"], rows)


def judgement(found: list[Statistic]) -> str:
    smallest = min(found, key=lambda statistic: statistic.p)
    verdict = "passed" if least(found) > SIGNIFICANCE else "FAILED"
    return (
        f"{verdict}: the smallest of {len(found)} p-values is {smallest.p:.2g} ({smallest.name}); by chance, "
        f"{least(found):.0%} of all runs have one as small."
    )


def write_raw(order: str, seed: int, width: int) -> None:
    """Write the upper `width` bytes of the bits of each value to standard output, until the reader closes it."""
    first = 0
    for ids in batches(seed):
        steps = [bits(ids, seed=seed, step=first + step) for step in range(RAW_STEPS)]
        words = torch.stack(steps).permute(ORDERS[order]).contiguous()
        little_endian = words.view(-1).view(torch.uint8).view(-1, 4)[:, 4 - width :].contiguous()
        # Tensor.numpy() would need NumPy, which need not be installed.
        sys.stdout.buffer.write(ctypes.string_at(little_endian.data_ptr(), little_endian.nbytes))
        first += RAW_STEPS


def recorded() -> str:
    """The table of the recorded run, for the page."""
    found = [Statistic(**row) for row in json.loads((RESULTS / "quality.json").read_text())]
    return f"{statistics_table(found)}\n\n{judgement(found)}"


def battery() -> str:
    """The table of dieharder's recorded runs, for the page."""
    rows = []
    for file in sorted(RESULTS.glob("dieharder-*.txt")):
        verdicts = [line.split("|")[5].strip() for line in file.read_text().splitlines() if line.count("|") == 5]
        counts = [str(verdicts.count(verdict)) for verdict in ("PASSED", "WEAK", "FAILED")]
        rows.append([f"[{file.stem.removeprefix('dieharder-')}](../benchmarks/results/{file.name})", *counts])
    return table(["run", "passed", "weak", "failed"], rows)


def main(arguments: list[str] | None = None) -> int:
    """Run the command. Returns 1 if the noise fails the tests, otherwise 0."""
    parser = argparse.ArgumentParser(description="Test how random the noise is.")
    parser.add_argument("--values", type=float, default=1e8, help="number of values (default: 1e8)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the statistics to this file, too")
    parser.add_argument("--raw", choices=ORDERS, help="write bits to standard output instead, in this order")
    parser.add_argument("--bytes", type=int, default=3, choices=(3, 4), help="upper bytes of each word in --raw")
    options = parser.parse_args(arguments)
    if options.raw:
        try:
            write_raw(options.raw, options.seed, options.bytes)
        except BrokenPipeError:
            os._exit(0)  # the test suite has read enough; do not flush
    found = statistics(int(options.values), options.seed)
    print(statistics_table(found), judgement(found), sep="\n\n")
    if options.json:
        options.json.write_text(json.dumps([asdict(statistic) for statistic in found], indent=1) + "\n")
    return int(least(found) <= SIGNIFICANCE)


if __name__ == "__main__":
    sys.exit(main())
