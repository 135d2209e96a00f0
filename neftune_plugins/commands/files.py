"""Files of the user's: what is read of them whole or refused, and what is written to them whole or not at all."""

import os
from pathlib import Path

from neftune_plugins.errors import NEFTuneError


def text(path: Path) -> str:
    """The text of a file. Raises NEFTuneError where there is none, with the remedy."""
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
    """Replace a file, which stays as it was where the text cannot be written. Bytes of file names that are no UTF-8
    are written as escapes, which are those of JSON too."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_text(text, encoding="utf-8", errors="backslashreplace", newline="")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
