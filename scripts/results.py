"""Restore the rows of a results file from the directories of the runs.

    python scripts/results.py rebuild DIR [--results FILE]

Every finished run keeps its row of results.csv in its own directory. The rows that FILE does not have of runs below DIR
are appended to it, oldest first, with the directories in which the runs now are. Damaged lines of FILE are moved to
FILE.damaged.
"""

import sys

if __name__ == "__main__":
    import start

    start.prepare(loads_torch=False)

import time
from collections.abc import Sequence
from pathlib import Path

from utils.config.script_parser import Parser, command, new_path, old_path
from utils.console import say, warn
from utils.errors import UsageError
from utils.files import writing
from utils.records import results
from utils.records.result_row import DATE_FORMAT, run_id
from utils.records.results import ResultRow
from utils.records.run import DRY_RUN, Run


def finish_time(row: ResultRow) -> float:
    """Return the end of the run in seconds since 1970, or 0 if its row has no valid date."""
    try:
        return time.mktime(time.strptime(row["Date Finished"], DATE_FORMAT))
    except (ValueError, OverflowError):
        return 0.0


def rows_below(directory: Path) -> list[ResultRow]:
    """Return the result rows of all runs below `directory`, oldest first.

    If a run was copied, its rows come from the first copy by path. Warns of runs without a readable row.
    """
    rows: dict[str, ResultRow] = {}
    for path in sorted(directory.rglob(Run.RESULT)):
        try:
            sound, damaged = results.read(path, results.MOVE_AWAY)
            owner = Run(path.parent).status().get("id")
        except UsageError as error:
            warn(str(error))
            continue
        own = [row for row in sound if owner in (None, run_id(row))]
        if len(own) < len(sound):
            warn(f"{path}: rows of another run, left out: {len(sound) - len(own)}")
        for row in own:
            rows.setdefault(row["Run ID"], row | {"Run Directory": str(path.parent)})
        if damaged:
            warn(f"{path}: damaged lines: {damaged}; their rows are lost")
    runs = [Run(path.parent) for path in directory.rglob(Run(directory).status_file.name)]
    if lacking := [run.path for run in runs if _lacks_row(run)]:
        warn(f"finished runs without {Run.RESULT}, made by an earlier version: {len(lacking)}, such as {min(lacking)}")
    return sorted(rows.values(), key=finish_time)


def _lacks_row(run: Run) -> bool:
    """Return True if a finished run has no result row. Dry runs never have one and are left out."""
    try:
        done = run.status().get("status") == "done"
    except UsageError as error:
        warn(str(error))
        return False
    is_dry = any(folder.name.endswith(DRY_RUN) for folder in (run.path, run.path.parent))  # or numbered in a dry one
    return done and not is_dry and not run.result.exists()


def rebuild(directory: Path, file: Path) -> str:
    """Append the missing rows of the runs below `directory` to `file`, and return a line that counts them.

    Raises UsageError if there is no such directory or `file` has other columns, RunFailed if `file` cannot be written.
    """
    if not directory.is_dir():
        raise UsageError(f"{directory} is not a directory")
    results.check(file)
    known = len({row["Run ID"] for row in results.read(file)[0]})
    rows = rows_below(directory)
    with writing(file):
        added = results.append(file, *rows)
    return f"{file}: rows added: {added}, there before: {known}"


@command
def main(argv: Sequence[str]) -> None:
    """Append the missing rows to a results file and print their number."""
    top = Parser(__doc__)
    top.add_argument("command", metavar="COMMAND", choices=["rebuild"], help="rebuild: the only command")
    top.add_argument("directory", metavar="DIR", type=old_path, help="folder of the runs, such as runs")
    top.add_argument("--results", metavar="FILE", type=new_path, help="results file; default: DIR/results.csv")
    given = top.parse_args(argv)
    say(rebuild(given.directory, given.results or given.directory / "results.csv"))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
