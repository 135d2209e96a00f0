"""End a command with at most one line and an exit status if it is interrupted or cannot write its output."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

UNWRITABLE = 2
# As in a shell: 128 plus the number of the signal.
INTERRUPTED = 128 + signal.SIGINT
CLOSED_PIPE = 128 + signal.SIGPIPE


@contextmanager
def ended_well() -> Iterator[None]:
    """Exits with 130 after Ctrl-C, 141 if the reader closed the pipe, and 2 with a message if standard output cannot
    be written. Errors of writing to standard error are ignored, because they cannot be reported anywhere. Characters
    that the output's encoding does not have are written as escapes."""
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _Output(streams[0], vital=True), _Output(streams[1], vital=False)
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        print("neftune: stopped", file=sys.stderr)
        sys.exit(INTERRUPTED)
    finally:
        sys.stderr.flush()
        sys.stdout, sys.stderr = streams


class _Output:
    """A stream that ends the command if a `vital` output cannot be written, and ignores the error otherwise."""

    def __init__(self, stream: Any, *, vital: bool) -> None:
        self._stream = open(os.devnull, "w") if stream is None else stream  # noqa: SIM115  (None: closed by the shell)
        self._vital = vital
        if hasattr(self._stream, "reconfigure"):
            self._stream.reconfigure(errors="backslashreplace")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
        except OSError as error:
            self._lost(error)
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._lost(error)

    def _lost(self, error: OSError) -> None:
        # Python flushes the buffer at exit, which would fail again.
        with suppress(OSError, ValueError), open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), self._stream.fileno())
        if not self._vital:
            return
        if isinstance(error, BrokenPipeError):
            sys.exit(CLOSED_PIPE)
        print(
            f"neftune: the output cannot be written: {error.strerror}; free space, or write it elsewhere",
            file=sys.stderr,
        )
        sys.exit(UNWRITABLE)
