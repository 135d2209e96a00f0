"""How random the noise is: `python -m benchmarks.quality` prints statistics of 10^8 values, each with what independent
values give.

The values come the way that a batch's do, from token ids (as frequent as words are: Zipf's law) over the tokens' keys
to the draw. For the batteries of others, `python -m benchmarks.quality --raw channels | dieharder -a -g 200` writes the
bits without end: by channel fastest, as a batch is noised, or by token, or by step.

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
# Below this probability, of the least p among all, the noise is called defective.
SIGNIFICANCE = 1e-3
# The orders of (step, token, channel) in which `--raw` writes, the last one fastest.
ORDERS = {"channels": (0, 1, 2), "tokens": (2, 0, 1), "steps": (1, 2, 0)}
RAW_STEPS = 32


@dataclass(frozen=True)
class Statistic:
    """What came out, and what independent uniform values give on average; p is two-sided."""

    name: str
    value: float
    expected: float
    error: float
    p: float


def batches(seed: int) -> Iterator[Tensor]:
    """Token ids (ROWS, WIDTH), without end."""
    generator = torch.Generator().manual_seed(seed)
    weight = 1 / (torch.arange(VOCABULARY, dtype=torch.float64) + 2.7)
    while True:
        yield torch.multinomial(weight, TOKENS, replacement=True, generator=generator).view(ROWS, WIDTH)


def bits(ids: Tensor, *, seed: int = 0, stream: int = 0, step: int = 0) -> Tensor:
    """The bits of a batch's noise: int32 (TOKENS, DIM)."""
    keys = token_keys(ids, read_layout({"input_ids": ids}), stream_key(seed, stream), torch.tensor(step))
    return channel_bits(keys.flatten(), channel_codes(torch.arange(DIM, dtype=torch.int32)))


def unit(bits_ND: Tensor, kind: str = "uniform") -> Tensor:
    """The draw, in float64 (N, D)."""
    noise_type = noise_types()[kind]
    return noise_type.draw(bits_ND.clone()).double() * noise_type.unit


def statistics(values: int, seed: int = 0) -> list[Statistic]:
    """All statistics of about so many values (a multiple of a batch's)."""
    count = max(2, round(values / (TOKENS * DIM)))
    n = count * TOKENS * DIM
    generator = torch.Generator().manual_seed(seed)  # Mersenne Twister, to compare with
    total: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), dtype=torch.float64))
    dots: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(lambda: [0.0, 0.0]))
    edges = []
    channel_D = torch.arange(DIM)

    def correlate(family: str, member: object, a: Tensor, b: Tensor) -> None:
        """Add the products of two sequences; the sum has mean 0 and variance their number."""
        sums = dots[family][str(member)]
        sums[0] += (a * b).sum().item()
        sums[1] += a.numel()

    for step, ids in zip(range(count), batches(seed), strict=False):
        bits_ND = bits(ids, seed=seed, step=step)
        for shift in range(32):
            ones_N = ((bits_ND >> shift) & 1).sum(1)
            sums = dots["balance of the 32 bits"][str(shift)]
            sums[0] += 2 * ones_N.sum().item() - bits_ND.numel()
            sums[1] += bits_ND.numel()
            if shift >= 8:
                sums = dots["spread of a bit's sum over a token's channels, 24 bits"][str(shift)]
                sums[0] += ((2 * ones_N - DIM).double().square() / DIM).sum().item() - TOKENS
                sums[1] += 2 * TOKENS
        u_ND = unit(bits_ND)
        g_ND = unit(bits_ND, "gaussian")
        for kind, value in (("uniform", u_ND), ("gaussian", g_ND), ("bernoulli", unit(bits_ND, "bernoulli"))):
            total[f"{kind} sum"] = total[f"{kind} sum"] + value.sum()
            total[f"{kind} squares"] = total[f"{kind} squares"] + value.square().sum()
        for kind, cdf in (("uniform", (u_ND + 1) / 2), ("gaussian", torch.special.ndtr(g_ND))):
            total[f"{kind} bins"] = total[f"{kind} bins"] + _count((cdf * 2**20).long(), 2**20)
        high_ND = (bits_ND >> 24).long() + 128
        for name, pairs in (
            ("channels", high_ND[:, ::2] * 256 + high_ND[:, 1::2]),
            ("tokens", high_ND[::2] * 256 + high_ND[1::2]),
        ):
            total[f"{name} pairs"] = total[f"{name} pairs"] + _count(pairs, 2**16)

        x_ND = u_ND * math.sqrt(3)
        for lag in LAGS:
            correlate("channels at a lag", lag, x_ND[:, lag:], x_ND[:, :-lag])
            correlate("tokens at a lag", lag, x_ND[lag:], x_ND[:-lag])
        for bit in range(int(math.log2(DIM))):
            lower_D = channel_D[(channel_D >> bit) & 1 == 0]
            correlate("channels one bit apart", bit, x_ND[:, lower_D], x_ND[:, lower_D ^ (1 << bit)])
        changed = ids.clone()
        changed[:, -1] = (changed[:, -1] + 1) % VOCABULARY
        for name, other in (
            ("next step", bits(ids, seed=seed, step=step + 1)),
            ("next seed", bits(ids, seed=seed + 1, step=step)),
            ("decoder's noise", bits(ids, seed=seed, step=step, stream=1)),
            ("example with another last token", bits(changed, seed=seed, step=step)),
        ):
            correlate(f"correlation with the {name}", 0, x_ND, unit(other) * math.sqrt(3))

        gram_NN = x_ND @ x_ND.T / DIM
        total["tokens gram"] = total["tokens gram"] + gram_NN.triu(1).square().sum() * DIM
        total["channels gram"] = total["channels gram"] + x_ND.T @ x_ND
        theirs_ND = (torch.rand(TOKENS, DIM, generator=generator, dtype=torch.float64) * 2 - 1) * math.sqrt(3)
        spectra = [torch.linalg.eigvalsh(gram) for gram in (gram_NN, theirs_ND @ theirs_ND.T / DIM)]
        edges.append([spectrum[index] for spectrum in spectra for index in (0, -1)])

    found = []
    for kind, square, fourth in (("uniform", 1 / 3, 1 / 5), ("gaussian", 1, 3), ("bernoulli", 1, 1)):
        found.append(_normal(f"{kind}: mean", total[f"{kind} sum"].item() / n, 0, math.sqrt(square / n)))
        if fourth > square**2:
            error = math.sqrt((fourth - square**2) / n)
            found.append(_normal(f"{kind}: variance", total[f"{kind} squares"].item() / n, square, error))
    found.append(_chi_square("uniform: chi-square of 65,536 bins", total["uniform bins"].view(2**16, -1).sum(1)))
    for kind in ("uniform", "gaussian"):
        found.append(_kolmogorov_smirnov(f"{kind}: Kolmogorov-Smirnov, times root n", total[f"{kind} bins"]))
    for name in ("channels", "tokens"):
        found.append(
            _chi_square(f"serial: chi-square of 256 x 256 pairs of neighbouring {name}", total[f"{name} pairs"])
        )
    for family, members in dots.items():
        z = [product / math.sqrt(number) for product, number in members.values()]
        if len(z) == 1:
            found.append(_normal(f"{family}, times root n", z[0], 0, 1))
        else:
            squares = sum(value**2 for value in z)
            found.append(_gamma(f"{family}: sum of {len(z)} squared z", squares, len(z)))
    pairs, variance = _gram(TOKENS, DIM)
    found.append(
        _normal(
            "Gram matrix of tokens: sum of squared z",
            total["tokens gram"].item() / count,
            pairs,
            (variance / count) ** 0.5,
        )
    )
    pairs, variance = _gram(DIM, count * TOKENS)
    squares = total["channels gram"].triu(1).square().sum().item() / (count * TOKENS)
    found.append(_normal("Gram matrix of channels: sum of squared z", squares, pairs, variance**0.5))
    edge = torch.tensor(edges, dtype=torch.float64).view(count, 2, 2)  # batch, ours or theirs, smallest or largest
    for index, which in enumerate(("smallest", "largest")):
        mean, error = edge[:, :, index].mean(0), (edge[:, :, index].var(0).sum() / count).sqrt().item()
        name = f"Gram matrix of tokens: {which} eigenvalue, mean (expected: Mersenne Twister's)"
        found.append(_normal(name, mean[0].item(), mean[1].item(), error))
    return found


def _count(values: Tensor, bins: int) -> Tensor:
    return torch.bincount(values.flatten(), minlength=bins).double()


def _two_sided(upper: float) -> float:
    return min(1.0, 2 * min(upper, 1 - upper))


def _normal(name: str, value: float, expected: float, error: float) -> Statistic:
    return Statistic(name, value, expected, error, math.erfc(abs(value - expected) / error / math.sqrt(2)))


def _gamma(name: str, value: float, freedom: int) -> Statistic:
    """Of a chi-square distribution."""
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
    """How probable it is that the least p of so many independent statistics is as small as the least of these."""
    return 1 - (1 - min(statistic.p for statistic in found)) ** len(found)


def statistics_table(found: list[Statistic]) -> str:
    rows = [[s.name, f"{s.value:.7g}", f"{s.expected:.7g}", f"{s.error:.2g}", f"{s.p:.3f}"] for s in found]
    return table(["statistic", "value", "expected", "standard error", "p"], rows)


def judgement(found: list[Statistic]) -> str:
    smallest = min(found, key=lambda statistic: statistic.p)
    verdict = "passed" if least(found) > SIGNIFICANCE else "FAILED"
    return (
        f"{verdict}: the least of {len(found)} p is {smallest.p:.2g} ({smallest.name}); chance gives one as small in "
        f"{least(found):.0%} of all runs."
    )


def write_raw(order: str, seed: int, width: int) -> None:
    """Write the upper `width` bytes of the bits of each value to standard output until nobody reads them."""
    first = 0
    for ids in batches(seed):
        steps = [bits(ids, seed=seed, step=first + step) for step in range(RAW_STEPS)]
        words = torch.stack(steps).permute(ORDERS[order]).contiguous()
        little_endian = words.view(-1).view(torch.uint8).view(-1, 4)[:, 4 - width :].contiguous()
        # NumPy, through which tensors give their bytes, need not be there.
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
    """Returns 1 where the statistics say that the noise is defective."""
    parser = argparse.ArgumentParser(description="Statistics of the noise.")
    parser.add_argument("--values", type=float, default=1e8, help="how many (default: 1e8)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the statistics to this file, too")
    parser.add_argument("--raw", choices=ORDERS, help="write bits to standard output instead, in this order")
    parser.add_argument("--bytes", type=int, default=3, choices=(3, 4), help="upper bytes of each word in --raw")
    options = parser.parse_args(arguments)
    if options.raw:
        try:
            write_raw(options.raw, options.seed, options.bytes)
        except BrokenPipeError:
            os._exit(0)  # the battery has had enough; nothing is left to flush
    found = statistics(int(options.values), options.seed)
    print(statistics_table(found), judgement(found), sep="\n\n")
    if options.json:
        options.json.write_text(json.dumps([asdict(statistic) for statistic in found], indent=1) + "\n")
    return int(least(found) <= SIGNIFICANCE)


if __name__ == "__main__":
    sys.exit(main())
