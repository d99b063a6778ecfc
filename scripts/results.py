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

from utils import exit_codes
from utils.config.script_parser import Parser, new_path, old_path
from utils.console import say, warn
from utils.errors import UsageError
from utils.files import writing
from utils.records import results
from utils.records import run as runs
from utils.records.results import Row


def finished(row: Row) -> float:
    """Seconds since the epoch at which the run ended; 0 where the row does not say it."""
    try:
        return time.mktime(time.strptime(row["Date Finished"], results.DATE))
    except (ValueError, OverflowError):
        return 0.0


def rows_below(directory: Path) -> list[Row]:
    """The rows of all runs below `directory`, oldest first and of copies of a run the first one's; warns of runs that
    have none to give."""
    rows: dict[str, Row] = {}
    for path in sorted(directory.rglob(runs.ROW)):
        try:
            found, damaged = results.read(path)
            run_id = runs.read_status(path.parent).get("id")
        except UsageError as error:
            warn(str(error))
            continue
        own = [row for row in found if run_id in (None, row["Run ID"].rpartition("-")[0])]
        if len(own) < len(found):
            warn(f"{path}: rows of another run, left out: {len(found) - len(own)}")
        for row in own:
            rows.setdefault(row["Run ID"], row | {"Run Directory": str(path.parent)})
        if damaged:
            warn(f"{path}: damaged lines: {damaged}; their rows are lost")
    older = [path.parent for path in directory.rglob("status.json") if _lacks_row(path.parent)]
    if older:
        warn(f"finished runs without {runs.ROW}, made by an earlier version: {len(older)}, such as {min(older)}")
    return sorted(rows.values(), key=finished)


def _lacks_row(run: Path) -> bool:
    try:
        done = runs.read_status(run).get("status") == "done"
    except UsageError as error:
        warn(str(error))
        return False
    return done and not run.name.endswith(",dry-run") and not (run / runs.ROW).exists()


def rebuild(directory: Path, file: Path) -> str:
    """Append what is missing in `file`. Returns what to say of it. Raises UsageError, RunFailed."""
    if not directory.is_dir():
        raise UsageError(f"{directory} is no directory of runs")
    results.check(file)
    known = {row["Run ID"] for row in results.read(file)[0]}
    missing = [row for row in rows_below(directory) if row["Run ID"] not in known]
    for row in missing:
        with writing(file):
            results.append(file, row)
    return f"{file}: rows added: {len(missing)}, there before: {len(known)}"


def main(argv: Sequence[str]) -> int:
    """Rebuild; returns 0, 2 for bad input, 1 where the file cannot be written."""
    top = Parser(__doc__)
    top.add_argument("program", choices=["rebuild"])
    top.add_argument("directory", metavar="DIR", type=old_path, help="such as runs")
    top.add_argument("--results", metavar="FILE", type=new_path, help="default: DIR/results.csv")

    def work() -> None:
        given = top.parse_args(argv)
        say(rebuild(given.directory, given.results or given.directory / "results.csv"))

    return exit_codes.code(work, interrupted=exit_codes.INTERRUPTED)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
