"""Options declared by the signatures and docstrings of functions and classes, for the parts that plug-ins register."""

import inspect
import re
from collections.abc import Callable
from dataclasses import Field
from typing import Any, Literal, Union, get_args, get_origin

from utils.config.fields import Ints, Texts, cast, opt, wanted
from utils.errors import UsageError
from utils.text import shown

KINDS = (bool, int, float, str, Ints, Texts)


def arguments_of(part: Callable[..., Any], title: str) -> dict[str, inspect.Parameter]:
    """Return the named arguments of a part's constructor, without `self`, *args and **kwargs."""
    try:
        parameters = inspect.signature(part, eval_str=True).parameters
    except (TypeError, ValueError, NameError) as error:
        raise UsageError(f"{title}: its signature cannot be read: {error}") from error
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {name: parameter for name, parameter in parameters.items() if parameter.kind in named}


def declared(name: str, parameter: inspect.Parameter, title: str, text: str) -> Field[Any]:
    """Declare an option for an argument.

    `title` starts the messages of errors, and `text` is for --help. Raises UsageError if the argument has no default,
    or its values cannot be written in YAML.
    """
    default, kind = parameter.default, parameter.annotation
    if default is parameter.empty:
        raise UsageError(f"{title} has no default; it must have one to be an option")
    if kind is parameter.empty:
        kind = type(default)
    members = [m for m in (get_args(kind) if _is_union(kind) else [kind]) if m is not type(None)]
    allowed: str | tuple[str, ...] = ""
    if get_origin(members[0]) is Literal:
        allowed, members = get_args(members[0]), [str]
    plain = {list[int]: Ints, list[str]: Texts}.get(members[0], members[0])
    if len(members) > 1 or plain not in KINDS:
        choices = "bool, int, float, str, tuple[int, ...], tuple[str, ...] or a Literal, or one of them | None"
        raise UsageError(f"{title} has the type {getattr(kind, '__name__', kind)}; annotate it as {choices}")
    option: Field[Any] = opt(default, text, allowed)
    option.name, option.type = name, plain | None if _is_union(kind) or default is None else plain
    try:
        if default is not None:
            cast(option, list(default) if isinstance(default, tuple) else default)
    except (ValueError, TypeError, OverflowError) as error:
        raise UsageError(f"{title} has the default {shown(default)}, but it must be {wanted(option)}") from error
    return option


def _is_union(kind: Any) -> bool:
    return get_origin(kind) is Union or type(kind).__name__ == "UnionType"


def help_text(part: Callable[..., Any], name: str) -> str:
    """Return what a docstring says about an argument, or "".

    The docstring of the part or of its constructor describes it in a line "name: text".
    """
    texts = (inspect.getdoc(part), inspect.getdoc(getattr(part, "__init__", None)))
    found = (re.search(rf"^\s*{name}(?: \(.*\))?: (.+(?:\n\s+.+)*)", text or "", re.MULTILINE) for text in texts)
    return next((" ".join(match[1].split()).removesuffix(".") for match in found if match), "")
