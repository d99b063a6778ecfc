"""Read options from YAML files and command lines. A later value of an option replaces an earlier one."""

import argparse
import itertools
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, Field
from types import SimpleNamespace
from typing import Any

from utils.config.fields import Texts, cast, flags, kind_of, switch, wanted
from utils.errors import UsageError
from utils.text import MOST_PROBLEMS, nearest, option_text, shown

TYPED = "on the command line"
IN_CALL = "in the call"
BUT = ", but "  # in a message, between the value given and what would be right
Renamed = Mapping[tuple[str, str], Mapping[str, object]]  # (option, value) of BIPROP -> options and values here


class Reader:
    """Reader of options from YAML files and command lines.

    It collects the values and all problems with them.

    values: the option values read so far, as attributes.
    typed: option -> its values on the command line, as text and in order.
    chosen: names of the options that the user set, in a file or on the command line.
    bad: names of the options whose values are invalid.
    """

    def __init__(self, declared: Mapping[str, Field[Any]], dead: Sequence[str], renamed: Renamed) -> None:
        self.declared, self.dead, self.renamed = declared, dead, renamed
        self.values = SimpleNamespace(**{name: option.default for name, option in declared.items()})
        self.typed: dict[str, list[Any]] = {}
        self.chosen: set[str] = set()
        self.bad: set[str] = set()
        self.problems: list[str] = []
        self.warnings: list[str] = []
        # beginnings of messages: name, value and source
        self.origins = {name: f"{name}: {self._default(name)}" for name in declared}
        self.lines: dict[str, str] = {}  # option -> ", line N" of the file, for messages
        self.spellings = {
            flag[2:].replace("-", "_"): name for name, option in declared.items() for flag in flags(name, option)
        }

    def _default(self, name: str) -> str:
        default = self.declared[name].default
        return "no value given" if default in (None, MISSING) else f"{shown(default)} by default"

    def take(self, name: str, value: Any, source: str, line: int | None = None) -> None:
        """Store the value of one option, or record a problem.

        A problem is an unknown option or an invalid value. `source` is "in FILE" or "on the command line", for
        messages, and `line` is the line number in the file.
        """
        place = f", line {line}" if line else ""
        if name in self.dead:
            self.warnings.append(f"{name} is an option of BIPROP that has no effect here")
        elif isinstance(value, str) and (name, value) in self.renamed:
            options = self.renamed[name, value]
            described = ", ".join(f"{other}: {shown(new)}" for other, new in options.items())
            self.warnings.append(f"{name}: {value} {source} is read as {described}")
            for other, new in options.items():
                self.take(other, new, source, line)
        elif name not in self.declared:
            hint = self._hint(self.spellings.get(name, name), self.declared)
            self.problems.append(f"{option_text(name)}: unknown option {source}{place}{hint}; see --help")
        else:
            self.origins[name], self.lines[name] = f"{name}: {shown(value)} {source}", place
            try:
                converted = cast(self.declared[name], value)
                if kind_of(self.declared[name])[0] == Texts and source in (
                    TYPED,
                    IN_CALL,
                ):  # repeated flags add to the list
                    converted = (*getattr(self.values, name), *converted)
                setattr(self.values, name, converted)
            except (ValueError, TypeError, OverflowError) as error:
                allowed = self.declared[name].metadata["allowed"]
                hint = "" if isinstance(allowed, str) else self._hint(value if isinstance(value, str) else "", allowed)
                remedy = str(error) if isinstance(error, UsageError) else f"it must be {wanted(self.declared[name])}"
                self.problems.append(f"{self.origins[name]}{place}{hint}{BUT}{remedy}")
                self.bad.add(name)

    def _hint(self, name: str, names: Iterable[str]) -> str:
        """Return a suggestion for a misspelled option, or "" if no name is similar.

        The suggestion is " (did you mean 'NAME'?)", with the name in `names` closest to `name`. After MOST_PROBLEMS
        problems the result is always "", because a search takes a millisecond.
        """
        return nearest(name, names) if len(self.problems) < MOST_PROBLEMS else ""

    def command_line(self, argv: Sequence[str]) -> None:
        """Parse the command line `argv` and record unknown options and arguments as problems.

        The result is stored in `typed`, which maps an option to the list of its values. An option without a value gets
        "", and a boolean flag gets True or False.
        """
        tokens = _tokens(argv)
        spellings = {name: flags(name, self.declared.get(name)) for name in [*self.declared, *self.dead]}
        parsed, unknown = _parser(self.declared, spellings).parse_known_args(_with_negative_numbers_joined(tokens))
        self.typed = vars(parsed)
        self.chosen |= self.typed.keys()
        pairs = set(itertools.pairwise(tokens))
        for before, token in itertools.pairwise(["", *unknown]):
            if token[:1] == "-" and token.strip("-"):
                known = [flag for name in self.declared for flag in spellings[name]]
                hint = self._hint(token.partition("=")[0], known)
                self.problems.append(f"{option_text(token)}: unknown option {TYPED}{hint}; see --help")
            elif before[:1] != "-" or "=" in before or (before, token) not in pairs:  # else: an unknown option's value
                config = f"; did you mean --config {shlex.quote(token)}?" if token.endswith((".yml", ".yaml")) else ""
                given = shown(token) if token else repr(token)
                self.problems.append(f"{given}: unexpected argument {TYPED}; an option starts with --{config}")


def typed_values(declared: Mapping[str, Field[Any]], argv: Sequence[str]) -> dict[str, list[Any]]:
    """Return the values that a command line gives to some options, as text. All other words are ignored."""
    spellings = {name: flags(name, option) for name, option in declared.items()}
    return vars(_parser(declared, spellings).parse_known_args(_with_negative_numbers_joined(_tokens(argv)))[0])


def _parser(declared: Mapping[str, Field[Any]], spellings: Mapping[str, Sequence[str]]) -> argparse.ArgumentParser:
    """Return a parser that appends each value to a list.

    An option without a value gets "". A boolean flag gets True or False, also from a value such as "true" or "no".
    """
    parser = argparse.ArgumentParser(allow_abbrev=False, add_help=False, argument_default=argparse.SUPPRESS)
    for name, spelled in spellings.items():
        is_switch = name in declared and declared[name].type is bool
        for flag in spelled:
            is_off = is_switch and flag == spelled[-1]
            alone = not is_off if is_switch else ""
            # A value after --no-… is kept with the flag, so that `cast` refuses it and the message shows both.
            convert = f"{flag} {{}}".format if is_off else switch if is_switch else str
            parser.add_argument(flag, dest=name, nargs="?", action="append", const=alone, type=convert)
    return parser


def _tokens(argv: Sequence[str]) -> list[str]:
    """Return the words of a command line, with hyphens for the underscores in flags."""
    return [re.sub("^--[^=]+", lambda long: long[0].replace("_", "-"), token) for token in argv]


def _with_negative_numbers_joined(tokens: Sequence[str]) -> list[str]:
    """Join each flag with the negative number after it, as in "--lr=-1e-4".

    argparse takes a separate "-1e-4" for a flag.
    """
    joined: list[str] = []
    for token in tokens:
        if re.match(r"-\.?\d", token) and joined and joined[-1][:1] == "-" and "=" not in joined[-1]:
            joined[-1] += f"={token}"
        else:
            joined.append(token)
    return joined
