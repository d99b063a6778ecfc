"""Atomic writes, checks of paths before files are opened, and file locks that end with the process holding them."""

import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from utils.errors import RunFailed, UsageError


def write_atomic(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file atomically.

    The function `write` fills a temporary file, which is flushed to the disk and renamed to `path`. A kill or a full
    disk leaves `path` unchanged. Raises OSError with the file name `path`.
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
            error.filename = str(path)  # a failed write has no file name
        raise


KINDS = {stat.S_IFDIR: "a directory", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}
KINDS |= {stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
NEEDED = "a regular file is needed"


def irregular(path: str | Path) -> str:
    """Return text that explains why a path is not a regular file.

    The text is "" if `path` is a regular file or does not exist. Opening anything else may block forever (a FIFO),
    discard what is written (/dev/null) or never end (/dev/zero).
    """
    path = Path(path)
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return f"is a link to {path.readlink()}, which does not exist; {NEEDED}" if path.is_symlink() else ""
    except (OSError, ValueError):  # opening the file will raise the same error
        return ""
    kind = stat.S_IFMT(mode)
    return "" if kind == stat.S_IFREG else f"is {KINDS.get(kind, 'no file')}; {NEEDED}"


def check_regular(path: Path, option: str = "") -> None:
    """Raise UsageError if a path exists and is not a regular file.

    The message starts with `option`, such as "results: ".
    """
    if problem := irregular(path):
        raise UsageError(f"{option}{path} {problem}")


def mkdir_failure(folder: Path, error: OSError) -> str:
    """Return text that explains why a folder could not be created.

    The text names a file that is in the way, or is the text of `error`.
    """
    blocking = (path for path in (*reversed(folder.parents), folder) if os.path.lexists(path) and not path.is_dir())
    return next((f"{path} is not a directory" for path in blocking), error.strerror or str(error))


def check_new(path: Path, *, force: bool, option: str = "") -> None:
    """Raise UsageError if a new file cannot be created.

    `path` may be an existing file only if `force` is True. The message starts with `option`, such as "--out: ".
    """
    check_regular(path, option)
    if not path.parent.is_dir():
        raise UsageError(f"{option}{path.parent} is not a directory")
    if path.exists() and not force:
        raise UsageError(f"{option}{path} already exists; --force replaces it")
    if not writable(path.parent):
        raise UsageError(f"{option}{path.parent} cannot be written to")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Context manager for writing a file, which turns errors into RunFailed.

    The errors are OSError and RuntimeError. The message of RunFailed has one line, with the path and the reason.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error).split("\n")[0]
        if "unexpected pos" in reason:  # torch.save's error when a write is cut short
            reason = "the disk is full, or over a quota"
        raise RunFailed(f"cannot write {path}: {reason}") from error


def write_text(path: Path, text: str) -> None:
    """Write text to a file atomically.

    A crash leaves the old file or the new one. Raises OSError.
    """
    write_atomic(path, lambda file: file.write(text.encode(errors="backslashreplace")))


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Context manager that holds the exclusive lock on a file.

    It waits for the lock on the file `path`, and holds the lock until the body ends.
    """
    check_regular(path)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def try_lock(path: Path) -> IO[str] | None:
    """Open and lock a file, or return None if another process has the lock.

    `path` is opened for appending and locked exclusively. Returns the open file. The lock lasts until the file is
    closed or the process ends. Forked data-loading processes close their copy of the file, because they may outlive
    this process and the copy would keep the lock.
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


def make_folder(folder: Path, option: str = "") -> None:
    """Create a folder and its parents, if it does not exist.

    Raises UsageError if that fails. The message starts with `option`, such as "--out: ".
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{option}cannot make {folder}: {mkdir_failure(folder, error)}") from error


def writable(folder: str | Path) -> bool:
    """Return True if the user can create files in a folder.

    A temporary file is created and removed. If `folder` does not exist, its nearest existing parent decides.
    """
    import tempfile  # imported late: --help does not need it

    nearest = next(path for path in (Path(folder), *Path(folder).parents) if os.path.lexists(path))
    try:  # os.access is True for root even in /proc, where nobody can create a file
        tempfile.TemporaryFile(dir=nearest).close()
    except OSError:
        return False
    return True
