"""Building the C loops: once for each source, compiler and processor, into a folder that only the user can write."""

import ctypes
import hashlib
import importlib.resources
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path

_LONGEST = 60  # seconds of a compiler
_FLAGS = ("-O3", "-march=native", "-ffp-contract=off", "-fwrapv", "-fPIC", "-shared", "-pthread", "-std=gnu11")


class CannotBuildError(Exception):
    """A loop cannot be built or loaded here; the message says why."""


def library(name: str, *definitions: str) -> ctypes.CDLL:
    """The C file of this package with that name, with these macros, built if it has not been. Raises
    CannotBuildError."""
    source = importlib.resources.files(__package__).joinpath(f"{name}.c").read_text(encoding="utf-8")
    compiler = shutil.which(os.environ.get("CC") or "cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise CannotBuildError("there is no C compiler (cc, gcc, clang or $CC)")
    flags = (*_FLAGS, *(f"-D{definition}" for definition in definitions))
    try:
        file = _folder() / f"{name}-{_fingerprint(source, compiler, flags)}.so"
        if not file.exists():
            _compile(source, compiler, flags, file)
        return ctypes.CDLL(str(file))
    except (OSError, subprocess.SubprocessError) as error:
        raise CannotBuildError(" ".join(str(error).split())) from None


def _folder() -> Path:
    """The cache folder. Raises CannotBuildError if somebody else could put a library there."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "neftune-plugins" / "kernels"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    found = folder.stat()
    if found.st_uid != os.getuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise CannotBuildError(f"{folder} may be written by other users: chmod go-w it, or remove it")
    return folder


def _fingerprint(source: str, compiler: str, flags: tuple[str, ...]) -> str:
    """Of all that the library depends on; a home folder may be shared by machines with other processors."""
    found = os.stat(compiler)
    about = [source, compiler, str(found.st_size), str(found.st_mtime_ns), *flags, platform.machine(), _processor()]
    return hashlib.sha256("\0".join(about).encode()).hexdigest()[:32]


def _processor() -> str:
    """What the processor can do, on Linux; elsewhere its name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))


def _compile(source: str, compiler: str, flags: tuple[str, ...], file: Path) -> None:
    with tempfile.TemporaryDirectory(dir=file.parent, prefix="build-") as folder:
        code, built = Path(folder) / "source.c", Path(folder) / "built.so"
        code.write_text(source, encoding="utf-8")
        command = [compiler, *flags, "-o", str(built), str(code), "-lm"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_LONGEST, errors="replace", check=False)
        if done.returncode or not built.exists():
            raise CannotBuildError(f"{compiler} failed: {' '.join(done.stderr.split())[:300] or done.returncode}")
        os.replace(built, file)  # two processes may build at once
