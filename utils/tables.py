"""Text tables: aligned columns, and means with their standard deviations."""

import statistics
from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]], *, right: bool = False) -> str:
    """Return the rows as lines whose columns are padded to equal width, two spaces apart."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    align = ">" if right else "<"
    lines = (zip(row, widths, strict=True) for row in rows)
    return "\n".join("  ".join(f"{cell:{align}{width}}" for cell, width in line).rstrip() for line in lines)


def mean_and_deviation(values: Sequence[float]) -> str:
    """Return "63.49 ± 0.09": mean ± sample standard deviation; the value alone if there is one."""
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{deviation}"


def mean_of_runs(values: Sequence[float]) -> str:
    """Return "63.49 ± 0.09 (3)": `mean_and_deviation` with the number of values; "-" if there is none."""
    return f"{mean_and_deviation(values)} ({len(values)})" if values else "-"
