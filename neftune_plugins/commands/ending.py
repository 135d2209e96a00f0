"""Ends a command with a status and at most one line if it is interrupted or its output cannot be written."""

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
    """Exit with 130 after Ctrl-C, with 141 if the reader of a pipe has closed it, and with 2 and a message if standard
    output cannot be written.

    Errors of writing to standard error are ignored. Characters outside the output's encoding are written as escapes.
    """
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
    """A stream that handles errors of writing by itself."""

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
        # The rest of its buffer would fail again when Python ends.
        with suppress(OSError, ValueError), open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), self._stream.fileno())
        if not self._vital:
            return
        if isinstance(error, BrokenPipeError):
            sys.exit(CLOSED_PIPE)
        print(f"neftune: the output cannot be written: {error.strerror}", file=sys.stderr)
        sys.exit(UNWRITABLE)
