"""results.csv: one row per finished run, appended under a lock, so that runs that end together lose no row."""

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
    """Check before training that a row can be appended to `path`. Raises UsageError if not."""
    check_regular(path, "results: ")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(_lock(path)):
            if path.exists():
                path.open("r+b").close()
                _set_damaged_lines_apart(path, OTHER_FILE)
    except OSError as error:
        raise UsageError(f"results: cannot write {path}: {mkdir_failure(path.parent, error)}; {OTHER_FILE}") from error


def _lock(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")


def append(path: Path, *rows: Mapping[str, object]) -> int:
    """Append those of `rows` whose Run ID the file does not have yet, and return their number.

    The keys of a row are COLUMNS. The header is written before the first row of a file, and damaged lines are moved to
    another file first. Rows that do not fit on a full disk are taken back. Raises OSError, and UsageError if the file
    has other columns.
    """
    with locked(_lock(path)):
        new = _unknown(rows, _set_damaged_lines_apart(path, OTHER_FILE))
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
    """Add `row` to `path`, the result.csv of a single run, atomically, unless its Run ID is there already.

    scripts/results.py restores results.csv from these files. Raises OSError, and UsageError if the file has other
    columns.
    """
    rows = _set_damaged_lines_apart(path, MOVE_AWAY)
    if new := _unknown([row], rows):
        write_text(path, _as_csv([*rows, *new]))


def _unknown(rows: Iterable[Mapping[str, object]], known: Iterable[ResultRow]) -> list[Mapping[str, object]]:
    """Return the rows whose Run ID is not that of a known one."""
    ids = {row["Run ID"] for row in known}
    return [row for row in rows if str(row["Run ID"]) not in ids]


def _as_csv(rows: Iterable[Mapping[str, object]], *, header: bool = True) -> str:
    """Return the lines of results.csv for `rows`. A row with other keys than COLUMNS raises ValueError."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows({name: csv_cell(value) for name, value in row.items()} for row in rows)
    return text.getvalue()


def read(path: Path, advice: str = OTHER_FILE) -> tuple[list[ResultRow], int]:
    """Return (sound rows of a results file, oldest first; number of damaged lines); ([], 0) if there is no file.

    Raises UsageError, which ends with `advice`, if the file has other columns or cannot be read.
    """
    check_regular(path, "results: ")
    try:
        sound, damaged = _parsed(path, path.read_bytes(), advice)
    except FileNotFoundError:
        return [], 0
    except OSError as error:
        raise UsageError(f"results: {path} cannot be read: {error.strerror}; {advice}") from error
    return [row for _, row in sound], len(damaged)


def _set_damaged_lines_apart(path: Path, advice: str) -> list[ResultRow]:
    """Move damaged lines from `path` to <path>.damaged with a warning, and return the sound rows.

    The caller holds the lock. A file that lacks its header or its last line end gets them.
    """
    content = path.read_bytes() if path.exists() else b""
    sound, damaged = _parsed(path, content, advice)
    if damaged:
        beside = path.with_name(f"{path.name}.damaged")
        check_regular(beside, "results: ")
        with beside.open("ab") as file:
            file.write(_joined(damaged))
            file.flush()
            os.fsync(file.fileno())
        warn(f"{path}: damaged lines moved to {beside}: {len(damaged)}; scripts/results.py rebuild restores their rows")
    first_line = content.removeprefix(codecs.BOM_UTF8).split(b"\n")[0].removesuffix(b"\r")
    if damaged or (content and not (content.endswith(b"\n") and [*_row(first_line).values()] == COLUMNS)):
        repaired = _joined([HEADER, *(line for line, _ in sound)])
        write_atomic(path.resolve(), lambda file: file.write(repaired))
    return [row for _, row in sound]


def _joined(lines: Iterable[bytes]) -> bytes:
    return b"".join(line + b"\n" for line in lines)


def _parsed(path: Path, content: bytes, advice: str) -> tuple[list[tuple[bytes, ResultRow]], list[bytes]]:
    """Return (sound rows with their lines, damaged lines). A header counts as neither: joined files have several.

    No value contains a line break. Each line is therefore parsed alone, and a torn one harms no other. The file of
    another program begins with no header of ours, complete or torn, and has no row of ours: it raises UsageError.
    """
    lines = [line.removesuffix(b"\r") for line in content.replace(codecs.BOM_UTF8, b"").split(b"\n")]
    lines = [line for line in lines if line.strip()]
    sound: list[tuple[bytes, ResultRow]] = []
    damaged: list[bytes] = []
    for line in lines:
        row = _row(line)
        if _is_sound(row):
            sound.append((line, row))
        elif [*row.values()] != COLUMNS:
            damaged.append(line)
    if damaged and not sound and damaged[0] == lines[0] and not (HEADER.startswith(lines[0]) or b"\0" in lines[0]):
        raise UsageError(f"results: {path} has other columns than main.py writes; {advice}")
    return sound, damaged


def _is_sound(row: ResultRow) -> bool:
    """Return True if the last value agrees with an earlier one, as in no line that is torn or joined from two."""
    return bool(row) and row["Run ID"].endswith(f"-{row['Epochs']}")


def _row(line: bytes) -> ResultRow:
    """Return the values of a line by column; {} if the line is damaged."""
    try:
        (values,) = csv.reader([line.decode()], strict=True)
        return dict(zip(COLUMNS, map(csv_text, values), strict=True)) if b"\0" not in line else {}
    except (ValueError, csv.Error):
        return {}
