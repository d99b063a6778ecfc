"""Checks of options against each other: typed functions, with the options that each reads.

A check is skipped if the value of an option that it reads is wrong by itself.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import MISSING, dataclass, field

from utils.config.options import FIELDS, Options

LAYER_TYPES = "conv_type first_layer_type first_layer_dense"  # options that decide the conv_types of the layers


@dataclass(frozen=True)
class Given:
    """Options given on the command line (`typed`), and there or in a file (`chosen`)."""

    typed: Collection[str] = ()
    chosen: Collection[str] = ()

    def wants_effect(self, name: str, o: Options) -> bool:
        """Return whether the user expects the option `name` to have an effect."""
        option = FIELDS[name]
        off = option.metadata["off"]
        in_file = option.metadata["warn_in_files"] and o.value(name) != option.default
        return (name in self.typed or in_file) and (off is MISSING or o.value(name) != off)


Function = Callable[[Options, Given], str]


@dataclass(frozen=True)
class Check:
    """A function of the options that returns "" if all is well, else the end of a message about each of `options`."""

    options: tuple[str, ...]
    reads: frozenset[str]
    function: Function


@dataclass
class Checks:
    """A list of checks, filled by decorators."""

    checks: list[Check] = field(default_factory=list)

    def add(self, options: str, reads: str = "") -> Callable[[Function], Function]:
        """Add the decorated function as the check of `options`, which also reads `reads`; names separated by spaces."""

        def register(function: Function) -> Function:
            names = options.split()
            self.checks.append(Check(tuple(names), frozenset([*names, *reads.split()]), function))
            return function

        return register


def failures(
    checks: Iterable[Check], o: Options, given: Given, bad: Collection[str] = ()
) -> Iterator[tuple[Check, str]]:
    """Yield each check that fails, with the text of its function. Checks that read a `bad` option are skipped."""
    for check in checks:
        if check.reads.isdisjoint(bad) and (text := check.function(o, given)):
            yield check, text
