"""results.csv: one row per finished run, appended so that any number of runs ending together lose nothing."""

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
from utils.text import csv_cell, csv_text

Row = dict[str, str]

COLUMNS = [
    "Date Finished",  # down to Run Directory: BIPROP's columns in its order
    "Base Config",
    "Current Val Top 1",
    "Current Val Top 5",
    "Best Val Top 1",
    "Best Val Top 5",
    "Best Train Top 1",
    "Best Train Top 5",
    "Name",
    "Seed",
    "Prune Rate",
    "Learning Rate",
    "Epochs",
    "Weight Decay",
    "Learn BN",
    "Tune BN",
    "Bias Only",
    "Run Directory",
    "Status",
    "Arch",
    "Set",
    "Conv Type",
    "Trainer",
    "Kept",
    "Pruned",
    "Last Epoch Test Top 1",
    "Best Epoch Test Top 1",
    "Best Epoch",
    "Best Picked On",
    "Params",
    "Kept Params",
    "Precision",
    "Device",
    "Images/s",
    "Seconds",
    "Commit",
    "Run ID",
]
HEADER = ",".join(COLUMNS).encode()
DATE = "%m-%d-%y_%H:%M:%S"


def check(path: Path) -> None:
    """Make sure, before hours of training, that a row can be appended to `path`. Raises UsageError where not."""
    check_regular(path, "results: ")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(_lock(path)):
            if path.exists():
                path.open("r+b").close()
                _mend(path)
    except OSError as error:
        reason = mkdir_failure(path.parent, error)
        raise UsageError(f"results: cannot write {path}: {reason}; --results names another file") from error


def _lock(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")


def append(path: Path, row: Mapping[str, object]) -> None:
    """Append `row` (its keys are COLUMNS) under a lock, unless a row of the same Run ID is there already.

    The header comes with the first row. Damaged lines are set apart before. A row that does not get through whole, to a
    full disk, is taken back. Raises OSError, UsageError for a file with other columns.
    """
    assert set(row) == set(COLUMNS)
    with locked(_lock(path)):
        if _has(_mend(path), row):
            return
        with path.open("ab", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            line = _as_text([row], header=size == 0).encode()
            try:
                if file.write(line) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(file.fileno())
            except OSError:
                file.truncate(size)
                raise


def keep(path: Path, row: Mapping[str, object]) -> None:
    """Add `row` to `path`, the file of a single run, whole or not at all, unless it is there already.

    scripts/results.py restores a results file from these. Raises OSError, UsageError.
    """
    rows = _mend(path)
    if not _has(rows, row):
        write_text(path, _as_text([*rows, row]))


def _has(rows: Iterable[Row], row: Mapping[str, object]) -> bool:
    return any(known["Run ID"] == str(row["Run ID"]) for known in rows)


def _as_text(rows: Iterable[Mapping[str, object]], *, header: bool = True) -> str:
    """Rows as results.csv has them, a line each."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows({name: csv_cell(value) for name, value in row.items()} for row in rows)
    return text.getvalue()


def read(path: Path) -> tuple[list[Row], int]:
    """(the whole rows of a results file, oldest first; how many lines are damaged); none where there is no file.

    Raises UsageError for a file with other columns, or one that cannot be read.
    """
    check_regular(path, "results: ")
    try:
        whole, damaged = _parsed(path, path.read_bytes())
    except FileNotFoundError:
        return [], 0
    except OSError as error:
        raise UsageError(f"results: {path} cannot be read: {error.strerror}; --results names another file") from error
    return [row for _, row in whole], len(damaged)


def _mend(path: Path) -> list[Row]:
    """Move damaged lines from `path` to <path>.damaged and say so; the rows that are whole. The lock is held."""
    content = path.read_bytes() if path.exists() else b""
    whole, damaged = _parsed(path, content)
    if damaged:
        beside = path.with_name(f"{path.name}.damaged")
        check_regular(beside, "results: ")
        with beside.open("ab") as file:
            file.write(_lines(damaged))
            file.flush()
            os.fsync(file.fileno())
        warn(f"{path}: damaged lines moved to {beside}: {len(damaged)}; scripts/results.py rebuild restores their rows")
    headed = content.removeprefix(codecs.BOM_UTF8).split(b"\n")[0].removesuffix(b"\r")
    if damaged or (content and not (content.endswith(b"\n") and [*_row(headed).values()] == COLUMNS)):
        mended = _lines([HEADER, *(line for line, _ in whole)])
        write_atomic(path.resolve(), lambda file: file.write(mended))
    return [row for _, row in whole]


def _lines(lines: Iterable[bytes]) -> bytes:
    return b"".join(line + b"\n" for line in lines)


def _parsed(path: Path, content: bytes) -> tuple[list[tuple[bytes, Row]], list[bytes]]:
    """(whole rows with their lines, damaged lines). No value holds a line break, so each line is read alone and a torn
    one harms no other. A header counts as neither: files that were joined have several. Raises UsageError for another
    program's file: it begins with no header of ours, whole or torn, and holds no row of ours."""
    lines = [line.removesuffix(b"\r") for line in content.replace(codecs.BOM_UTF8, b"").split(b"\n")]
    lines = [line for line in lines if line.strip()]
    whole: list[tuple[bytes, Row]] = []
    damaged: list[bytes] = []
    for line in lines:
        row = _row(line)
        if _is_sound(row):
            whole.append((line, row))
        elif [*row.values()] != COLUMNS:
            damaged.append(line)
    if damaged and not whole and damaged[0] == lines[0] and not (HEADER.startswith(lines[0]) or b"\0" in lines[0]):
        raise UsageError(f"results: {path} has other columns than main.py writes; --results names another file")
    return whole, damaged


def _is_sound(row: Row) -> bool:
    """Whether the last value fits an earlier one: a line torn within it, or joined from two, shows here."""
    return bool(row) and row["Run ID"].endswith(f"-{row['Epochs']}")


def _row(line: bytes) -> Row:
    """The values of a line by column; empty where it is damaged."""
    try:
        (values,) = csv.reader([line.decode()], strict=True)
        return dict(zip(COLUMNS, map(csv_text, values), strict=True)) if b"\0" not in line else {}
    except (ValueError, csv.Error):
        return {}
