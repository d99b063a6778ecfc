"""Checks of options against each other. A check is a function, listed with the names of the options that it reads.

A check is skipped if one of these options has an invalid value by itself.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import MISSING, dataclass, field

from utils.config.options import FIELDS, Options

LAYER_TYPES = "conv_type first_layer_type first_layer_dense"  # options that decide the conv_types of the layers


@dataclass(frozen=True)
class Given:
    """Names of the options that the user set: on the command line (`typed`), or there or in a file (`chosen`)."""

    typed: Collection[str] = ()
    chosen: Collection[str] = ()

    def wants_effect(self, name: str, o: Options) -> bool:
        """Return True if the user set the option `name` to a value that is meant to have an effect."""
        option = FIELDS[name]
        off = option.metadata["off"]
        in_file = option.metadata["warn_in_files"] and o.value(name) != option.default
        return (name in self.typed or in_file) and (off is MISSING or o.value(name) != off)


Function = Callable[[Options, Given], str]


@dataclass(frozen=True)
class Check:
    """A check of the options. `function` returns "" if the check passes, else the end of a message to the user.

    options: the message is about each of these options.
    reads: all options whose values the function uses.
    """

    options: tuple[str, ...]
    reads: frozenset[str]
    function: Function


@dataclass
class Checks:
    """List of checks that the decorator `add` extends."""

    checks: list[Check] = field(default_factory=list)

    def add(self, options: str, reads: str = "") -> Callable[[Function], Function]:
        """Return a decorator that adds its function to the list, as the check of `options` that also reads `reads`.

        Both are names separated by spaces.
        """

        def register(function: Function) -> Function:
            names = options.split()
            self.checks.append(Check(tuple(names), frozenset([*names, *reads.split()]), function))
            return function

        return register


def failures(
    checks: Iterable[Check], o: Options, given: Given, bad: Collection[str] = ()
) -> Iterator[tuple[Check, str]]:
    """Yield (check, message) for each check that fails. Checks that read one of the `bad` options are skipped."""
    for check in checks:
        if check.reads.isdisjoint(bad) and (text := check.function(o, given)):
            yield check, text
