"""Make text from users and files safe for messages, terminals and spreadsheets, and format error messages."""

import difflib
import re
import reprlib
from collections.abc import Iterable

from utils.errors import UsageError

LAYOUT = "\n\t"  # control characters that the program's own messages contain
FORMULA = re.compile(r"'*[=+\-@\t\r\n＝＋－＠]")  # full-width signs start a formula too


def visible(text: str) -> str:
    """Return a text with its unprintable characters escaped.

    Escaped characters are visible. Line breaks and tabs stay. Unprintable are control, bidirectional and lone surrogate
    characters.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in LAYOUT else _escape(c) for c in text)


def escaped(value: object, most: int = 80) -> str:
    """Return a value from a file as one line of text for a message.

    The text has no quotes and is cut to `most` characters. Unprintable characters are escaped. A list or mapping
    becomes the name of its type, because nested ones may be exponentially long.
    """
    text = value[: most + 1] if isinstance(value, str) else _plain(value)
    text = "".join(c if c.isprintable() else _escape(c) for c in text)
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _plain(value: object) -> str:
    if not isinstance(value, int | float | Exception | None):
        return f"a {type(value).__name__}"
    try:
        return str(value)
    except ValueError:  # Python prints no int of more than 4300 digits
        return "an int of thousands of digits"


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()


def csv_cell(value: object) -> object:
    """Return a value for a CSV cell, safe to open in a spreadsheet.

    Text that a spreadsheet would run as a formula gets a leading ' (OWASP). Numbers and None are returned unchanged.
    `csv_text` is the inverse for text.
    """
    if value is None or isinstance(value, int | float):
        return value
    text = str(value).encode(errors="backslashreplace").decode()  # file names may not be UTF-8
    return f"'{text}" if FORMULA.match(text) and not _is_number(text) else text


def csv_text(stored: str) -> str:
    """Return the original text of a CSV cell that `csv_cell` made.

    The leading ' that `csv_cell` added to `stored` is removed.
    """
    return stored[1:] if stored.startswith("'") and FORMULA.match(stored) else stored


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return text == text.strip()


LONGEST_SHOWN = 200  # characters of a value in a message
MOST_PROBLEMS = 20  # number of problems that one error lists
COUNT_LINES = re.compile(r"[\d,]+ problems:|and [\d,]+ more")  # lines that `combined_error` adds to the problems
SHORT_REPR = reprlib.Repr()  # nested lists of a checkpoint may have an exponentially long repr
SHORT_REPR.maxlevel, SHORT_REPR.maxlist, SHORT_REPR.maxtuple, SHORT_REPR.maxdict = 4, 20, 20, 20
SHORT_REPR.maxstring = SHORT_REPR.maxlong = SHORT_REPR.maxother = LONGEST_SHOWN


def shown(value: object) -> str:
    """Return an option's value as text for a message.

    The text is the value's repr, with null, true and false as in YAML, cut to 200 characters.
    """
    yaml_words = {"None": "null", "True": "true", "False": "false", "''": "no value"}
    try:
        text = repr(value) if isinstance(value, str) else " ".join(SHORT_REPR.repr(value).split())
    except ValueError:  # Python prints no int of more than 4300 digits
        text = "a number of thousands of digits"
    rest = f"... ({len(text):,} characters)" if len(text) > LONGEST_SHOWN else ""
    return yaml_words.get(text, text[:LONGEST_SHOWN] + rest)


def option_text(name: str) -> str:
    """Return an option's name as text for a message.

    A name that is empty, unprintable or too long is quoted and shortened.
    """
    return name if name and name.isprintable() and len(name) <= LONGEST_SHOWN else shown(name)


def combined_error(problems: Iterable[str]) -> UsageError:
    """Return one UsageError that lists several problems.

    It has one line per problem, up to MOST_PROBLEMS. Duplicates are removed.
    """
    lines = list(dict.fromkeys(problems))
    head = [f"{len(lines):,} problems:"] if len(lines) > 1 else []
    rest = [f"and {len(lines) - MOST_PROBLEMS:,} more"] if len(lines) > MOST_PROBLEMS else []
    return UsageError("\n".join([*head, *lines[:MOST_PROBLEMS], *rest]))


def split_problems(error: Exception) -> list[str]:
    """Return the messages of the problems that an error lists.

    This function is the inverse of `combined_error`.
    """
    return [line for line in str(error).splitlines() if not COUNT_LINES.fullmatch(line)]


def nearest(name: str, names: Iterable[str]) -> str:
    """Return a suggestion for a misspelled name, or "" if no name is similar.

    The suggestion is " (did you mean 'NAME'?)", with a name from `names`.
    """
    if len(name) > LONGEST_SHOWN:
        return ""
    spelled = {known.lower(): known for known in names}
    close = difflib.get_close_matches(name.lower(), spelled, n=1)
    return f" (did you mean {spelled[close[0]]!r}?)" if close else ""
