"""Print aligned text, with colour if the output is a terminal."""

import os
import shutil
import sys
import textwrap
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

_COLOURS = {"green": "32", "red": "31", "dim": "2"}


def coloured(text: str, colour: str) -> str:
    """The text in that colour, if standard output is a terminal and `NO_COLOR` (`no-color.org`) is not set."""
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR"):
        return text
    return f"\033[{_COLOURS[colour]}m{text}\033[0m"


def folded(text: str, indent: int) -> str:
    """The text, which begins at column `indent`; in a terminal, wrapped at its width with the same indent."""
    if not sys.stdout.isatty():
        return text
    width = max(shutil.get_terminal_size().columns - indent, 20)
    return f"\n{' ' * indent}".join(textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False))


def table(rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> str:
    """The rows as lines of aligned columns. Columns whose numbers are in `right` are aligned to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if number in right else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


@contextmanager
def waiting(reason: str) -> Iterator[None]:
    """Show the reason and the seconds of waiting on standard error if it is a terminal; remove the line at the end."""
    if not sys.stderr.isatty():
        yield
        return
    done, start = threading.Event(), time.monotonic()

    def show() -> None:
        while True:
            sys.stderr.write(f"\r\033[K{reason} ... {time.monotonic() - start:.0f} s")
            sys.stderr.flush()
            if done.wait(1):
                break
        sys.stderr.write("\r\033[K")
        sys.stderr.flush()

    thread = threading.Thread(target=show)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
