"""Atomic writes, checks of paths before they are opened, and file locks that end with the process that holds them."""

import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from utils.errors import RunFailed, UsageError


def write_atomic(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Let `write` fill a temporary file beside `path`, flush the file to the disk and rename it to `path`.

    A kill or a full disk leaves `path` as it was. Raises OSError, which names `path`.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and error.errno and error.filename is None:
            error.filename = str(path)  # a failed write does not name its file
        raise


KINDS = {stat.S_IFDIR: "a directory", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}
KINDS |= {stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
NEEDED = "a regular file is needed"


def irregular(path: str | Path) -> str:
    """Return what is wrong with `path` if something other than a regular file is there, else "".

    Opening anything else may wait forever (a FIFO), discard what is written (/dev/null) or never end (/dev/zero).
    """
    path = Path(path)
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return f"is a link to {path.readlink()}, which does not exist; {NEEDED}" if path.is_symlink() else ""
    except (OSError, ValueError):  # opening it will raise with the reason
        return ""
    kind = stat.S_IFMT(mode)
    return "" if kind == stat.S_IFREG else f"is {KINDS.get(kind, 'no file')}; {NEEDED}"


def check_regular(path: Path, option: str = "") -> None:
    """Raise UsageError if `path` is `irregular`. The message begins with `option`, such as "results: "."""
    if problem := irregular(path):
        raise UsageError(f"{option}{path} {problem}")


def mkdir_failure(folder: Path, error: OSError) -> str:
    """Return why `folder` could not be made: a path on the way that is no directory, else the text of `error`."""
    blocking = (path for path in (*reversed(folder.parents), folder) if os.path.lexists(path) and not path.is_dir())
    return next((f"{path} is no directory" for path in blocking), error.strerror or str(error))


def check_new(path: Path, *, force: bool, option: str = "") -> None:
    """Raise UsageError if no new file can be written at `path`, or if one exists and `force` is False.

    The message begins with `option`, such as "--out: ".
    """
    check_regular(path, option)
    if not path.parent.is_dir():
        raise UsageError(f"{option}{path.parent} is no directory")
    if path.exists() and not force:
        raise UsageError(f"{option}{path} already exists; --force replaces it")
    if not os.access(path.parent, os.W_OK):
        raise UsageError(f"{option}{path.parent} cannot be written to")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Re-raise an error of the body, which writes `path`, as RunFailed with a message of one line."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error).split("\n")[0]
        if "unexpected pos" in reason:  # torch.save's
            reason = "the disk is full, or over a quota"
        raise RunFailed(f"cannot write {path}: {reason}") from error


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` as `write_atomic` does. Raises OSError."""
    write_atomic(path, lambda file: file.write(text.encode(errors="backslashreplace")))


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the exclusive lock on the file `path` during the body, after waiting for it."""
    check_regular(path)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def try_lock(path: Path) -> IO[str] | None:
    """Return `path` opened for appending and exclusively locked, or None if another process holds the lock.

    The lock lasts until the file is closed or the process ends. Loader processes, which are forked meanwhile and may
    outlive this one, close their copy of the file: a copy would keep the lock.
    """
    from multiprocessing.util import register_after_fork  # imported late: 10 ms, which --help does not need

    check_regular(path)
    file = path.open("a", encoding="utf-8", errors="backslashreplace")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    register_after_fork(file, lambda copy: copy.close())
    return file


def writable(folder: str) -> bool:
    """Return whether one can write into a folder, or into the lowest existing folder above it."""
    lowest = next(path for path in (Path(folder), *Path(folder).parents) if os.path.lexists(path))
    return os.access(lowest, os.W_OK | os.X_OK) and lowest.is_dir()
