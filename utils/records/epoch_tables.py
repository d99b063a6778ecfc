"""Tables that a method has to tell of an epoch, as a CSV file of the run, with a picture where they are a curve."""

import csv
import io
from dataclasses import dataclass
from pathlib import Path

from utils.console import warn
from utils.errors import UsageError
from utils.files import check_regular, write_text
from utils.records.plots import Line, line_chart

Row = dict[str, float | str]
DRAWN = 10  # lines that a picture has at most: more could not be told apart, and each epoch would take longer to draw


@dataclass(frozen=True)
class Table:
    """Rows with the same keys. With `x` and `y`, the names of two columns, it is a curve too."""

    rows: list[Row]
    x: str = ""
    y: str = ""


def record_table(directory: Path, name: str, epoch: int, table: Table) -> list[Line]:
    """Put the table of `epoch` (from 1) into <name>.csv of `directory`, below those of earlier epochs, in place of
    those of later ones; the epoch is the first column.

    Of a curve a line an epoch is returned, and <name>.png is drawn: `DRAWN` of them, the first and the last included.
    A file that is there and is no table of this kind is moved away; that, and a table that cannot be written, is a
    warning.
    """
    path = directory / f"{name}.csv"
    try:
        rows = [*_before(path, epoch, table), *({"epoch": epoch} | row for row in table.rows)]
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[-1]), lineterminator="\n", extrasaction="ignore", restval="")
        writer.writeheader()
        writer.writerows(rows)
        write_text(path, text.getvalue())
    except OSError as error:
        warn(f"cannot write {path}: {error.strerror}; the table of epoch {epoch} is left out")
        return []
    if not table.x:
        return []
    lines: dict[str, Line] = {}
    for row in rows:
        line = lines.setdefault(str(row["epoch"]), Line(f"epoch {row['epoch']}", [], []))
        line.xs.append(float(row[table.x]))
        line.ys.append(float(row[table.y]))
    every = [*lines.values()]
    drawn = sorted({round(i * (len(every) - 1) / (DRAWN - 1)) for i in range(DRAWN)})
    line_chart(directory / f"{name}.png", [every[i] for i in drawn], table.x, table.y, title=str(directory))
    return every


def _before(path: Path, epoch: int, table: Table) -> list[Row]:
    """The rows of earlier epochs; none of a damaged file, which is moved away. Raises OSError."""
    try:
        earlier = earlier_rows(path, epoch)
        for row in earlier:
            _ = [float(row[column]) for column in (table.x, table.y) if column]
    except (UsageError, KeyError, ValueError) as error:
        if isinstance(error.__cause__, OSError):
            raise error.__cause__ from None
        aside = path.with_name(f"{path.name}.damaged")
        path.replace(aside)
        warn(f"{path} is damaged: it is moved to {aside.name}, and a new one begins with epoch {epoch}")
        return []
    return earlier


def earlier_rows(path: Path, epoch: int) -> list[Row]:
    """The rows of epochs before `epoch`; none where there is no file. Raises UsageError where it is damaged."""
    check_regular(path)
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows: list[Row] = [dict(row) for row in csv.DictReader(file, strict=True)]
        if any(None in row or None in row.values() for row in rows):
            raise ValueError
        return [row for row in rows if int(row["epoch"]) < epoch]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    except (KeyError, ValueError, csv.Error):
        raise UsageError(f"{path} is damaged: it is no table by whole epochs; move it away to go on") from None
