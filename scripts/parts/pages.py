"""Generated parts of Markdown pages: each stands between `<!-- NAME: python SCRIPT -->` and `<!-- end -->`."""

import ast
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

Tables = Mapping[str, Callable[[], str]]  # name in the marker -> function that returns the table


def markdown(head: str, rows: Iterable[str]) -> list[str]:
    """Return the lines of a Markdown table. In `head` and `rows`, cells are separated by " | "."""
    return [f"| {head} |", "|" + "---|" * (head.count(" | ") + 1), *(f"| {row} |" for row in rows)]


def code(path: Path) -> str:
    """Return the code of a Python file, without its docstring, as a block of Markdown."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()[ast.parse(text).body[0].end_lineno :]
    return "\n".join(["```python", "\n".join(lines).strip(), "```"])


def filled(text: str, tables: Tables, script: str) -> str:
    """Replace the tables that `script` generates in the Markdown `text`, and return the new text."""
    for name, table in tables.items():
        marker = f"<!-- {name}: python {script} -->"
        before, old = text.split(marker)
        _, after = old.split("<!-- end -->", 1)
        text = f"{before}{marker}\n{table()}\n<!-- end -->{after}"
    return text


def update(pages: Mapping[Path, Tables], script: str, *, check: bool) -> int:
    """Replace the tables that `script` generates in the Markdown pages, and return 0.

    With `check` write nothing and return 1 if a page would change.
    """
    changed = False
    for page, tables in pages.items():
        old = page.read_text(encoding="utf-8")
        new = filled(old, tables, script)
        changed |= new != old
        if not check:
            page.write_text(new, encoding="utf-8")
    return int(check and changed)
