"""Locks that the operating system takes back when their holders have died, however they died."""

import fcntl
from pathlib import Path
from typing import IO


def taken(file: Path) -> IO[bytes]:
    """Make the file, and hold its lock as long as what is returned is open, here or in a child that it is passed to."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = file.open("wb")
    fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


def left_behind(file: Path) -> bool:
    """Whether the file is here, and nobody holds its lock."""
    try:
        with file.open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    except (FileNotFoundError, BlockingIOError):
        return False
