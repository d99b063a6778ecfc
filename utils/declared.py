"""Options as dataclass fields: declare, cast, read from YAML and command line, say what is wrong. Knows no option."""

import argparse
import contextlib
import difflib
import itertools
import math
import operator
import re
import shutil
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import yaml

from utils.paths import irregular

TYPED = "on the command line"
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


class UsageError(ValueError):
    """The user's mistake: main prints it and exits with 2. One line per problem."""


def opt(default: Any, text: str, allowed: str | Sequence[str] = "", *flags: str, maths: bool = True) -> Any:
    """One option. `allowed`: choices, or limits such as ">= 0 and < 1". `flags`: more spellings.

    `maths`: whether a resumed run with another value would be another run.
    """
    return field(default=default, metadata={"text": text, "allowed": allowed, "flags": flags, "maths": maths})


def shown(value: object) -> str:
    plain = {"None": "null", "True": "true", "False": "false", "''": "no value"}
    return plain.get(repr(value), f"{value!r:.200}")


def nearest(name: str, names: Iterable[str]) -> str:
    """The most similar of the names, as a remark to end a message with; empty when none is similar."""
    spelled = {known.lower(): known for known in names}
    close = difflib.get_close_matches(name.lower(), spelled, n=1)
    return f" (did you mean {spelled[close[0]]!r}?)" if close else ""


def wanted(option: Any) -> str:
    """What an option takes, in words: "an int >= 1"."""
    kind, allowed = (get_args(option.type) or (option.type,))[0], option.metadata["allowed"]
    return f"{NOUNS[kind]} {allowed}".rstrip() if isinstance(allowed, str) else f"one of {', '.join(allowed)}"


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
    """A value as the option's declared type. Raises ValueError, TypeError or OverflowError where it is none."""
    kind, *nullable = get_args(option.type) or (option.type,)
    if nullable and value in (None, "null"):
        return None
    listed = value.split(",") if isinstance(value, str) else value if isinstance(value, list | tuple) else [value]
    items = tuple(plain(int, item) for item in listed) if kind == Ints else (plain(kind, value),)
    if not items or not all(fits(item, option.metadata["allowed"]) for item in items):
        raise ValueError
    return items if kind == Ints else items[0]


class UniqueKeys(yaml.SafeLoader):
    """YAML's plain values, where a key given twice is an error; 0:4:0.1 is text, not YAML 1.1's number to base 60."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (as in yaml itself)
        first: [("tag:yaml.org,2002:str", re.compile(r"[-+]?\d+(:[\d.]+)+$")), *known]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [str(key.value).replace("-", "_") for key, _ in node.value]
        for place, name in enumerate(names):
            if name in names[:place]:
                mark = node.value[place][0].start_mark
                raise yaml.MarkedYAMLError(problem=f"key {name!r} is given twice", problem_mark=mark)
        return super().construct_mapping(node, deep)


def load_yaml(path: str | Path) -> dict[str, Any]:
    """The options in a YAML file; hyphens in its keys become underscores. Raises UsageError with file and line."""
    try:
        if fault := irregular(path):
            raise ValueError(f"it {fault}")
        content = yaml.load(Path(path).read_text(encoding="utf-8"), UniqueKeys)
        if not isinstance(content, dict):
            raise ValueError(
                "it is empty" if content is None else f"it holds no `key: value` lines but {shown(content)}"
            )
    except (OSError, yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        reason = getattr(error, "strerror", None) or getattr(error, "problem", None) or " ".join(str(error).split())
        line = f", line {mark.line + 1}" if mark else ""
        advice = "leave one out" if "given twice" in reason else "give a YAML file"
        raise UsageError(f"config: {path}{line} cannot be read: {reason}; {advice}") from error
    return {str(key).replace("-", "_"): value for key, value in content.items()}


def flags(name: str, option: Any = None) -> list[str]:
    """All spellings of an option's flag; the last one of a boolean option switches it off."""
    long = "--" + name.replace("_", "-")
    if option is None:
        return [long]
    off = long.replace("--no-", "--") if long.startswith("--no-") else long.replace("--", "--no-")
    return [*option.metadata["flags"], long, *([off] if option.type is bool else [])]


STEPPED = "start:stop:step or none"


def stepped(text: str, most: int = 1000) -> list[float]:
    """The numbers of "start:stop:step", both ends among them, or of "none". Raises ValueError where it is neither, or
    more than `most` numbers, or one below 0."""
    if text == "none":
        return []
    start, stop, step = map(float, text.split(":"))
    count = math.floor((stop - start) / step + 1e-9) + 1 if 0 <= start <= stop < math.inf and step > 0 else 0
    if not 0 < count <= most:
        raise ValueError
    return [round(start + i * step, 9) for i in range(count)]


class Reader:
    """Takes values from the weakest source to the strongest and gathers all that is wrong with them."""

    def __init__(self, declared: Mapping[str, Any], dead: Sequence[str], renamed: Renamed) -> None:
        self.declared, self.dead, self.renamed = declared, dead, renamed
        self.v = SimpleNamespace(typed={}, **{name: option.default for name, option in declared.items()})
        none = (None, MISSING)
        self.said = {
            name: f"{name}: {'no value given' if option.default in none else f'{shown(option.default)} by default'}"
            for name, option in declared.items()
        }
        self.problems: list[str] = []
        self.warnings: list[str] = []
        self.bad: set[str] = set()

    def take(self, name: str, value: Any, where: str) -> None:
        """One value as written; `where` is "in FILE" or "on the command line"."""
        if name in self.dead:
            self.warnings.append(f"{name} has no effect here")
        elif isinstance(value, str) and (name, value) in self.renamed:
            meant = self.renamed[name, value]
            words = ", ".join(f"{other}: {shown(new)}" for other, new in meant.items())
            self.warnings.append(f"{name}: {value} {where} is {words} here")
            for other, new in meant.items():
                self.take(other, new, where)
        elif name not in self.declared:
            aliases = {
                flag[2:].replace("-", "_"): known for known, one in self.declared.items() for flag in flags(known, one)
            }
            hint = nearest(aliases.get(name, name), self.declared)
            self.problems.append(f"{name}: unknown option {where}{hint}; see --help")
        else:
            self.said[name] = f"{name}: {shown(value)} {where}"
            try:
                setattr(self.v, name, cast(self.declared[name], value))
            except (ValueError, TypeError, OverflowError):
                allowed = self.declared[name].metadata["allowed"]
                hint = "" if isinstance(allowed, str) else nearest(str(value), allowed)
                self.problems.append(f"{self.said[name]}{hint}, but it must be {wanted(self.declared[name])}")
                self.bad.add(name)

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
                hint = nearest(stray.partition("=")[0], [flag for name in self.declared for flag in spellings[name]])
                self.problems.append(f"{stray}: unknown option {TYPED}{hint}; see --help")
            elif before[:1] != "-" or "=" in before or (before, stray) not in pairs:  # else: an unknown option's value
                hint = f"; did you mean --config {stray}?" if stray.endswith((".yml", ".yaml")) else ""
                self.problems.append(f"{stray!r}: stray word {TYPED}; an option starts with --{hint}")

    def found(self, rules: Iterable[Rule], joint: str) -> list[str]:
        lines = []
        for name, wrong, right in rules:
            with contextlib.suppress(AttributeError):
                if wrong(self.v):
                    lines.append(self.said[name] + joint + right.format(**vars(self.v)))
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
