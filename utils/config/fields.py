"""Options as dataclass fields: declare, cast, read from YAML and command line, say what is wrong. Knows no option."""

import argparse
import contextlib
import itertools
import math
import operator
import os
import re
import shlex
import shutil
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

from utils.config.yaml_loader import NULLS, Bare
from utils.errors import UsageError
from utils.paths import expanded
from utils.text import MOST_PROBLEMS, nearest, option_text, shown

TYPED = "on the command line"
BUT = ", but "  # between a value and what would be right
Rule = tuple[str, Callable[[Any], object], str]
Ints = tuple[int, ...]
Renamed = Mapping[tuple[str, str], Mapping[str, object]]  # (option, value) -> what it is called here
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


def opt(
    default: Any, text: str, allowed: str | Sequence[str] = "", *flags: str, maths: bool = True, path: str = ""
) -> Any:
    """One option. `allowed`: choices, or limits such as ">= 0 and < 1". `flags`: more spellings.

    `maths`: whether a resumed run with another value would be another run. `path`: "old" for a path to be read, "new"
    for any other, "" for what is no path.
    """
    facts = {"text": text, "allowed": allowed, "flags": flags, "maths": maths, "path": path}
    return field(default=default, metadata=facts)


def wanted(option: Any) -> str:
    """What an option takes, in words: "an int >= 1"."""
    kind, allowed = (get_args(option.type) or (option.type,))[0], option.metadata["allowed"]
    if not isinstance(allowed, str):
        return f"one of {', '.join(allowed)}"
    return f"{NOUNS[kind]} {allowed}".rstrip() + f"; at most {LONGEST_LIST} of them" * (kind == Ints)


def fits(value: Any, allowed: str | Sequence[str]) -> bool:
    if not isinstance(allowed, str):
        return value in allowed
    limits = (limit.split() for limit in allowed.split(" and ") if limit)
    return all(COMPARE[sign](value, float(number)) for sign, number in limits)


def plain(kind: Any, value: Any) -> Any:
    """An int, float, str or bool; what int() or float() would bend (2.5, true) is refused."""
    bent = isinstance(value, bool) != (kind is bool) or (kind is int and isinstance(value, float))
    if bent or (kind is str and not (isinstance(value, str) and value.strip() and value.isprintable())):
        raise ValueError
    if kind is float and not math.isfinite(float(value)):
        raise ValueError
    return kind(value)


def cast(option: Any, value: Any) -> Any:
    """A value as the option's declared type. Raises ValueError, TypeError or OverflowError where it is none, UsageError
    where there is more to say than what the type is."""
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
    """All spellings of an option's flag; the last one of a boolean option switches it off."""
    long = "--" + name.replace("_", "-")
    if option is None:
        return [long]
    off = long.replace("--no-", "--") if long.startswith("--no-") else long.replace("--", "--no-")
    return [*option.metadata["flags"], long, *([off] if option.type is bool else [])]


STEPPED = "start:stop:step or none"
LARGEST_STEP = 1_000_000


def stepped(text: str, most: int = 1000) -> list[float]:
    """The numbers of "start:stop:step", both ends among them, or of "none". Raises ValueError where it is neither, or
    more than `most` numbers, or one below 0 or above LARGEST_STEP."""
    if text == "none":
        return []
    start, stop, step = map(float, text.split(":"))
    count = math.floor((stop - start) / step + 1e-9) + 1 if 0 <= start <= stop <= LARGEST_STEP >= step > 0 else 0
    if not 0 < count <= most:
        raise ValueError
    return [round(start + i * step, 9) for i in range(count)]


def writable(folder: str) -> bool:
    """Whether a folder, or else the lowest existing one above it, can be written."""
    lowest = next(path for path in (Path(folder), *Path(folder).parents) if os.path.lexists(path))
    return os.access(lowest, os.W_OK | os.X_OK) and lowest.is_dir()


class Reader:
    """Takes values from the weakest source to the strongest and gathers all that is wrong with them."""

    def __init__(self, declared: Mapping[str, Any], dead: Sequence[str], renamed: Renamed) -> None:
        self.declared, self.dead, self.renamed = declared, dead, renamed
        self.v = SimpleNamespace(typed={}, chosen=set(), **{name: option.default for name, option in declared.items()})
        none = (None, MISSING)
        self.said = {
            name: f"{name}: {'no value given' if option.default in none else f'{shown(option.default)} by default'}"
            for name, option in declared.items()
        }
        self.lines: dict[str, str] = {}  # where in its file an option stands, for messages
        self.spellings = {
            flag[2:].replace("-", "_"): name for name, option in declared.items() for flag in flags(name, option)
        }
        self.problems: list[str] = []
        self.warnings: list[str] = []
        self.bad: set[str] = set()

    def take(self, name: str, value: Any, where: str, line: int | None = None) -> None:
        """One value as written; `where` is "in FILE" or "on the command line", `line` its line in that file."""
        placed = f", line {line}" if line else ""
        if name in self.dead:
            self.warnings.append(f"{name} has no effect here")
        elif isinstance(value, str) and (name, value) in self.renamed:
            meant = self.renamed[name, value]
            words = ", ".join(f"{other}: {shown(new)}" for other, new in meant.items())
            self.warnings.append(f"{name}: {value} {where} is {words} here")
            for other, new in meant.items():
                self.take(other, new, where, line)
        elif name not in self.declared:
            hint = self.hint(self.spellings.get(name, name), self.declared)
            self.problems.append(f"{option_text(name)}: unknown option {where}{placed}{hint}; see --help")
        else:
            self.said[name], self.lines[name] = f"{name}: {shown(value)} {where}", placed
            try:
                setattr(self.v, name, cast(self.declared[name], value))
            except (ValueError, TypeError, OverflowError) as error:
                allowed = self.declared[name].metadata["allowed"]
                hint = "" if isinstance(allowed, str) else self.hint(value if isinstance(value, str) else "", allowed)
                right = str(error) if isinstance(error, UsageError) else f"it must be {wanted(self.declared[name])}"
                self.problems.append(f"{self.said[name]}{placed}{hint}, but {right}")
                self.bad.add(name)

    def hint(self, name: str, names: Iterable[str]) -> str:
        """`nearest`, as long as problems are few enough to be listed: the search takes a millisecond."""
        return nearest(name, names) if len(self.problems) < MOST_PROBLEMS else ""

    def command_line(self, argv: Sequence[str]) -> None:
        """Split into `v.typed`: option -> its texts in order, "" for no text, a bool for a flag alone."""
        parser = argparse.ArgumentParser(allow_abbrev=False, add_help=False, argument_default=argparse.SUPPRESS)
        parser._negative_number_matcher = re.compile(r"-\.?\d")  # argparse's own takes -1e-4 for a flag
        spellings = {name: flags(name, self.declared.get(name)) for name in [*self.declared, *self.dead]}
        for name, spelled in spellings.items():
            switch = name in self.declared and self.declared[name].type is bool
            for flag in spelled:
                alone = flag != spelled[-1] if switch else ""
                parser.add_argument(flag, dest=name, nargs="?", action="append", const=alone)
        tokens = [re.sub("^--[^=]+", lambda long: long[0].replace("_", "-"), token) for token in argv]
        typed, strays = parser.parse_known_args(tokens)
        self.v.typed = vars(typed)
        pairs = set(itertools.pairwise(tokens))
        for before, stray in itertools.pairwise(["", *strays]):
            if stray[:1] == "-" and stray.strip("-"):
                known = [flag for name in self.declared for flag in spellings[name]]
                hint = self.hint(stray.partition("=")[0], known)
                self.problems.append(f"{option_text(stray)}: unknown option {TYPED}{hint}; see --help")
            elif before[:1] != "-" or "=" in before or (before, stray) not in pairs:  # else: an unknown option's value
                hint = f"; did you mean --config {shlex.quote(stray)}?" if stray.endswith((".yml", ".yaml")) else ""
                self.problems.append(
                    f"{shown(stray) if stray else repr(stray)}: stray word {TYPED}; an option starts with --{hint}"
                )

    def found(self, rules: Iterable[Rule], joint: str) -> list[str]:
        """The rules that apply, a line each. `joint` stands between what was given and what would be right."""
        lines = []
        for name, wrong, right in rules:
            with contextlib.suppress(AttributeError):
                if wrong(self.v):
                    placed = self.lines.get(name, "") if joint == BUT else ""
                    lines.append(self.said[name] + placed + joint + right.format(**vars(self.v)))
        return lines


def help_lines(options: Iterable[Any]) -> list[str]:
    """An entry of --help for each option: its flags, what it does, type, range or choices, default."""
    lines = []
    width = max(60, min(118, shutil.get_terminal_size((120, 24)).columns - 2))
    for option in options:
        default = "required" if option.default is MISSING else f"default {shown(option.default)}"
        takes = "flag" if option.type is bool else wanted(option)
        start = f"  {', '.join(flags(option.name, option)):<32}  "
        text = f"{option.metadata['text']} [{takes}; {default}]".replace("default null", "no default")
        lines.append(textwrap.fill(text, width, initial_indent=start, subsequent_indent=" " * 36))
    return lines
