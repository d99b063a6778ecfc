"""Tables: rows as dicts, text with aligned columns, and means with standard deviations."""

import statistics
from collections.abc import Sequence
from typing import Any

MOST_PRINTED = 100  # rows of a table


class Rows(list[dict[str, Any]]):
    """Table as a list of rows, dicts from column name to value. Its repr is the table as text."""

    @property
    def columns(self) -> list[str]:
        """Names of the columns, in the order in which the rows first have them."""
        return list(dict.fromkeys(name for row in self for name in row))

    def to_pandas(self) -> Any:
        """Return the table as a pandas.DataFrame. Raises ModuleNotFoundError if pandas is not installed."""
        try:
            import pandas
        except ModuleNotFoundError as error:
            message = "pandas is not installed; run pip install pandas, or use the rows, which are dicts"
            raise ModuleNotFoundError(message, name=error.name) from None
        return pandas.DataFrame(list(self), columns=self.columns)

    def __repr__(self) -> str:
        if not self:
            return "no rows"
        lines = [[_cell(row.get(name)) for name in self.columns] for row in self[:MOST_PRINTED]]
        more = f"\nand {len(self) - MOST_PRINTED:,} more rows" if len(self) > MOST_PRINTED else ""
        return aligned([self.columns, *lines]) + more


def _cell(value: object) -> str:
    """Return a value of a table as text: numbers with up to 5 digits, "-" for None."""
    if value is None:
        return "-"
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def aligned(rows: Sequence[Sequence[str]], *, right: bool = False) -> str:
    """Return one line of text per row of a table, with aligned columns.

    `rows` are lists of cells. The columns are two spaces apart. Cells are aligned to the left, or to the right with
    `right`.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    align = ">" if right else "<"
    lines = (zip(row, widths, strict=True) for row in rows)
    return "\n".join("  ".join(f"{cell:{align}{width}}" for cell, width in line).rstrip() for line in lines)


def mean_and_deviation(values: Sequence[float]) -> str:
    """Return the mean and the sample standard deviation as text, such as "63.49 ± 0.09".

    A single value has no deviation.
    """
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{deviation}"


def mean_of_runs(values: Sequence[float]) -> str:
    """Return the mean, standard deviation and number of values, as "63.49 ± 0.09 (3)".

    Without values the text is "-".
    """
    return f"{mean_and_deviation(values)} ({len(values)})" if values else "-"
