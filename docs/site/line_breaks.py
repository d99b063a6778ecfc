"""Hook of mkdocs.yml: where lines of the site may break.

Numbers in tables keep their unit and their deviation on one line. Code within sentences and tables breaks only if it
is long. The meanings of options get a wide column.
"""

import re
from typing import Any

FENCED = re.compile(r"(^```.*?^```$)", re.M | re.S)
SPACE = "\N{NO-BREAK SPACE}"
LONG = 36  # characters of code that may be broken


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Return the Markdown of a page with non-breaking spaces, and a class for long code."""
    parts = FENCED.split(markdown)
    return "".join(part if part.startswith("```") else _prepared(part) for part in parts)


def _prepared(text: str) -> str:
    text = text.replace("| option | meaning |", '| option | <span class="wide">meaning</span> |')
    text = re.sub(r"`[^`\n]+`", lambda code: code[0] + "{.long}" * (len(code[0]) > LONG), text)
    rows = (
        re.sub(r"(?<=\d) ± |(?<=\d) (?=%)", _joined, line) if line.startswith("|") else line
        for line in text.split("\n")
    )
    return "\n".join(rows)


def _joined(found: re.Match[str]) -> str:
    return found[0].replace(" ", SPACE)
