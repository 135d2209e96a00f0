"""A picture of the `neftune` command on a terminal, as SVG.

python -m tests.support.capture docs/images/doctor.svg doctor
python -m tests.support.capture docs/images/check.svg check example_configs/ludwig/full.yaml
"""

import re
import sys
from collections.abc import Iterator
from html import escape
from pathlib import Path

from tests.support.commands import on_a_terminal

COLUMNS = 110
_WIDTH, _HEIGHT, _MARGIN = 8, 18, 12  # of a cell and of the margin, pixels
_COLOURS = {"": "#e6edf3", "31": "#ff7b72", "32": "#56d364", "2": "#8b949e"}


def svg(screen: str) -> str:
    """The picture of what a terminal was sent: lines of text with colours, and progress that was wiped out."""
    lines = [line.rpartition("\033[K")[2] for line in screen.replace("\r\n", "\n").rstrip("\n").split("\n")]
    width = COLUMNS * _WIDTH + 2 * _MARGIN
    height = len(lines) * _HEIGHT + 2 * _MARGIN
    texts = [
        f'<text x="{_MARGIN + column * _WIDTH}" y="{_MARGIN + (row + 0.75) * _HEIGHT:g}" fill="{colour}" '
        f'textLength="{len(text) * _WIDTH}">{escape(text)}</text>'
        for row, line in enumerate(lines)
        for column, colour, text in _runs(line)
    ]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            'font-family="monospace" font-size="13" xml:space="preserve">',
            f'<rect width="{width}" height="{height}" rx="6" fill="#0d1117"/>',
            *texts,
            "</svg>\n",
        ]
    )


def _runs(line: str) -> Iterator[tuple[int, str, str]]:
    """The words of a line that stand one space apart in one colour: column, colour, text."""
    column, colour = 0, _COLOURS[""]
    for part in re.split(r"(\033\[\d+m)", line):
        if part.startswith("\033"):
            colour = _COLOURS.get(part[2:-1], _COLOURS[""])
            continue
        for run in re.finditer(r"\S+(?: \S+)*", part):
            yield column + run.start(), colour, run[0]
        column += len(part)


if __name__ == "__main__":
    file, *arguments = sys.argv[1:]
    shown = on_a_terminal(*arguments, columns=COLUMNS)
    Path(file).parent.mkdir(exist_ok=True)
    Path(file).write_text(svg(f"$ neftune {' '.join(arguments)}\r\n{shown}"))
