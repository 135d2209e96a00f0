"""What was measured, for people: a table, and a picture."""

import math
from collections.abc import Iterable
from html import escape

from neftune_plugins.commands.chart import HEIGHT, WIDTH, Chart, Dot, Line, colour, style
from neftune_plugins.commands.terminal import coloured, folded, table
from neftune_plugins.probing.findings import Findings, Kind

_HEAD = (
    "caller",
    "model",
    "mode",
    "gradients",
    "adapters",
    "forwards",
    "examples",
    "L",
    "noise/paper: min",
    "median",
    "max",
    "padding",
    "images",
)
_NUMBERS = range(5, len(_HEAD))


def text(findings: Findings) -> str:
    """The table, what was doubtful or could not be seen, and the verdict."""
    alpha = "unknown" if findings.alpha is None else f"{findings.alpha:g} ({findings.source})"
    processes = "process" if findings.processes == 1 else "processes"
    lines = [f"{findings.steps} optimisation steps, {findings.processes} {processes}, alpha {alpha}"]
    if findings.kinds:
        lines += ["", table([_HEAD, *map(_row, findings.kinds)], right=_NUMBERS), ""]
    for kind in findings.kinds:
        lines += _notes("two arguments disagree", kind, kind.doubts.items())
        lines += _notes("not measured", kind, kind.blind.items())
    good = findings.verdict.startswith("right")
    return "\n".join([*lines, coloured(folded(findings.verdict, 0), "green" if good else "red")])


def _row(kind: Kind) -> tuple[str, ...]:
    about = (kind.caller, kind.model, kind.mode, "yes" if kind.grad else "no", kind.adapters, str(kind.forwards))
    if not kind.examples:
        return (*about, "0", *["-"] * 6)
    ratios = kind.ratios
    shown = (ratios[0], ratios[len(ratios) // 2], ratios[-1], kind.padding)
    images = str(kind.silent) if kind.silent else "-"
    return (*about, str(len(ratios)), _lengths(kind), *(f"{value:.2f}" for value in shown), images)


def _lengths(kind: Kind) -> str:
    lengths = [example.length for example in kind.examples]
    low, high = min(lengths), max(lengths)
    return str(low) if low == high else f"{low}-{high}"


def _notes(what: str, kind: Kind, counted: Iterable[tuple[str, int]]) -> list[str]:
    return [f"{what} in {number} forward passes of {kind.label}: {folded(why, 2)}" for why, number in counted]


def picture(findings: Findings) -> str:
    """An SVG with a point for each example, and a line for the paper."""
    shown = [kind for kind in findings.kinds if kind.examples] if findings.alpha else []
    dots, parts = [], []
    for number, kind in enumerate(shown):
        look = colour(number / max(1, len(shown) - 1))
        for one in kind.examples:
            title = f"{kind.label}, L {one.length}: {one.ratio:.2f} of the paper's noise"
            dots.append(Dot((float(one.length), _norm(findings, one.length) * one.ratio), look, title, "example"))
        parts.append((look, kind.label))
    if not dots:
        return _page("", parts, "nothing was measured")
    longest = max(dot.point[0] for dot in dots)
    shortest = min(dot.point[0] for dot in dots)
    curve = [shortest + (longest - shortest) * step / 50 for step in range(51)]
    paper = Line([(length, _norm(findings, length)) for length in curve], "var(--ink)", "the paper", "7 3")
    title = f"noise on a token, alpha {findings.alpha:g}"
    chart = Chart(title, "length L of the example", f"{title}. {findings.verdict}", [paper], dots)
    return _page(chart.svg("means"), [("var(--ink)", "the paper: alpha / sqrt(3 L)"), *parts], title)


def _norm(findings: Findings, length: float) -> float:
    """Of the paper's noise on one token: root mean square alpha / sqrt(3 L d), times sqrt(d)."""
    return (findings.alpha or 0.0) / math.sqrt(3 * length)


def _page(chart: str, key: list[tuple[str, str]], title: str) -> str:
    """An SVG with title, chart and key."""
    top, line = 30, 18
    height = top + HEIGHT + line * len(key) + 10
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {1.5 * WIDTH:g} {height:g}">',
        f"<style>\ntext {{ font-family: system-ui; }}\n{style()}</style>",
        '<rect width="100%" height="100%" fill="var(--page)"/>',
        f'<text x="8" y="20">{escape(title)}</text>',
        chart.replace("<svg ", f'<svg y="{top}" width="{WIDTH:g}" height="{HEIGHT:g}" ', 1),
    ]
    for number, (look, label) in enumerate(key):
        y = top + HEIGHT + line * (number + 1)
        lines.append(
            f'<circle cx="14" cy="{y - 4:g}" r="4" style="fill:{look}"/><text x="24" y="{y:g}">{escape(label)}</text>'
        )
    return "\n".join([*lines, "</svg>", ""])
