"""Tables that a run records at certain epochs, as CSV files, with a chart if a table is a curve."""

import csv
import io
from dataclasses import dataclass
from pathlib import Path

from utils.console import warn
from utils.errors import UsageError
from utils.files import check_regular, write_text
from utils.records.plots import Line, line_chart

TableRow = dict[str, float | str]
DAMAGE = (KeyError, ValueError, csv.Error)  # errors of reading a damaged table
MOST_DRAWN = 10  # lines per chart: more would be hard to distinguish, and drawing would take longer with each epoch


@dataclass(frozen=True)
class Table:
    """Table that a trainer computes at one epoch and a run records as CSV.

    A row maps column names to values. All rows have the same keys. x, y: names of two columns if the rows are the
    points of a curve.
    """

    rows: list[TableRow]
    x: str = ""
    y: str = ""


def record_table(directory: Path, name: str, epoch: int, table: Table) -> None:
    """Add the rows of a table to its CSV file, with the epoch as the first column.

    The file is <name>.csv in `directory`. `epoch` counts from 1. Rows of earlier epochs are kept, rows of this and
    later epochs are replaced. If the table is a curve, also draw <name>.png with one line per epoch in the file. The
    chart shows at most MOST_DRAWN of the epochs, including the first and the last.

    If the table cannot be written, a warning is printed. A damaged file is renamed with a warning.
    """
    path = directory / f"{name}.csv"
    try:
        rows = [*_intact_rows(path, epoch, (table.x, table.y)), *({"epoch": epoch} | row for row in table.rows)]
        write_text(path, as_csv(rows, columns=list(rows[-1])))
    except OSError as error:
        warn(f"cannot write {path}: {error.strerror}; the table of epoch {epoch} is left out")
        return
    if not table.x:
        return
    lines: dict[str, Line] = {}
    for row in rows:
        line = lines.setdefault(str(row["epoch"]), Line(f"epoch {row['epoch']}", [], []))
        line.xs.append(float(row[table.x]))
        line.ys.append(float(row[table.y]))
    every = [*lines.values()]
    drawn = sorted({round(i * (len(every) - 1) / (MOST_DRAWN - 1)) for i in range(MOST_DRAWN)})
    line_chart(directory / f"{name}.png", [every[i] for i in drawn], table.x, table.y, title=str(directory))


def as_csv(rows: list[TableRow], columns: list[str]) -> str:
    """Return `rows` as CSV text with a header of `columns`.

    A value that a row lacks is left empty. Keys of a row that are not in `columns` are ignored.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n", extrasaction="ignore", restval="")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _intact_rows(path: Path, epoch: int, numeric_columns: tuple[str, ...]) -> list[TableRow]:
    """Return the rows of earlier epochs in a CSV file. A damaged file is renamed.

    They are the rows of epochs before `epoch`. For a damaged file, return []. A file without numbers in
    `numeric_columns` counts as damaged. Raises OSError if the file cannot be read.
    """
    try:
        check_regular(path)
        rows = _rows_before(path, epoch)
        for row in rows:
            _ = [float(row[column]) for column in numeric_columns if column]
    except DAMAGE:
        renamed = path.with_name(f"{path.name}.damaged")
        path.replace(renamed)
        warn(f"{path} is damaged: it was renamed to {renamed.name}, and a new table begins with epoch {epoch}")
        return []
    return rows


def earlier_rows(path: Path, epoch: int) -> list[TableRow]:
    """Return the rows of epochs before `epoch` in a CSV file.

    If the file does not exist, return no rows. Raises UsageError if the file is damaged or cannot be read.
    """
    check_regular(path)
    try:
        return _rows_before(path, epoch)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    except DAMAGE:
        message = f"{path} is damaged: it is not a table with whole numbers as epochs; move it away to continue"
        raise UsageError(message) from None


def _rows_before(path: Path, epoch: int) -> list[TableRow]:
    """Return the rows of epochs before `epoch` in a CSV file.

    If the file does not exist, return no rows. Raises OSError if the file cannot be read, one of DAMAGE if it is
    damaged.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows: list[TableRow] = [dict(row) for row in csv.DictReader(file, strict=True)]
    except FileNotFoundError:
        return []
    if any(None in row or None in row.values() for row in rows):
        raise ValueError("a line has too few or too many values")
    return [row for row in rows if int(row["epoch"]) < epoch]
