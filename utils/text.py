"""Text of users and of files, made safe to print, to list and to open in a spreadsheet."""

import difflib
import re
import reprlib
from collections.abc import Iterable

from utils.errors import UsageError

LINES = "\n\t"  # layout of our own messages
FORMULA = re.compile(r"'*[=+\-@\t\r\n＝＋－＠]")  # full-width signs begin a formula too


def visible(text: str) -> str:
    """`text` with each control, bidirectional and unpaired surrogate character escaped; ends of lines and tabs stay."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in LINES else _escaped(c) for c in text)


def quoted(value: object, most: int = 80) -> str:
    """Return a value from a file for a message: one line of at most `most` characters, unprintable ones escaped."""
    text = value[: most + 1] if isinstance(value, str) else _plain(value)
    text = "".join(c if c.isprintable() else _escaped(c) for c in text)
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _plain(value: object) -> str:
    if not isinstance(value, int | float | Exception | None):
        return f"a {type(value).__name__}"  # lists within lists may be exponentially long
    try:
        return str(value)
    except ValueError:  # of more digits than Python prints
        return "an int of thousands of digits"


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()


def cell(value: object) -> object:
    """A cell of a CSV file as it is stored: text that a spreadsheet would take for a formula gets a ' in front (OWASP).

    Numbers stay as they are. `original` is the inverse for text.
    """
    if value is None or isinstance(value, int | float):
        return value
    text = str(value).encode(errors="backslashreplace").decode()  # file names need not be UTF-8
    return f"'{text}" if FORMULA.match(text) and not _is_number(text) else text


def original(stored: str) -> str:
    """The text that `cell` stored."""
    return stored[1:] if stored.startswith("'") and FORMULA.match(stored) else stored


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return text == text.strip()


LONGEST_SHOWN = 200  # characters of a value
MOST_PROBLEMS = 20  # that are listed
COUNTED = re.compile(r"[\d,]+ problems:|and [\d,]+ more")  # lines of `together` that are no problem
LISTED = reprlib.Repr()  # of lists within lists, which a checkpoint may make exponentially long
LISTED.maxlevel, LISTED.maxlist, LISTED.maxtuple, LISTED.maxdict = 4, 20, 20, 20
LISTED.maxstring = LISTED.maxlong = LISTED.maxother = LONGEST_SHOWN


def shown(value: object) -> str:
    """Return a value for a message, on one line: its repr, cut to LONGEST_SHOWN characters, null for None."""
    plain = {"None": "null", "True": "true", "False": "false", "''": "no value"}
    try:
        text = repr(value) if isinstance(value, str) else " ".join(LISTED.repr(value).split())
    except ValueError:  # Python writes no int of more than 4300 digits
        text = "a number of thousands of digits"
    rest = f"... ({len(text):,} characters)" if len(text) > LONGEST_SHOWN else ""
    return plain.get(text, text[:LONGEST_SHOWN] + rest)


def word(text: str) -> str:
    """Return the name of an option as given; as `shown` does where it is empty, unprintable or too long."""
    return text if text and text.isprintable() and len(text) <= LONGEST_SHOWN else shown(text)


def together(problems: Iterable[str]) -> UsageError:
    """One error for all problems, a line each and no more than MOST_PROBLEMS of them."""
    lines = list(dict.fromkeys(problems))
    head = [f"{len(lines):,} problems:"] if len(lines) > 1 else []
    rest = [f"and {len(lines) - MOST_PROBLEMS:,} more"] if len(lines) > MOST_PROBLEMS else []
    return UsageError("\n".join([*head, *lines[:MOST_PROBLEMS], *rest]))


def apart(error: UsageError) -> list[str]:
    """Return the problems in an error, a line each: the inverse of `together`."""
    return [line for line in str(error).splitlines() if not COUNTED.fullmatch(line)]


def nearest(name: str, names: Iterable[str]) -> str:
    """The most similar of the names, as a remark to end a message with; empty when none is similar."""
    if len(name) > LONGEST_SHOWN:
        return ""
    spelled = {known.lower(): known for known in names}
    close = difflib.get_close_matches(name.lower(), spelled, n=1)
    return f" (did you mean {spelled[close[0]]!r}?)" if close else ""
