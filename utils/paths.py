"""Paths as people write them, made plain once: where an option is read, whether typed or in a YAML file."""

import os
import re
from pathlib import Path

from utils.errors import UsageError

VARIABLE = re.compile(r"\$(?:[A-Za-z_]\w*|\{[^}]*\})", re.ASCII)
SHELLS = re.compile(r"\$(?:\(.*|\{[^}]*$)")  # what a shell would have run, or a brace that nobody has closed
LONGEST, LONGEST_PART = 4095, 255  # bytes of a path and of one of its parts that file systems take
LONGEST_NAME = 99  # characters of the name of a run
LONGEST_STEM = 150  # bytes: a name that is made of it has room for an option or two


def expanded(text: str, *, existing: bool = False) -> str:
    """Return the path `text` with `~`, `~user`, `$NAME` and `${NAME}` replaced.

    existing: The path is to be read. One that exists exactly as written is taken as written.

    Raises UsageError, without naming the path, where it is empty, has unprintable characters, is too long, or names a
    user or a variable that does not exist.
    """
    if not text.strip() or not text.isprintable():
        raise UsageError("it must be a path: text without control characters")
    if existing and _fits(text) and os.path.lexists(text):
        return text
    home = os.path.expanduser(text)  # noqa: PTH111 Path.expanduser drops a trailing slash
    if home.startswith("~"):
        raise UsageError(f"there is no user {text.partition('/')[0][1:100]!r}; ./ before it makes it a name")
    plain = os.path.expandvars(home)
    if strange := SHELLS.search(plain):
        raise UsageError(f"{strange[0][:100]!r} is no variable: $NAME or ${{NAME}} is")
    if unset := VARIABLE.search(plain):
        raise UsageError(f"the variable {unset[0][:100]} is not set")
    if not _fits(plain):
        raise UsageError(f"it must be a path of at most {LONGEST} bytes, {LONGEST_PART} in each of its parts")
    return plain


def _fits(path: str) -> bool:
    encoded = path.encode()
    return len(encoded) <= LONGEST and all(len(part) <= LONGEST_PART for part in encoded.split(b"/"))


def stem(path: str) -> str:
    """Return a config's file name without its ending, as the name of a run: not hidden, not `..`, not too long."""
    name = Path(path).stem.lstrip(".")[:LONGEST_NAME].encode()[:LONGEST_STEM].decode(errors="ignore")
    return "config" if path and name.strip() in ("", "None") else name
