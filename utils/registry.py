"""Functions for registries, which map names to rows of plain data and can be imported without torch."""

from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from inspect import Parameter, signature
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


def load_object(path: Any) -> Any:
    """Import and return the object at `path`, which has the form "package.module:name".

    The rows of plug-ins have the object itself in place of a path. It is returned unchanged.
    """
    if not isinstance(path, str):
        return path
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)


def accepted(function: Callable[..., object], arguments: Mapping[str, T]) -> dict[str, T]:
    """Return those of the keyword arguments that a function takes.

    All are returned if it takes **kwargs. `arguments` maps their names to their values.
    """
    parameters = signature(function).parameters
    takes_all = any(parameter.kind is Parameter.VAR_KEYWORD for parameter in parameters.values())
    return {name: value for name, value in arguments.items() if takes_all or name in parameters}


def either(names: Iterable[str]) -> str:
    """Return the names joined for a message, such as "a, b or c".

    One name gives "a", two names give "a or b".
    """
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last
