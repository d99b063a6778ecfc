"""The cells of a sweep, their rows in results.csv, and the table of the results."""

import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from args import FIELDS, Options, training_changes
from utils.errors import UsageError
from utils.records import results
from utils.records.result_row import run_id
from utils.records.results import ResultRow
from utils.records.run import Run
from utils.tables import mean_of_runs
from utils.text import escaped

OTHER_RUNS = ("epochs", "pretrained")  # options that change the result besides those marked `maths`


@dataclass(frozen=True)
class Cell:
    """Run of a sweep: its command line for main.py, its values of the options that vary, and all its options."""

    argv: list[str]
    varied: dict[str, str]
    options: Options

    @property
    def label(self) -> str:
        """Name of the cell in messages, such as "conv2_kn_unsigned prune_rate=0.5 seed=1"."""
        return " ".join([self.options.run.stem, *(f"{name}={value}" for name, value in self.varied.items())])

    @functools.cached_property
    def key(self) -> str:
        """Hash of the options that determine the result. Cells with equal results have equal keys in all sweeps."""
        flat = self.options.flat()
        values = [flat[name] for name in flat if FIELDS[name].metadata["maths"] or name in OTHER_RUNS]
        return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:12]

    @property
    def results(self) -> Path:
        """Path of the results file to which main.py appends the cell's row."""
        return Path(self.options.run.results)

    @property
    def log(self) -> Path:
        """Path of the file with the cell's output. The sweep that runs the cell holds a lock on this file."""
        run, constraint = self.options.run, self.options.constraint
        named = {"prune-rate": constraint.prune_rate, "seed": run.seed}
        parts = [run.stem, *(f"{name}={value}" for name, value in named.items() if value is not None), self.key]
        return run.root / "sweep-logs" / f"{','.join(parts)}.log"


def finished(cells: Sequence[Cell]) -> list[ResultRow | None]:
    """Return, for each cell, its newest row in its results file, or None if the cell is not finished.

    Raises UsageError if the file has other columns.
    """
    known = {path: rows(path)[0] for path in {cell.results for cell in cells}}
    return [
        next((row for row, options in reversed(known[cell.results]) if _is_of(cell, row, options)), None)
        for cell in cells
    ]


def file_warnings(cells: Sequence[Cell]) -> list[str]:
    """Return the warnings about the results files of the cells: the number of damaged lines and of ignored rows."""
    lines = []
    for path in sorted({cell.results for cell in cells}):
        all_rows, damaged = results.read(path)
        if damaged:
            lines.append(f"{path}: damaged lines: {damaged}; scripts/results.py rebuild restores their rows")
        counts = {
            "their run directory is gone or holds another run": rows(path)[1],
            "their accuracy is not a percentage": sum(not _has_accuracy(row) for row in all_rows),
        }
        lines += [f"{path}: rows ignored because {why}: {count}" for why, count in counts.items() if count]
    return lines


def rows(path: Path) -> tuple[list[tuple[ResultRow, Options]], int]:
    """Return the rows of a results file, each with its run's options, and the number of rows whose run is gone.

    The oldest row comes first. Only the first row of a run is returned: a run that was extended later had other
    learning rates than a run that was that long from the start. Raises UsageError for a file with other columns.
    """
    first = {run_id(row): row for row in reversed(results.read(path)[0])}
    valid = [row for row in reversed(first.values()) if _has_accuracy(row)]
    pairs = [(row, _options_of(row)) for row in valid]
    kept = [(row, options) for row, options in pairs if options is not None]
    return kept, len(pairs) - len(kept)


def _options_of(row: ResultRow) -> Options | None:
    """Return the options of the run of a row, or None if its run directory does not hold this run any more."""
    run = Run(Path(row["Run Directory"]))
    try:
        if run.status().get("id") != run_id(row) or not run.exists:
            return None
    except UsageError:  # a damaged status.json
        return None
    return _read(run.path, run.config.stat().st_mtime_ns)


@functools.cache
def _read(directory: Path, _changed: int) -> Options | None:
    try:
        return Run(directory).options()
    except UsageError:
        return None


def _is_of(cell: Cell, row: ResultRow, options: Options) -> bool:
    """Return True if `row`, the result of a run with `options`, is a result of `cell`.

    A seed or precision that the cell does not set may have any value.
    """
    ours, run = cell.options, cell.options.run
    unset = {"seed": options.run.seed} if run.seed is None else {}
    precision = {"precision": options.run.precision} if run.precision == "auto" else {}
    same = row["Epochs"] == str(ours.optim.epochs) and run.pretrained == options.run.pretrained
    return same and not training_changes(options, ours.replace(**unset, **precision))


def accuracy(row: ResultRow) -> float:
    """Return the top-1 test accuracy (%) after the last epoch. No selection of an epoch has biased it."""
    return float(row["Last Epoch Test Top 1"])


def _has_accuracy(row: ResultRow) -> bool:
    """Return True if the accuracy in the row is a percentage. People edit results files by hand."""
    try:
        return 0 <= accuracy(row) <= 100
    except ValueError:
        return False


def table(cells: Sequence[Cell], found: Sequence[ResultRow | None]) -> str:
    """Return a Markdown table of the results of a sweep: mean ± standard deviation (number of seeds).

    `found` has the results row of each cell, or None.

    There is one column per config, and one line per density (%) and combination of the other varied options.
    """
    name = _column_names(cells)
    columns = list(dict.fromkeys(name(cell) for cell in cells))
    axes = list(dict.fromkeys(axis for cell in cells for axis in cell.varied if axis not in ("prune_rate", "seed")))
    body: dict[tuple[str, ...], dict[str, dict[str, float]]] = {}
    for cell, row in zip(cells, found, strict=True):
        label = (f"{100 * cell.options.constraint.density:.6g} %", *(cell.varied.get(axis, "") for axis in axes))
        values = body.setdefault(label, {column: {} for column in columns})[name(cell)]
        if row is not None:
            values[cell.key] = accuracy(row)
    lines = [["kept", *axes, *columns]]
    lines += [[*label, *(mean_of_runs(list(of[column].values())) for column in columns)] for label, of in body.items()]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    text = ["| " + " | ".join(f"{c:<{w}}" for c, w in zip(line, widths, strict=True)) + " |" for line in lines]
    return "\n".join([*text, "", *_conditions([row for row in found if row is not None])])


def _column_names(cells: Sequence[Cell]) -> Callable[[Cell], str]:
    """Return the function that names the table column of a cell.

    The name is the architecture, else the config's stem, else the config's path: the first that is unique per config.
    """
    namings: list[Callable[[Cell], str]] = [lambda c: c.options.model.arch, lambda c: c.options.run.stem]
    count = len({str(cell.options.run.config) for cell in cells})
    for naming in namings:
        pairs = {(str(cell.options.run.config), naming(cell)) for cell in cells}
        if len(pairs) == len({name for _, name in pairs}) == count:
            return naming
    return lambda c: str(c.options.run.config)


def _conditions(found: Sequence[ResultRow]) -> list[str]:
    """Return the lines below the table, which describe the numbers and the conditions of the runs."""
    if not found:
        return ["no cell is finished yet"]
    values = {name: escaped(", ".join(sorted({row[name] for row in found}))) for name in ("Set", "Epochs", "Precision")}
    selected_on = escaped(" and ".join(sorted({row["Best Picked On"] for row in found})))
    return [
        "Test accuracy (%) after the last epoch, mean ± standard deviation (seeds); "
        + "; ".join(f"{name.lower()} {value}" for name, value in values.items()),
        f"No epoch was selected; the best epochs in the results file were picked on: {selected_on}",
    ]
