"""Options as fields of dataclasses: their declaration, the conversion of their values, and their entries in --help."""

import math
import operator
import shutil
import textwrap
from collections.abc import Collection, Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, field
from types import NoneType, UnionType
from typing import Any, get_args

from utils.config.yaml_loader import NULLS, Bare
from utils.errors import UsageError
from utils.paths import expanded
from utils.registry import either
from utils.text import shown

Ints = tuple[int, ...]
Texts = tuple[str, ...]
NOUNS: dict[Any, str] = {
    int: "an int",
    float: "a float",
    str: "text",
    bool: "true or false",
    Ints: "a list of ints",
    Texts: "text, or a list of texts in a file",
}
COMPARE = {">=": operator.ge, ">": operator.gt, "<=": operator.le, "<": operator.lt}
SWITCHES = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}  # the words of YAML
LONGEST_LIST = 1000


@dataclass(frozen=True)
class Need:
    """Condition on another option, without which an option has no effect.

    An example is "lr_policy multistep_lr". The other option must have one of `values`, or any true value if `values` is
    empty.
    """

    option: str
    values: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> "Need":
        """Return the condition written as text, such as "conv_type ShiftQ or ShiftPS".

        `text` is "option", "option value" or "option value, value or value".
        """
        option, *values = text.replace(",", "").replace(" or ", " ").split()
        return cls(option, tuple(values))

    def is_met(self, value: object) -> bool:
        """Return True if an option with this `value` meets the condition."""
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
    wanted: str = "",
) -> Any:
    """Declare an option as a dataclass field with its default, help text and allowed values.

    text: description in --help.
    allowed: choices, or limits such as ">= 0 and < 1".
    flags: additional spellings on the command line.
    maths: the option affects training, so a run cannot be resumed with another value.
    path: "old" for a path to be read, "new" for any other path.
    needs: condition on another option, see `Need.parse`, without which this one has no effect. Registry rows that
        list the option are further conditions.
    unset: meaning of the default None, for --help.
    strict: setting the option where it has no effect is an error instead of a warning.
    warn_in_files: warn about a missing effect also if the option is set in a YAML file, not only on the command line.
    off: value for which a missing effect causes no warning.
    wanted: description of the allowed values, if a check and not `allowed` limits them.
    """
    return field(
        default=default,
        metadata={
            "text": text,
            "allowed": allowed,  # the registry itself, so that names added later are allowed too
            "flags": flags,
            "maths": maths,
            "path": path,
            "needs": Need.parse(needs) if needs else None,
            "unset": unset,
            "strict": strict,
            "warn_in_files": warn_in_files,
            "wanted": wanted,
            "off": default if off is MISSING and (strict or warn_in_files) else off,
        },
    )


def kind_of(option: Field[Any]) -> tuple[Any, bool]:
    """Return the type of an option's values, and True if the value may also be None."""
    members = get_args(option.type) if isinstance(option.type, UnionType) else (option.type,)
    return members[0], NoneType in members


def wanted(option: Field[Any]) -> str:
    """Return text that describes an option's allowed values, such as "an int >= 1"."""
    kind, allowed = kind_of(option)[0], option.metadata["allowed"]
    if not isinstance(allowed, str):
        return f"one of {', '.join(allowed)}"
    if text := option.metadata["wanted"]:
        return str(text)
    if kind is bool:
        on, off = flags(option.name, option)[-2:]
        return f"{NOUNS[bool]}; on the command line: {on}, {on} false or {off}"
    described = "a path" if option.metadata["path"] else f"{NOUNS[kind]} {allowed}".rstrip()
    return f"{described}; at most {LONGEST_LIST} of them" if kind == Ints else described


def fits(value: Any, allowed: str | Collection[str]) -> bool:
    """Return True if a value is allowed.

    `allowed` is a collection of choices, or limits such as ">= 0 and < 1".
    """
    if not isinstance(allowed, str):
        return value in allowed
    limits = (limit.split() for limit in allowed.split(" and ") if limit)
    return all(COMPARE[sign](value, float(number)) for sign, number in limits)


def plain(kind: Any, value: Any) -> Any:
    """Convert `value` to `kind`, which is int, float, str or bool.

    Raises ValueError if the conversion would change the value, as int(2.5) and int(True) do.
    """
    lossy = isinstance(value, bool) != (kind is bool) or (kind is int and isinstance(value, float))
    if lossy or (kind is str and not (isinstance(value, str) and value.strip() and value.isprintable())):
        raise ValueError
    if kind is float and not math.isfinite(float(value)):
        raise ValueError
    return kind(value)


def switch(text: str) -> bool | str:
    """Convert a value of a boolean flag, such as "true" or "no". Another text is returned unchanged."""
    return SWITCHES.get(text.lower(), text)


def cast(option: Field[Any], value: Any) -> Any:
    """Convert a value to the type of its option and check its limits.

    `value` comes from YAML or the command line. Raises ValueError, TypeError or OverflowError if the value does not
    fit, or UsageError with an explanation.
    """
    kind, nullable = kind_of(option)
    path = option.metadata["path"]
    if path and value == "~" and isinstance(value, Bare):
        nothing = "write null, or" if nullable else "leave it out, or write"
        raise UsageError(f"YAML reads ~ as null; {nothing} ~/ for the home folder")
    if nullable and (value is None or (isinstance(value, str) and value in NULLS and not (path and value == "~"))):
        return None
    if value == "None" and (nullable or path):
        raise UsageError("None is text here; " + ("write null for no value" if nullable else "leave it out"))
    if kind is bool and isinstance(value, Bare):
        value = SWITCHES.get(value.lower())
    if path and isinstance(value, str):
        return expanded(str(value), existing=path == "old")
    items = _items(kind, value)
    if len(items) > LONGEST_LIST or not all(fits(item, option.metadata["allowed"]) for item in items):
        raise ValueError
    return items if kind in (Ints, Texts) else items[0]


def _items(kind: Any, value: Any) -> tuple[Any, ...]:
    """Convert a value to `kind`, and return the items of a list, or a tuple of the one value.

    Ints are also read from text with commas. Raises ValueError or TypeError if the value does not fit.
    """
    if kind not in (Ints, Texts):
        return (plain(kind, value),)
    split = value.split(",") if isinstance(value, str) and kind == Ints else value
    items = tuple(plain(get_args(kind)[0], item) for item in (split if isinstance(split, list | tuple) else [split]))
    if not items and kind == Ints:
        raise ValueError
    return items


def flags(name: str, option: Field[Any] | None = None) -> list[str]:
    """Return all flags of an option, such as ["-b", "--batch-size"].

    The last flag of a boolean option turns the option off. `option` is the declaration of the option `name`, or None
    for an option that only BIPROP has.
    """
    long = "--" + name.replace("_", "-")
    if option is None:
        return [long]
    if option.type is not bool:
        return [*option.metadata["flags"], long]
    off = long.replace("--no-", "--") if long.startswith("--no-") else long.replace("--", "--no-")
    return [*option.metadata["flags"], long, off]


def help_lines(options: Iterable[Field[Any]], needs: Mapping[str, str]) -> list[str]:
    """Return the lines that --help prints for some options.

    They have the flags, the description, the type with range or choices, and the default. `needs` maps an option's name
    to the condition under which the option has an effect, as text.
    """
    lines, indent = [], " " * 36
    width = max(60, min(118, shutil.get_terminal_size((120, 24)).columns - 2))
    for option in options:
        default = f"default: {option.metadata['unset'] or shown(option.default)}"
        if option.default is MISSING:
            default = "required"
        elif default == "default: null":
            default = "no default"
        facts = ["flag" if option.type is bool else wanted(option), default]
        if option.name in needs:
            facts.append(f"needs {needs[option.name]}")
        text = f"{option.metadata['text']} [{'; '.join(facts)}]"
        start = f"  {', '.join(flags(option.name, option)):<32}  "
        if len(start) > len(indent):  # the flags fill a line of their own
            lines.append(start.rstrip())
            start = indent
        lines.append(textwrap.fill(text, width, initial_indent=start, subsequent_indent=indent))
    return lines
