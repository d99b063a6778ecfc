"""A grid of runs: each combination of the values given is run once; the end is a table of mean ± std over the seeds."""

import sys
from pathlib import Path

if __name__ == "__main__":  # run as a file: the project is one level up
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from utils import stop_signal

    stop_signal.exit_on_interrupt()

import itertools
import math
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from args import FIELDS, parse
from scripts.parts.sweep_cells import OTHER_RUNS, Cell, damaged, finished, lost, table
from scripts.parts.sweep_children import Stop, run
from utils import exit_codes
from utils.config.fields import flags, help_lines, opt
from utils.config.reader import TYPED, Reader
from utils.console import say, warn
from utils.errors import Stopped, UsageError
from utils.text import combined_error, split_problems

ROOT = Path(__file__).resolve().parents[1]
MOST_CELLS = 10_000
REFUSED = ("resume", "evaluate", "check", "start_epoch")
SPELLED = {flag: name for name, option in FIELDS.items() for flag in flags(name, option)}


@dataclass(frozen=True)
class SweepOptions:
    jobs: int = opt(
        1, "cells run at a time; they share the CPU's threads unless OMP_NUM_THREADS is set", ">= 1 and <= 256"
    )
    only: int | None = opt(None, "run one cell: its place in what --dry-run prints, from 0", ">= 0 and <= 1e6")
    dry_run: bool = opt(False, "print the command of every cell and stop; main.py's --dry-run N is not for a sweep")
    table: bool = opt(False, "print the table of what is finished and stop")


OWN: dict[str, Any] = {option.name: option for option in fields(SweepOptions)}
OWN_FLAGS = {flag for name, option in OWN.items() for flag in flags(name, option)}

HELP = """usage: python scripts/sweep.py --config FILE ... [--OPTION VALUE ...] ... [--jobs N] [--dry-run]

Runs main.py for every combination of the values given (a cell) and ends with a table: kept % by config, mean ± standard
deviation over the seeds. Every option of `python main.py --help` may be given: with one value it is fixed, with several
it is an axis of the grid. The first axis varies slowest; an option given again replaces what was given before.

A cell is skipped when it is finished: the results file (--results) has its row, and the config.yaml of that row's run
directory the same configuration and seed. One that was stopped or killed is resumed, one that another process is
training is passed by. So the same command goes on after an interruption and, once all is done, prints the table again.
What a cell says goes to <log-dir>/sweep-logs/.

Options of the sweep itself:
{}

Not for a sweep: --resume, --evaluate, --check, main.py's --dry-run N; --start-epoch, which a config file may hold.

Exit codes: 0 every cell is finished; 1 a cell failed; 2 bad input, nothing was started; 75 stopped by SIGTERM, SIGUSR2,
SIGHUP or Ctrl-C after saving, or cells are left to another sweep: the same command goes on; 130 left before
anything was started.

Example: python scripts/sweep.py --config configs/quickstart.yml --prune-rate 0.8 0.5 0.2 --seed 1 2 3 --jobs 2"""


def split(argv: Sequence[str]) -> tuple[list[str], dict[str, list[list[str]]]]:
    """(what is for the sweep itself, option -> the ways in which the cells are given it, as tokens)."""
    own: list[str] = []
    axes: dict[str, list[list[str]]] = {}
    groups: list[list[str]] = [[]]
    for token in argv:
        if token[:1] == "-" and not re.match(r"-\.?\d", token):
            flag, equals, value = token.partition("=")
            groups.append([flag if flag[:2] != "--" else flag.replace("_", "-"), *([value] if equals else [])])
        else:
            groups[-1].append(token)
    strays, *groups = groups
    if strays:
        axes[""] = [strays]
    for flag, *values in groups:
        name = SPELLED.get(flag, flag)
        if flag in OWN_FLAGS:
            own += [flag, *values]
        elif not values:
            axes[name] = [[flag]]
        else:
            axes[name] = [[f"{flag}={value}"] if value[:1] == "-" else [flag, value] for value in values]
    return own, axes


def combinations(argv: Sequence[str]) -> list[dict[str, list[str]]]:
    """For each cell: option -> its tokens."""
    _, axes = split(argv)
    return [dict(zip(axes, ways, strict=True)) for ways in itertools.product(*axes.values())]


def main_argv(ways: dict[str, list[str]]) -> list[str]:
    return [*itertools.chain(*ways.values()), "--resume", "auto"]


def cells(argv: Sequence[str]) -> list[list[str]]:
    """The command lines for main.py that a sweep's command line stands for, unchecked; reads no file.

    The first axis varies slowest. `--only I` runs element I.
    """
    return [main_argv(ways) for ways in combinations(argv)]


def checked(argv: Sequence[str]) -> tuple[SweepOptions, list[Cell]]:
    """The sweep's own options and its cells. Raises UsageError with every problem of every cell."""
    own, axes = split(argv)
    reader = Reader(OWN, [], {})
    reader.command_line(own)
    for name, values in reader.typed.items():
        for value in values:
            reader.take(name, value, TYPED)
    problems = reader.problems + [
        f"{name}: not for a sweep; leave it out, see --help" for name in REFUSED if name in axes
    ]
    several = {name for name, ways in axes.items() if len(ways) > 1}
    for name in several & FIELDS.keys() - {"config", *OTHER_RUNS}:
        if not FIELDS[name].metadata["maths"]:
            problems.append(f"{name}: several values {TYPED}, but the results do not depend on it; give one")
    if (count := math.prod(map(len, axes.values()))) > MOST_CELLS:
        raise UsageError(f"a grid of {count:,} cells; at most {MOST_CELLS:,}")
    made = []
    for ways in combinations(argv):
        varied = {name: " ".join(ways[name][1:]) or ways[name][0].partition("=")[2] for name in several - {"config"}}
        try:
            cell = main_argv(ways)
            made.append(Cell(cell, {name: varied[name] for name in ways if name in varied}, parse(cell)))
        except UsageError as error:
            problems += split_problems(error)
    only = None if "only" in reader.bad else reader.values.only
    if not problems and only is not None and only >= len(made):
        problems.append(f"{reader.origins['only']}, but the cells of this grid are 0 to {len(made) - 1}")
    if problems:
        raise combined_error(problems)
    options = SweepOptions(**{name: getattr(reader.values, name) for name in OWN})
    return options, made if only is None else made[only : only + 1]


def command(argv: Sequence[str]) -> str:
    """The cell's command for a shell in this folder."""
    main = ROOT / "main.py"
    return shlex.join([sys.executable, "main.py" if Path.cwd() == ROOT else str(main), *argv])


def outcome(stop: Stop, failed: Sequence[tuple[Cell, str]], left: int) -> int:
    """Say what has failed and what is left to do. Returns the exit code."""
    for cell, reason in failed:
        warn(f"failed: {cell.label}: {reason}")
    if left and stop.asked:
        say(f"stopped by {stop.reason}, cells left: {left}; the same command goes on")
        return Stopped.exit_code
    if left:
        say(f"cells left: {left}; the same command goes on")
    return 1 if failed else Stopped.exit_code if left else 0


def sweep(options: SweepOptions, grid: Sequence[Cell]) -> int:
    """Do what the options ask for. Returns the exit code."""
    for line in dict.fromkeys(line for cell in grid for line in cell.options.warnings):
        warn(line)
    if options.dry_run:
        for cell in grid:
            say(command(cell.argv))
        return 0
    for line in [*damaged(grid), *lost(grid)]:
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


def main(argv: Sequence[str]) -> int:
    """Returns the exit code that --help lists."""
    return exit_codes.run_program(lambda: work(argv), interrupted="interrupted; the same command goes on")


def work(argv: Sequence[str]) -> int:
    """What `main` does, failures as exceptions."""
    if {"-h", "--help"} & {*argv}:
        say(HELP.format("\n".join(help_lines(OWN.values()))))
        return 0
    return sweep(*checked(argv))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
