"""Registries: tables with one row per name. Rows are plain data, so that they can be imported without torch."""

from collections.abc import Iterable, Mapping
from importlib import import_module
from typing import Any, TypeVar

from utils.text import nearest

T = TypeVar("T")


def lookup(table: Mapping[str, T], name: str, what: str) -> T:
    """Return table[name]. Raises ValueError with `what` the name is, the nearest name and all names of the table."""
    try:
        return table[name]
    except KeyError:
        raise ValueError(f"{what}: {name!r} is unknown{nearest(name, table)}; one of {', '.join(table)}") from None


def load_object(path: str) -> Any:
    """Import and return the object with the path "package.module:name"."""
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)


def either(names: Iterable[str]) -> str:
    """Join names for a message: "a", "a or b", "a, b or c"."""
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last
