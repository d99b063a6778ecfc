"""Files that are whole or not there, and locks that die with their holder."""

import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO
from weakref import WeakSet

from utils.errors import RunFailed, UsageError

HELD: WeakSet[IO[str]] = WeakSet()  # the locks of this process


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
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and error.errno and error.filename is None:
            error.filename = str(path)  # a write says that the disk is full, not of which file
        raise


KINDS = {stat.S_IFDIR: "a directory", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}
KINDS |= {stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
NEEDED = "a regular file is needed"


def irregular(path: str | Path) -> str:
    """Return what `path` is, in words, where that is neither a regular file nor nothing at all; else "".

    To open anything else may wait for ever (a FIFO), lose what is written (/dev/null) or never end (/dev/zero).
    """
    path = Path(path)
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return f"is a link to {path.readlink()}, which is not there; {NEEDED}" if path.is_symlink() else ""
    except (OSError, ValueError):  # who opens it says why
        return ""
    kind = stat.S_IFMT(mode)
    return "" if kind == stat.S_IFREG else f"is {KINDS.get(kind, 'no file')}; {NEEDED}"


def check_regular(path: Path, option: str = "") -> None:
    """Raises UsageError where `path`, which `option` named, is `irregular`."""
    if fault := irregular(path):
        raise UsageError(f"{option}{path} {fault}")


def why_not(folder: Path, error: OSError) -> str:
    """Return why `folder` could not be made, in words: `error`, or what stands in its place or in that of a parent."""
    others = (path for path in (*reversed(folder.parents), folder) if os.path.lexists(path) and not path.is_dir())
    return next((f"{path} is no directory" for path in others), error.strerror or str(error))


def check_new(path: Path, *, force: bool, option: str = "") -> None:
    """Raises UsageError where `path`, which `option` named, is no place for a new file, or one is there (but for
    `force`)."""
    check_regular(path, option)
    if not path.parent.is_dir():
        raise UsageError(f"{option}{path.parent} is no directory")
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
    write_atomic(path, lambda file: file.write(text.encode(errors="backslashreplace")))


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Wait for, hold and release the exclusive lock on the file `path`; the system releases it when a process dies."""
    check_regular(path)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def try_lock(path: Path) -> IO[str] | None:
    """The lock on `path`, held until the returned file is closed or the process ends; None where another holds it.

    A process that is forked meanwhile, such as a loader's worker, does not keep it: it may outlive this one.
    """
    check_regular(path)
    file = path.open("a", encoding="utf-8", errors="backslashreplace")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    HELD.add(file)
    return file


def _let_go() -> None:
    for file in HELD:
        file.close()


os.register_at_fork(after_in_child=_let_go)


def writable(folder: str) -> bool:
    """Return whether one can write into a folder, or into the lowest existing folder above it."""
    lowest = next(path for path in (Path(folder), *Path(folder).parents) if os.path.lexists(path))
    return os.access(lowest, os.W_OK | os.X_OK) and lowest.is_dir()
