"""Functions for registries, which map names to rows of plain data and can be imported without torch."""

from collections.abc import Iterable, Mapping
from importlib import import_module
from typing import Any, TypeVar

from utils.text import nearest

T = TypeVar("T")


def lookup(table: Mapping[str, T], name: str, kind: str) -> T:
    """Return a table's entry, or raise ValueError for an unknown name.

    The message has a suggestion and all names in the table. It starts with `kind`, which is what the name stands for,
    such as "optimizer".
    """
    try:
        return table[name]
    except KeyError:
        raise ValueError(f"{kind}: {name!r} is unknown{nearest(name, table)}; one of {', '.join(table)}") from None


def load_object(path: str) -> Any:
    """Import and return the object at `path`, which has the form "package.module:name"."""
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)


def either(names: Iterable[str]) -> str:
    """Return the names joined for a message, such as "a, b or c".

    One name gives "a", two names give "a or b".
    """
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last
