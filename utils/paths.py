"""What a path is, asked before anything is opened."""

import os
import stat
from pathlib import Path

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


def writable(folder: str) -> bool:
    """Whether a folder, or else the lowest existing one above it, can be written."""
    lowest = next(path for path in (Path(folder), *Path(folder).parents) if os.access(path, os.F_OK))
    return os.access(lowest, os.W_OK | os.X_OK) and lowest.is_dir()
