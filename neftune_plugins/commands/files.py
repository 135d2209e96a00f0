"""Reads and writes files of the user, each as a whole or not at all."""

import os
from pathlib import Path

from neftune_plugins.errors import NEFTuneError


def text(path: Path) -> str:
    """Return the text of a file. Raises NEFTuneError, with the remedy, if it cannot be read."""
    try:
        if path.exists() and not path.is_file():
            what = "a folder" if path.is_dir() else "not a regular file"
            raise NEFTuneError(f"{path}: this is {what}; name a file")
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise NEFTuneError(f"{path}: there is no such file") from None
    except UnicodeDecodeError as error:
        raise NEFTuneError(f"{path}: this is not UTF-8 (byte {error.start}); save it as UTF-8") from None
    except (OSError, ValueError) as error:
        raise NEFTuneError(f"{path}: it cannot be read: {getattr(error, 'strerror', None) or error}") from None


def write(path: Path, text: str) -> None:
    """Replace a file. If the text cannot be written, the file does not change. Bytes of file names outside UTF-8 are
    written as escapes, as JSON writes them."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_text(text, encoding="utf-8", errors="backslashreplace", newline="")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
