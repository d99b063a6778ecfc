"""Look a name up in a table; an unknown one is answered with the nearest."""

from collections.abc import Mapping
from typing import TypeVar

from utils.text import nearest

T = TypeVar("T")


def lookup(table: Mapping[str, T], name: str, what: str) -> T:
    """table[name]. Raises ValueError that names `what`, the nearest name and all there are."""
    try:
        return table[name]
    except KeyError:
        raise ValueError(f"{what}: {name!r} is unknown{nearest(name, table)}; one of {', '.join(table)}") from None
