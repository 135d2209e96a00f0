"""Finds why a training failed, from the end of its log."""

import re
import signal
from collections.abc import Sequence

from neftune_plugins.sweep.study import Trial

LONGEST = 300  # characters of a cause

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_RANK = re.compile(r"^\[rank\d+\]:\s?")
# Lines that may follow the cause: launchers that report a failed child, closing loggers, progress bars, rulers.
_NOISE = re.compile(
    r"""^\W*$
    | ^\s*File\s".*",\sline\s\d+
    | ^\S*(CalledProcessError|ChildFailedError)\b
    | ^\s*(wandb|trackio|swanlab):
    | ^\S*\s?(resource_tracker|Exception\signored\sin)
    | Warning:\s
    | \d+%\|
    | ^\[[IWE]\d{3,}
    """,
    re.VERBOSE,
)
_EXCEPTION = re.compile(r"^[A-Za-z_][\w.]*(Error|Exception|Exit|Interrupt|Failure|Timeout)\b")
_RECENT = 12  # an exception counts as the cause if it is among this many last lines


def cause(log: str) -> str:
    """Return the line of a log that says why its program ended; empty if there is none.

    That is the last exception, if it is near the end, else the last meaningful line. A line that ends in a colon
    includes the next one.
    """
    lines = [_plain(line) for line in log.rpartition("\n$ ")[2].split("\n")]
    if log.startswith("$ ") or "\n$ " in log:
        del lines[0]  # the command
    meaning = [line for line in lines if not _NOISE.search(line)]
    recent = range(max(0, len(meaning) - _RECENT), len(meaning))
    at = next((number for number in reversed(recent) if _EXCEPTION.search(meaning[number])), len(meaning) - 1)
    if at < 0:
        return ""
    last = at
    while meaning[last].rstrip().endswith((":", "Error")) and last + 1 < len(meaning):
        last += 1
    told = " ".join(" ".join(meaning[at : last + 1]).split())
    return told if len(told) <= LONGEST else f"{told[: LONGEST - 3]}..."


def ending(status: int) -> str:
    """Return an exit status in words. From 128 on, a shell's status contains the number of a signal."""
    try:
        return f"status {status} ({signal.Signals(status - 128).name})"
    except ValueError:
        return f"status {status}"


def alike(trials: Sequence[Trial]) -> bool:
    """Whether all of them failed for the same cause, which may differ in numbers and paths."""
    return all(trial.state == "failed" for trial in trials) and len(set(map(_kind, trials))) == 1


def first_line(trial: Trial) -> str:
    """The cause of a failed trial."""
    return trial.error.partition("\n")[0]


def _kind(trial: Trial) -> str:
    return re.sub(r"0x[0-9a-f]+|\S*/\S*|[-+]?\d+([.:]\d+)*", "#", first_line(trial))


def _plain(line: str) -> str:
    """Return a line as a terminal finally shows it, because a progress bar overwrites itself."""
    return _RANK.sub("", _ESCAPES.sub("", line).rstrip("\r").rpartition("\r")[2]).rstrip()
