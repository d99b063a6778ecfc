"""Text of users and of files, made safe to print, to list and to open in a spreadsheet."""

import re

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
