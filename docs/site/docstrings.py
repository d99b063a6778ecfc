"""Griffe extension of mkdocs.yml: arguments in the project's docstrings become tables of the site.

The project writes `name: text`, one argument after the other, in a paragraph of its own.
"""

import inspect
import re
from typing import Any

import griffe

ENTRY = re.compile(r"(\w+(?:, \w+)*): (.+)", re.S)


def sections(text: str, parameters: set[str]) -> str:
    """Return a docstring with its paragraphs of arguments as Google's sections Args and Attributes."""
    text = inspect.cleandoc(text).replace("][", "]\\[")  # an index of an index is no link
    paragraphs = re.split(r"\n\s*\n", text)
    return "\n\n".join(_section(paragraph, parameters) for paragraph in paragraphs)


def _section(paragraph: str, parameters: set[str]) -> str:
    entries = [ENTRY.fullmatch(entry) for entry in re.split(r"\n(?!\s)", paragraph)]
    if not all(entries):
        return paragraph
    named = [(name, " ".join(entry[2].split())) for entry in entries if entry for name in entry[1].split(", ")]
    title = "Args" if {name for name, _ in named} <= parameters else "Attributes"
    return "\n".join([f"{title}:", *(f"    {name}: {meaning}" for name, meaning in named)])


class Arguments(griffe.Extension):
    """Extension that rewrites the docstrings of functions and classes."""

    def on_function(self, *, func: griffe.Function, **_: Any) -> None:
        """Rewrite the docstring of a function."""
        if func.docstring:
            func.docstring.value = sections(func.docstring.value, {p.name for p in func.parameters})

    def on_class(self, *, cls: griffe.Class, **_: Any) -> None:
        """Rewrite the docstring of a class, whose arguments are those of its constructor."""
        if cls.docstring:
            init = cls.members.get("__init__")
            names = {p.name for p in init.parameters} if isinstance(init, griffe.Function) else set()
            cls.docstring.value = sections(cls.docstring.value, names)
