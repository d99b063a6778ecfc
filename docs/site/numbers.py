"""Hook of mkdocs.yml: numbers in the tables of the site keep their unit and their deviation on one line."""

import re
from typing import Any


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Return a page with non-breaking spaces around ± and before % in table rows."""
    rows = (
        re.sub(r" ± |(?<=\d) (?=%)", lambda found: found[0].replace(" ", "\N{NO-BREAK SPACE}"), line)
        if line.startswith("|")
        else line
        for line in markdown.splitlines()
    )
    return "\n".join(rows)
