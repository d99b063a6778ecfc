"""Options as fields of dataclasses: how one is declared, how its value is cast, and how --help describes it."""

import math
import operator
import shutil
import textwrap
from collections.abc import Collection, Iterable
from dataclasses import MISSING, dataclass, field
from typing import Any, get_args

from utils.config.yaml_loader import NULLS, Bare
from utils.errors import UsageError
from utils.paths import expanded
from utils.registry import either
from utils.text import shown

Ints = tuple[int, ...]
NOUNS = {
    int: "an int",
    float: "a float",
    str: "text",
    bool: "true or false; as a flag it takes no value, and --no-… switches it off",
    Ints: "a list of ints",
}
COMPARE = {">=": operator.ge, ">": operator.gt, "<=": operator.le, "<": operator.lt}
SWITCHES = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}  # YAML's
LONGEST_LIST = 1000


@dataclass(frozen=True)
class Need:
    """A value of another option that gives an option its effect, such as "lr_policy multistep_lr".

    values: any of these; empty means any value that is not false.
    """

    option: str
    values: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> "Need":
        option, *values = text.replace(",", "").replace(" or ", " ").split()
        return cls(option, tuple(values))

    def is_met(self, value: object) -> bool:
        return value in self.values if self.values else bool(value)

    def __str__(self) -> str:
        return f"{self.option} {either(self.values)}" if self.values else self.option


def opt(
    default: Any,
    text: str,
    allowed: str | Collection[str] = "",
    *flags: str,
    maths: bool = True,
    path: str = "",
    needs: str = "",
    unset: str = "",
    strict: bool = False,
    warn_in_files: bool = False,
    off: object = MISSING,
) -> Any:
    """Declare an option.

    text: its description in --help.
    allowed: choices, or limits such as ">= 0 and < 1".
    flags: more spellings on the command line.
    maths: a resumed run with another value would be another run.
    path: "old" for a path to be read, "new" for any other path.
    needs: what gives the option its effect, as `Need.parse` reads it. Registry rows that list the option also do.
    unset: what the default None means.
    strict: to give the option where it has no effect is an error, not a warning.
    warn_in_files: warn about a missing effect also if the value is in a YAML file, not only on the command line.
    off: value of which no missing effect is told.
    """
    return field(
        default=default,
        metadata={
            "text": text,
            "allowed": allowed,  # a registry itself, so that names added later count
            "flags": flags,
            "maths": maths,
            "path": path,
            "needs": Need.parse(needs) if needs else None,
            "unset": unset,
            "strict": strict,
            "warn_in_files": warn_in_files,
            "off": default if off is MISSING and (strict or warn_in_files) else off,
        },
    )


def wanted(option: Any) -> str:
    """Describe the values of an option: "an int >= 1"."""
    kind, allowed = (get_args(option.type) or (option.type,))[0], option.metadata["allowed"]
    if not isinstance(allowed, str):
        return f"one of {', '.join(allowed)}"
    described = f"{NOUNS[kind]} {allowed}".rstrip()
    return f"{described}; at most {LONGEST_LIST} of them" if kind == Ints else described


def fits(value: Any, allowed: str | Collection[str]) -> bool:
    """Return whether a value is one of the choices, or within the limits, `allowed`."""
    if not isinstance(allowed, str):
        return value in allowed
    limits = (limit.split() for limit in allowed.split(" and ") if limit)
    return all(COMPARE[sign](value, float(number)) for sign, number in limits)


def plain(kind: Any, value: Any) -> Any:
    """Return `value` as an int, float, str or bool.

    Raises ValueError for a value that int() or float() would change, such as 2.5 and true.
    """
    bent = isinstance(value, bool) != (kind is bool) or (kind is int and isinstance(value, float))
    if bent or (kind is str and not (isinstance(value, str) and value.strip() and value.isprintable())):
        raise ValueError
    if kind is float and not math.isfinite(float(value)):
        raise ValueError
    return kind(value)


def cast(option: Any, value: Any) -> Any:
    """Return `value` as the declared type of the option.

    Raises ValueError, TypeError or OverflowError if it is of another type, and UsageError if there is a better
    explanation than the type.
    """
    kind, *nullable = get_args(option.type) or (option.type,)
    path = option.metadata["path"]
    if path and value == "~" and isinstance(value, Bare):
        nothing = "write null, or" if nullable else "leave it out, or write"
        raise UsageError(f"YAML reads it as no value: {nothing} ~/ for the home folder")
    if nullable and (value is None or (isinstance(value, str) and value in NULLS and not (path and value == "~"))):
        return None
    if value == "None" and (nullable or path):
        raise UsageError("None is text here; " + ("write null for no value" if nullable else "leave it out"))
    if kind is bool and isinstance(value, Bare):
        value = SWITCHES.get(value.lower())
    if path and isinstance(value, str):
        return expanded(str(value), existing=path == "old")
    listed = value.split(",") if isinstance(value, str) else value if isinstance(value, list | tuple) else [value]
    items = tuple(plain(int, item) for item in listed) if kind == Ints else (plain(kind, value),)
    if not 0 < len(items) <= LONGEST_LIST or not all(fits(item, option.metadata["allowed"]) for item in items):
        raise ValueError
    return items if kind == Ints else items[0]


def flags(name: str, option: Any = None) -> list[str]:
    """Return all spellings of an option's flag. The last one of a boolean option switches it off."""
    long = "--" + name.replace("_", "-")
    if option is None:
        return [long]
    if option.type is not bool:
        return [*option.metadata["flags"], long]
    off = long.replace("--no-", "--") if long.startswith("--no-") else long.replace("--", "--no-")
    return [*option.metadata["flags"], long, off]


def help_lines(options: Iterable[Any]) -> list[str]:
    """Return the entry of each option in --help: flags, description, type with range or choices, default."""
    lines = []
    width = max(60, min(118, shutil.get_terminal_size((120, 24)).columns - 2))
    for option in options:
        default = f"default {option.metadata['unset'] or shown(option.default)}"
        if option.default is MISSING:
            default = "required"
        elif default == "default null":
            default = "no default"
        takes = "flag" if option.type is bool else wanted(option)
        start = f"  {', '.join(flags(option.name, option)):<32}  "
        text = f"{option.metadata['text']} [{takes}; {default}]"
        lines.append(textwrap.fill(text, width, initial_indent=start, subsequent_indent=" " * 36))
    return lines
