"""Values, names and problems in messages: short, a line each, whatever a person gave."""

import difflib
import re
import reprlib
from collections.abc import Iterable

from utils.errors import UsageError

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
