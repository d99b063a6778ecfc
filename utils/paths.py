"""Expand `~` and variables in paths from users. This happens once, where an option is read."""

import os
import re
from pathlib import Path

from utils.errors import UsageError

VARIABLE = re.compile(r"\$(?:[A-Za-z_]\w*|\{[^}]*\})", re.ASCII)
NO_VARIABLE = re.compile(r"\$(?:\(.*|\{[^}]*$)")  # a command substitution $(...), or an unclosed brace
LONGEST, LONGEST_PART = 4095, 255  # bytes that Linux allows for a path and for one of its components
LONGEST_NAME = 99  # characters of the name of a run
LONGEST_STEM = 150  # bytes, below the 255 of a directory name, to which options are appended


def expanded(text: str, *, existing: bool = False) -> str:
    """Return a path with `~` and environment variables expanded.

    `~`, `~user`, `$NAME` and `${NAME}` are replaced. With `existing`, the path is to be read, and a path that exists
    exactly as written is returned unchanged.

    Raises UsageError if the path is empty, has unprintable characters, is too long, or names a user or a variable that
    does not exist. The caller adds the path to the message.
    """
    if not text.strip() or not text.isprintable():
        raise UsageError("it must be a path: text without control characters")
    if existing and _fits(text) and os.path.lexists(text):
        return text
    home = os.path.expanduser(text)  # noqa: PTH111 Path.expanduser drops a trailing slash
    if home.startswith("~"):
        raise UsageError(f"there is no user {text.partition('/')[0][1:100]!r}; write ./ in front if it is a file name")
    plain = os.path.expandvars(home)
    if invalid := NO_VARIABLE.search(plain):
        raise UsageError(f"{invalid[0][:100]!r} is not a variable; write $NAME or ${{NAME}}")
    if unset := VARIABLE.search(plain):
        raise UsageError(f"the variable {unset[0][:100]} is not set")
    if not _fits(plain):
        raise UsageError(f"it must be a path of at most {LONGEST} bytes, {LONGEST_PART} in each of its parts")
    return plain


def _fits(path: str) -> bool:
    encoded = path.encode()
    return len(encoded) <= LONGEST and all(len(part) <= LONGEST_PART for part in encoded.split(b"/"))


def stem(path: str) -> str:
    """Return the default name of a run, from the name of its YAML file.

    The suffix of the file name is left out. Leading dots are removed, and a long name is cut.
    """
    name = Path(path).stem.lstrip(".")[:LONGEST_NAME].encode()[:LONGEST_STEM].decode(errors="ignore")
    return "config" if path and name.strip() in ("", "None") else name
