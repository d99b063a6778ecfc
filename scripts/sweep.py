"""Run main.py once for every combination of several option values, and print a table of the results.

    python scripts/sweep.py --config FILE ... [--OPTION VALUE ...] ... [--jobs N] [--dry-run]
    python scripts/sweep.py --config configs/quickstart.yml --prune-rate 0.8 0.5 0.2 --seed 1 2 3 --jobs 2

Every option of `python main.py --help` is accepted. An option with one value is fixed; an option with several values is
an axis of the grid. One combination is a cell. The first axis varies slowest. `--nesterov true false` and `--nesterov
--no-nesterov` are the same axis. If another option is given twice, the second one counts, with a warning.

The table has one row per density (kept %) and one column per config, with the mean ± standard deviation of the accuracy
over the seeds.

A finished cell is skipped. A cell is finished if the results file (--results) has its row and the config.yaml in the
run directory of that row has the same configuration and seed. A cell that was stopped or killed is resumed. A cell that
another process is training is skipped. The same command therefore continues an interrupted sweep and, once all cells
are finished, prints the table again. The output of each cell goes to a file in <log-dir>/sweep-logs/.

These options cannot be used in a sweep: --resume, --evaluate, --check, main.py's --dry-run N, and --start-epoch, which
a config file may set.

Exit codes: 0 every cell is finished; 1 a cell failed; 2 bad input, nothing was started; 75 cells are left, because
SIGTERM, SIGUSR2, SIGHUP or Ctrl-C stopped the sweep after its cells saved, or because another sweep runs them: run the
same command to continue; 130 interrupted before a cell was started.
"""

import sys

if __name__ == "__main__":
    import start

    start.prepare(loads_torch=False)

import contextlib
import itertools
import math
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from args import FIELDS, parse
from scripts import ROOT
from scripts.parts.sweep_cells import OTHER_RUNS, Cell, file_warnings, finished, table
from scripts.parts.sweep_children import Stop, run
from utils.config.fields import Texts, flags, help_lines, kind_of, opt
from utils.config.reader import TYPED, Reader
from utils.config.script_parser import command
from utils.console import say, warn
from utils.errors import Stopped, UsageError
from utils.text import combined_error, shown, split_problems

MOST_CELLS = 10_000
REFUSED = ("resume", "evaluate", "check", "start_epoch")


@dataclass(frozen=True)
class SweepOptions:
    """Options of sweep.py itself. All other options on its command line belong to main.py."""

    jobs: int = opt(
        1, "cells to run at a time; they share the CPU's threads unless OMP_NUM_THREADS is set", ">= 1 and <= 256"
    )
    only: int | None = opt(None, "run one cell: its number in the output of --dry-run, from 0", ">= 0 and <= 1e6")
    dry_run: bool = opt(False, "print all commands and stop; main.py's --dry-run N cannot be used in a sweep")
    table: bool = opt(False, "print the table of the finished cells and stop")


OWN: dict[str, Any] = {option.name: option for option in fields(SweepOptions)}
OWN_FLAGS = {flag for name, option in OWN.items() for flag in flags(name, option)}


@dataclass
class Words:
    """Parts of a command line of sweep.py.

    own: the sweep's own arguments.
    axes: option of main.py -> its alternatives, which are lists of arguments for main.py.
    replaced: options that were given twice, so that only the second one counts.
    """

    own: list[str] = field(default_factory=list)
    axes: dict[str, list[list[str]]] = field(default_factory=dict)
    replaced: list[str] = field(default_factory=list)

    def add(self, name: str, alternatives: list[list[str]]) -> None:
        """Add the alternatives of an option. If it was given before, those of a boolean option are united."""
        earlier = self.axes.get(name)
        kind = kind_of(FIELDS[name])[0] if name in FIELDS else None
        if earlier and kind is bool:
            alternatives = earlier + alternatives
        elif earlier and kind == Texts:  # each value of a repeatable option counts
            alternatives = [[*before, *after] for before in earlier for after in alternatives]
        elif earlier:
            self.replaced.append(name)
        self.axes[name] = alternatives


def split(argv: Sequence[str]) -> Words:
    """Split a command line into the sweep's own arguments and main.py's options with their alternative values."""
    option_of_flag = {flag: name for name, option in FIELDS.items() for flag in flags(name, option)}
    words = Words()
    groups: list[list[str]] = [[]]
    for token in argv:
        if token[:1] == "-" and not re.match(r"-\.?\d", token):
            flag, equals, value = token.partition("=")
            groups.append([flag if flag[:2] != "--" else flag.replace("_", "-"), *([value] if equals else [])])
        else:
            groups[-1].append(token)
    unexpected, *groups = groups
    if unexpected:
        words.axes[""] = [unexpected]
    for flag, *values in groups:
        name = option_of_flag.get(flag) or flag.lstrip("-").replace("-", "_")  # else an option of a plug-in
        if flag in OWN_FLAGS:
            words.own += [flag, *values]
        elif not values:
            words.add(name, [[flag]])
        else:
            words.add(name, [[f"{flag}={value}"] if value[:1] == "-" else [flag, value] for value in values])
    return words


def combinations(argv: Sequence[str]) -> list[dict[str, list[str]]]:
    """Return one dict per run of the sweep, from option to command-line arguments. The first option varies slowest."""
    axes = split(argv).axes
    return [dict(zip(axes, chosen, strict=True)) for chosen in itertools.product(*axes.values())]


def main_argv(chosen: dict[str, list[str]]) -> list[str]:
    """Return main.py's command line for one run of the sweep, given the arguments of its options."""
    return [*itertools.chain(*chosen.values()), "--resume", "auto"]


def checked(argv: Sequence[str]) -> tuple[SweepOptions, list[Cell]]:
    """Parse a command line into the sweep's own options and cells. Raises UsageError with all problems of all cells."""
    words = _split_with_plugins(argv)
    axes, reader = words.axes, Reader(OWN, [], {})
    reader.command_line(words.own)
    for name, values in reader.typed.items():
        for value in values:
            reader.take(name, value, TYPED)
    problems = reader.problems + [
        f"{name}: cannot be used in a sweep; leave it out, see --help" for name in REFUSED if name in axes
    ]
    several = {name for name, alternatives in axes.items() if len(alternatives) > 1}
    for name in several & FIELDS.keys() - {"config", *OTHER_RUNS}:
        if not FIELDS[name].metadata["maths"]:
            problems.append(f"{name}: several values {TYPED}, but the results do not depend on it; pass one value")
    if (count := math.prod(map(len, axes.values()))) > MOST_CELLS:
        raise UsageError(f"a grid of {count:,} cells; at most {MOST_CELLS:,}")
    grid = []
    for chosen in combinations(argv):
        try:
            grid.append(_cell(chosen, several - {"config"}))
        except UsageError as error:
            problems += split_problems(error)
    only = None if "only" in reader.bad else reader.values.only
    if not problems and only is not None and only >= len(grid):
        problems.append(f"{reader.origins['only']}, but the cells of this grid are 0 to {len(grid) - 1}")
    if problems:
        raise combined_error(problems)
    for name in dict.fromkeys(words.replaced):
        warn(f"{name} is given twice: only {' '.join(itertools.chain(*axes[name]))} counts")
    options = SweepOptions(**{name: getattr(reader.values, name) for name in OWN})
    return options, grid if only is None else grid[only : only + 1]


def _split_with_plugins(argv: Sequence[str]) -> Words:
    """Split a command line. If it has options that main.py lacks, load the plug-ins first, which may declare them."""
    words = split(argv)
    if words.axes.keys() - FIELDS.keys():
        with contextlib.suppress(UsageError):  # it is reported when the cells are parsed
            parse(main_argv({name: alternatives[0] for name, alternatives in words.axes.items()}))
    return split(argv)


def _cell(chosen: dict[str, list[str]], several: set[str]) -> Cell:
    """Return the cell with the given arguments of its options. The options `several` vary in the sweep."""
    argv = main_argv(chosen)
    options = parse(argv)
    varied = {}
    for name, words in chosen.items():
        if name in several:
            typed = " ".join(words[1:]) or words[0].partition("=")[2]
            is_switch = name in FIELDS and kind_of(FIELDS[name])[0] is bool
            varied[name] = shown(options.value(name)) if is_switch else typed
    return Cell(argv, varied, options)


def shell_command(argv: Sequence[str]) -> str:
    """Return the shell command that runs main.py with `argv` from the current folder."""
    main = ROOT / "main.py"
    return shlex.join([sys.executable, "main.py" if Path.cwd() == ROOT else str(main), *argv])


def outcome(stop: Stop, failed: Sequence[tuple[Cell, str]], left: int) -> int:
    """Print the failed runs and the number of unfinished runs of a sweep. Return the exit code."""
    for cell, reason in failed:
        warn(f"failed: {cell.label}: {reason}")
    if left:
        cause = f"stopped by {stop.reason}, " if stop.requests else ""
        say(f"{cause}cells left: {left}; run the same command to continue")
        if stop.requests:
            return Stopped.exit_code
    if failed:
        return 1
    return Stopped.exit_code if left else 0


def sweep(options: SweepOptions, grid: Sequence[Cell]) -> int:
    """Run the unfinished cells of a sweep and print the table of results. Return the exit code.

    With --dry-run or --table, only print the commands or the table.
    """
    for line in dict.fromkeys(line for cell in grid for line in cell.options.warnings):
        warn(line)
    if options.dry_run:
        for cell in grid:
            say(shell_command(cell.argv))
        return 0
    for line in file_warnings(grid):
        warn(line)
    if options.table:
        say(table(grid, finished(grid)))
        return 0
    stop = Stop().listen()
    todo = {cell.key: cell for cell, row in zip(grid, finished(grid), strict=True) if row is None}
    runs = len({cell.key for cell in grid})
    say(f"cells: {runs}, finished: {runs - len(todo)}, to run: {len(todo)}")
    failed = run(list(todo.values()), options.jobs, stop, ROOT / "main.py")
    rows = finished(grid)
    say("\n" + table(grid, rows))
    missing = {cell.key for cell, row in zip(grid, rows, strict=True) if row is None}
    return outcome(stop, failed, len(missing - {cell.key for cell, _ in failed}))


def _main(argv: Sequence[str]) -> int:
    """Print the help or run the sweep. Return the exit code that --help lists."""
    if {"-h", "--help"} & {*argv}:
        say("\n".join([f"{__doc__}\nOptions of the sweep itself:", *help_lines(OWN.values(), {})]))
        return 0
    return sweep(*checked(argv))


main = command(_main, interrupted="interrupted; run the same command to continue")

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
