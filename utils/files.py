"""Files that are whole or not there, and locks that die with their holder."""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from utils.declared import UsageError
from utils.paths import irregular


class RunFailed(RuntimeError):
    """The run cannot go on for a reason that one line says: main prints it and exits with 1."""


def write_atomic(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Let `write` fill a temporary file beside `path`, flush it to the disk and rename it to `path`.

    After a kill or a full disk `path` is as it was before. Raises OSError.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def check_regular(path: Path, option: str = "", *, or_folder: bool = False) -> None:
    """Raises UsageError where `path`, which `option` named, is `irregular`, and no folder where that may be."""
    if (fault := irregular(path)) and not (or_folder and path.is_dir()):
        raise UsageError(f"{option}{path} {fault}")


def check_new(path: Path, *, force: bool, option: str = "") -> None:
    """Raises UsageError where `path`, which `option` named, is no place for a new file, or one is there (but for
    `force`)."""
    check_regular(path, option, or_folder=True)
    if path.is_dir() or not path.parent.is_dir():
        raise UsageError(option + (f"{path} is a directory" if path.is_dir() else f"{path.parent} is no directory"))
    if path.exists() and not force:
        raise UsageError(f"{option}{path} is there already; --force replaces it")
    if not os.access(path.parent, os.W_OK):
        raise UsageError(f"{option}{path.parent} cannot be written to")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Whatever keeps `path` from being written in here, by torch.save too, becomes a RunFailed of one line."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error).split("\n")[0]
        if "unexpected pos" in reason:  # torch.save's
            reason = "the disk took no more of it: it is full, or over a quota"
        raise RunFailed(f"cannot write {path}: {reason}") from error


def write_text(path: Path, text: str) -> None:
    """`write_atomic` for a small text."""
    write_atomic(path, lambda file: file.write(text.encode()))


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Wait for, hold and release the exclusive lock on the file `path`; the system releases it when a process dies."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def try_lock(path: Path) -> IO[str] | None:
    """The lock on `path`, held until the returned file is closed or the process ends; None where another holds it."""
    file = path.open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file
