"""The cells of a sweep, the rows of results.csv that belong to them, and the table they make."""

import functools
import hashlib
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from args import FIELDS, Options, changed_mathematics
from utils.errors import UsageError
from utils.records import results
from utils.records.results import ResultRow
from utils.records.run import Run
from utils.text import escaped

OTHER_RUNS = ("epochs", "pretrained")  # besides the mathematics, what makes it another result


@dataclass(frozen=True)
class Cell:
    """One run of the grid: the command line for main.py, what varies besides the config, what main.py makes of it."""

    argv: list[str]
    varied: dict[str, str]
    options: Options

    @property
    def label(self) -> str:
        """What a person calls it: "conv2_kn_unsigned prune_rate=0.5 seed=1"."""
        return " ".join([self.options.run.stem, *(f"{name}={value}" for name, value in self.varied.items())])

    @functools.cached_property
    def key(self) -> str:
        """The same for two cells, of any two sweeps, exactly when they have the same result."""
        flat = self.options.flat()
        facts = [flat[name] for name, option in FIELDS.items() if option.metadata["maths"] or name in OTHER_RUNS]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]

    @property
    def results(self) -> Path:
        return Path(self.options.run.results)

    @property
    def log(self) -> Path:
        """Where its output goes; a sweep that runs it holds the lock on this file."""
        run, constraint = self.options.run, self.options.constraint
        named = {"prune-rate": constraint.prune_rate, "seed": run.seed}
        parts = [run.stem, *(f"{name}={value}" for name, value in named.items() if value is not None), self.key]
        return Path(run.log_dir or "runs") / "sweep-logs" / f"{','.join(parts)}.log"


def finished(cells: Sequence[Cell]) -> list[ResultRow | None]:
    """For each cell the newest row of its results file, None where it has none. Raises UsageError."""
    known = {path: rows(path)[0] for path in {cell.results for cell in cells}}
    return [next((row for row, theirs in reversed(known[c.results]) if _is(c, row, theirs)), None) for c in cells]


def lost(cells: Sequence[Cell]) -> list[str]:
    """A line for each results file with rows that nothing can be compared with, or that have no accuracy."""
    lines = []
    for path in sorted({cell.results for cell in cells}):
        found = results.read(path)[0]
        counts = {
            "their run directory has gone or holds another run": rows(path)[1],
            "their accuracy is no percentage": sum(not _has_accuracy(row) for row in found),
        }
        lines += [f"{path}: rows that do not count, as {why}: {count}" for why, count in counts.items() if count]
    return lines


def damaged(cells: Sequence[Cell]) -> list[str]:
    """A line for each results file with damaged lines."""
    counts = {path: results.read(path)[1] for path in sorted({cell.results for cell in cells})}
    return [
        f"{path}: damaged lines: {count}; scripts/results.py rebuild restores their rows"
        for path, count in counts.items()
        if count
    ]


def rows(path: Path) -> tuple[list[tuple[ResultRow, Options]], int]:
    """(rows of a results file with the configurations of their runs, oldest first; how many have lost theirs).

    Only the first row of a run counts: one that was made longer later had other learning rates than a run that was
    meant to be that long. Raises UsageError for a file with other columns.
    """
    first = {row["Run ID"].rpartition("-")[0]: row for row in reversed(results.read(path)[0])}
    sound = [(run_id, row) for run_id, row in reversed(first.items()) if _has_accuracy(row)]
    pairs = [(row, _configuration(row["Run Directory"], run_id)) for run_id, row in sound]
    kept = [(row, options) for row, options in pairs if options is not None]
    return kept, len(pairs) - len(kept)


def _configuration(directory: str, run_id: str) -> Options | None:
    """The options of the run in `directory`; None where it has gone or has given way to another run."""
    run = Run(Path(directory))
    try:
        if run.status().get("id") != run_id or not run.exists:
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


def _is(cell: Cell, row: ResultRow, theirs: Options) -> bool:
    """Whether the row is the cell's: what the cell leaves open (seed, precision) may be anything."""
    ours, run = cell.options, cell.options.run
    left_open = {"seed": theirs.run.seed} if run.seed is None else {}
    precision = {"precision": theirs.run.precision} if run.precision == "auto" else {}
    same = row["Epochs"] == str(ours.optim.epochs) and run.pretrained == theirs.run.pretrained
    return same and not changed_mathematics(theirs, ours.replace(**left_open, **precision))


def accuracy(row: ResultRow) -> float:
    """Top-1 on the test set after the last epoch, in %: picked by nothing."""
    return float(row["Last Epoch Test Top 1"])


def _has_accuracy(row: ResultRow) -> bool:
    """Whether the value that the table is made of is one: people edit these files."""
    try:
        return 0 <= accuracy(row) <= 100
    except ValueError:
        return False


def table(cells: Sequence[Cell], found: Sequence[ResultRow | None]) -> str:
    """Markdown: kept % and whatever varies besides config and seed down, configs across, mean ± std (seeds) inside."""
    name = _column_names(cells)
    columns = list(dict.fromkeys(name(cell) for cell in cells))
    more = list(dict.fromkeys(n for cell in cells for n in cell.varied if n not in ("prune_rate", "seed")))
    body: dict[tuple[str, ...], dict[str, dict[str, float]]] = {}
    for cell, row in zip(cells, found, strict=True):
        label = (f"{100 * cell.options.constraint.density:.6g} %", *(cell.varied.get(n, "") for n in more))
        values = body.setdefault(label, {column: {} for column in columns})[name(cell)]
        if row is not None:
            values[cell.key] = accuracy(row)
    lines = [["kept", *more, *columns]]
    lines += [[*label, *(spread(list(of[column].values())) for column in columns)] for label, of in body.items()]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    text = ["| " + " | ".join(f"{c:<{w}}" for c, w in zip(line, widths, strict=True)) + " |" for line in lines]
    return "\n".join([*text, "", *_conditions([row for row in found if row is not None])])


def _column_names(cells: Sequence[Cell]) -> Callable[[Cell], str]:
    """The first of architecture, config's stem, config's path that tells the configs split_problems."""
    namings: list[Callable[[Cell], str]] = [lambda c: c.options.model.arch, lambda c: c.options.run.stem]
    count = len({str(cell.options.run.config) for cell in cells})
    for naming in namings:
        pairs = {(str(cell.options.run.config), naming(cell)) for cell in cells}
        if len(pairs) == len({named for _, named in pairs}) == count:
            return naming
    return lambda c: str(c.options.run.config)


def spread(values: Sequence[float]) -> str:
    """ "63.49 ± 0.09 (3)": mean ± sample standard deviation (how many); "-" for none."""
    if not values:
        return "-"
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{deviation} ({len(values)})"


def _conditions(found: Sequence[ResultRow]) -> list[str]:
    """What the numbers of the table are, and under which conditions they were measured."""
    if not found:
        return ["nothing is finished yet"]
    facts = {name: escaped(", ".join(sorted({row[name] for row in found}))) for name in ("Set", "Epochs", "Precision")}
    picked = escaped(" and ".join(sorted({row["Best Picked On"] for row in found})))
    return [
        "Test accuracy (%) after the last epoch, mean ± standard deviation (seeds); "
        + "; ".join(f"{name.lower()} {value}" for name, value in facts.items()),
        f"No epoch was picked; the best epochs in the results file were picked on: {picked}",
    ]
