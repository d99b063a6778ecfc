"""Format tables as text: aligned columns, and means with standard deviations."""

import statistics
from collections.abc import Sequence


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
