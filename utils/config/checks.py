"""Checks of options against each other. A check is a function, listed with the names of the options that it reads.

A check is skipped if one of these options has an invalid value by itself.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import MISSING, dataclass

from utils.config.options import FIELDS, Options

LAYER_TYPES = "conv_type first_layer_type first_layer_dense"  # options that decide the conv_types of the layers


@dataclass(frozen=True)
class Given:
    """Names of the options that the user set.

    Other options have their defaults.

    typed: options set on the command line.
    chosen: options set on the command line or in the YAML file.
    """

    typed: Collection[str] = ()
    chosen: Collection[str] = ()

    def wants_effect(self, name: str, options: Options) -> bool:
        """Return True if a missing effect of an option deserves a warning.

        This requires that the user set the option `name`, to another value than the one that switches it off.
        """
        option = FIELDS[name]
        off = option.metadata["off"]
        in_file = option.metadata["warn_in_files"] and options.value(name) != option.default
        return (name in self.typed or in_file) and (off is MISSING or options.value(name) != off)


Function = Callable[[Options, Given], str]


@dataclass(frozen=True)
class Check:
    """One check of option values, with the options that it concerns.

    function: returns "" if the check passes, else the end of the message to the user.
    options: the message is about each of these options.
    reads: all options whose values the function uses.
    """

    options: tuple[str, ...]
    reads: frozenset[str]
    function: Function


class Checks(list[Check]):
    """List of checks of option values.

    The decorator `add` appends a function to the list.
    """

    def add(self, options: str, reads: str = "") -> Callable[[Function], Function]:
        """Return a decorator that adds a function to the list of checks.

        The function is a check of the options named in `options`. `reads` names further options whose values the
        function uses. Names are separated by spaces.
        """

        def register(function: Function) -> Function:
            names = options.split()
            self.append(Check(tuple(names), frozenset([*names, *reads.split()]), function))
            return function

        return register


def failures(
    checks: Iterable[Check], options: Options, given: Given, invalid: Collection[str] = ()
) -> Iterator[tuple[Check, str]]:
    """Run `checks` and yield each one that fails, with its message.

    Yields (check, end of the message). `given` names the options that the user set. A check that uses one of the
    `invalid` options is skipped.
    """
    for check in checks:
        if check.reads.isdisjoint(invalid) and (text := check.function(options, given)):
            yield check, text
