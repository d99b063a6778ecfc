"""results.csv: one row per finished run. Rows are appended under a lock, so that runs that end together lose none."""

import codecs
import csv
import errno
import io
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from utils.console import warn
from utils.errors import UsageError
from utils.files import check_regular, locked, mkdir_failure, write_atomic, write_text
from utils.records.result_row import VALUES
from utils.text import csv_cell, csv_text

ResultRow = dict[str, str]

COLUMNS = [*VALUES]
HEADER = ",".join(COLUMNS).encode()
OTHER_FILE = "pass another file with --results"
MOVE_AWAY = "move it away to continue"  # the advice for the result.csv of a run


def check(path: Path) -> None:
    """Raise UsageError if rows cannot be appended to a results file.

    This check runs before training.
    """
    check_regular(path, "results: ")
    if path.exists():
        read(path)  # refuses a file of another program before a lock file is created beside it
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(_lock_path(path)):
            if path.exists():
                path.open("r+b").close()
                _move_damaged_lines(path, OTHER_FILE)
    except OSError as error:
        raise UsageError(f"results: cannot write {path}: {mkdir_failure(path.parent, error)}; {OTHER_FILE}") from error


def _lock_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")


def append(path: Path, *rows: Mapping[str, object]) -> int:
    """Append rows of finished runs to a results file, and return the number of appended rows.

    Rows whose Run ID is already in the file are left out.

    The keys of a row are COLUMNS. A new file gets a header first. Damaged lines are moved to another file first. If the
    disk is full, the file is cut back to its former size. Raises OSError, and UsageError if the file has other columns.
    """
    with locked(_lock_path(path)):
        new = _new_rows(rows, _move_damaged_lines(path, OTHER_FILE))
        if not new:
            return 0
        with path.open("ab", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            lines = _as_csv(new, header=size == 0).encode()
            try:
                if file.write(lines) < len(lines):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(file.fileno())
            except OSError:
                file.truncate(size)
                raise
    return len(new)


def write_own(path: Path, row: Mapping[str, object]) -> None:
    """Add the row of a single run to its result.csv, unless the row is already there.

    A row is already there if the file `path` has its Run ID. The file is replaced atomically. scripts/results.py
    restores results.csv from these files. Raises OSError, and UsageError if the file has other columns.
    """
    rows = _move_damaged_lines(path, MOVE_AWAY)
    if new := _new_rows([row], rows):
        write_text(path, _as_csv([*rows, *new]))


def _new_rows(rows: Iterable[Mapping[str, object]], existing: Iterable[ResultRow]) -> list[Mapping[str, object]]:
    """Return the rows of finished runs that are not yet in the results file.

    A row is in the file if one of the `existing` rows has its Run ID.
    """
    ids = {row["Run ID"] for row in existing}
    return [row for row in rows if str(row["Run ID"]) not in ids]


def _as_csv(rows: Iterable[Mapping[str, object]], *, header: bool = True) -> str:
    """Return rows as CSV text with the columns of results.csv.

    Raises ValueError if a row has other keys.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows({name: csv_cell(value) for name, value in row.items()} for row in rows)
    return text.getvalue()


def read(path: Path, advice: str = OTHER_FILE) -> tuple[list[ResultRow], int]:
    """Read a results file, and return its undamaged rows and the number of damaged lines.

    The oldest row is first. If the file does not exist, return ([], 0). Raises UsageError, which ends with `advice`, if
    the file has other columns or cannot be read.
    """
    check_regular(path, "results: ")
    try:
        sound, damaged = _parse(path, path.read_bytes(), advice)
    except FileNotFoundError:
        return [], 0
    except OSError as error:
        raise UsageError(f"results: {path} cannot be read: {error.strerror}; {advice}") from error
    return [row for _, row in sound], len(damaged)


def _move_damaged_lines(path: Path, advice: str) -> list[ResultRow]:
    """Move the damaged lines of a results file to another file. Return the undamaged rows.

    The other file is <path>.damaged. A warning is printed. A missing header or a missing line break at the end of the
    file is added. The caller must hold the lock. `advice` ends the message of the UsageError that is raised if the file
    has other columns.
    """
    content = path.read_bytes() if path.exists() else b""
    sound, damaged = _parse(path, content, advice)
    if damaged:
        aside = path.with_name(f"{path.name}.damaged")
        check_regular(aside, "results: ")
        with aside.open("ab") as file:
            file.write(_join_lines(damaged))
            file.flush()
            os.fsync(file.fileno())
        warn(f"{path}: damaged lines moved to {aside}: {len(damaged)}; scripts/results.py rebuild restores their rows")
    first_line = content.removeprefix(codecs.BOM_UTF8).split(b"\n")[0].removesuffix(b"\r")
    if damaged or (content and not (content.endswith(b"\n") and [*_parse_line(first_line).values()] == COLUMNS)):
        repaired = _join_lines([HEADER, *(line for line, _ in sound)])
        write_atomic(path.resolve(), lambda file: file.write(repaired))
    return [row for _, row in sound]


def _join_lines(lines: Iterable[bytes]) -> bytes:
    return b"".join(line + b"\n" for line in lines)


def _parse(path: Path, content: bytes, advice: str) -> tuple[list[tuple[bytes, ResultRow]], list[bytes]]:
    """Divide the lines of a results file into undamaged and damaged lines.

    Return (undamaged lines as (line, row), damaged lines). `content` is the text of the file `path`.

    Headers are in neither list. A file that was joined from several has several headers. No value contains a line
    break, so each line is parsed alone, and a torn line damages no other line.

    Raises UsageError for a file of another program: its first line is not this program's header, complete or torn, and
    none of its lines is a row of this program.
    """
    lines = [line.removesuffix(b"\r") for line in content.replace(codecs.BOM_UTF8, b"").split(b"\n")]
    lines = [line for line in lines if line.strip()]
    sound: list[tuple[bytes, ResultRow]] = []
    damaged: list[bytes] = []
    for line in lines:
        row = _parse_line(line)
        if _is_complete(row):
            sound.append((line, row))
        elif [*row.values()] != COLUMNS:
            damaged.append(line)
    if damaged and not sound and damaged[0] == lines[0] and not (HEADER.startswith(lines[0]) or b"\0" in lines[0]):
        raise UsageError(f"results: {path} has other columns than main.py writes; {advice}")
    return sound, damaged


def _is_complete(row: ResultRow) -> bool:
    """Return True if a row was read from one whole line of a results file.

    The Run ID (last column) of such a row ends with its Epochs (an earlier column). In the row of a torn line or of two
    joined lines, it does not.
    """
    return bool(row) and row["Run ID"].endswith(f"-{row['Epochs']}")


def _parse_line(line: bytes) -> ResultRow:
    """Return the values of a line of a results file by column name.

    If the line is damaged, return {}.
    """
    try:
        (values,) = csv.reader([line.decode()], strict=True)
        return dict(zip(COLUMNS, map(csv_text, values), strict=True)) if b"\0" not in line else {}
    except (ValueError, csv.Error):
        return {}
