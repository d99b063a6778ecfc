"""Paths as users write them: `~` and variables are replaced once, where an option is read."""

import os
import re
from pathlib import Path

from utils.errors import UsageError

VARIABLE = re.compile(r"\$(?:[A-Za-z_]\w*|\{[^}]*\})", re.ASCII)
NO_VARIABLE = re.compile(r"\$(?:\(.*|\{[^}]*$)")  # a command substitution $(...), or an unclosed brace
LONGEST, LONGEST_PART = 4095, 255  # bytes of a path and of one of its components that Linux's file systems allow
LONGEST_NAME = 99  # characters of the name of a run
LONGEST_STEM = 150  # bytes, of 255: a directory name made of it has room for an option or two


def expanded(text: str, *, existing: bool = False) -> str:
    """Return the path `text` with `~`, `~user`, `$NAME` and `${NAME}` replaced.

    existing: The path is to be read: if it exists exactly as written, it is returned as written.

    Raises UsageError, which does not name the path, if the path is empty, has unprintable characters, is too long, or
    names a user or a variable that does not exist.
    """
    if not text.strip() or not text.isprintable():
        raise UsageError("it must be a path: text without control characters")
    if existing and _fits(text) and os.path.lexists(text):
        return text
    home = os.path.expanduser(text)  # noqa: PTH111 Path.expanduser drops a trailing slash
    if home.startswith("~"):
        raise UsageError(f"there is no user {text.partition('/')[0][1:100]!r}; ./ in front makes it a file name")
    plain = os.path.expandvars(home)
    if invalid := NO_VARIABLE.search(plain):
        raise UsageError(f"{invalid[0][:100]!r} is no variable; write $NAME or ${{NAME}}")
    if unset := VARIABLE.search(plain):
        raise UsageError(f"the variable {unset[0][:100]} is not set")
    if not _fits(plain):
        raise UsageError(f"it must be a path of at most {LONGEST} bytes, {LONGEST_PART} in each of its parts")
    return plain


def _fits(path: str) -> bool:
    encoded = path.encode()
    return len(encoded) <= LONGEST and all(len(part) <= LONGEST_PART for part in encoded.split(b"/"))


def stem(path: str) -> str:
    """Return a config's file name without its suffix, for the name of a run: neither hidden, nor `..`, nor too long."""
    name = Path(path).stem.lstrip(".")[:LONGEST_NAME].encode()[:LONGEST_STEM].decode(errors="ignore")
    return "config" if path and name.strip() in ("", "None") else name
