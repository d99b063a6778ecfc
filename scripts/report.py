"""Draw the curves of several runs in one picture and print a table of their last and largest values.

    python scripts/report.py RUN [RUN ...] [--measure test/acc@1] [--each] [--out report.png]

RUN is the directory of a run, finished or not. A measure is a column of metrics.csv. A curve is labelled with the
options in which the runs differ, or with the run's directory if these are many. Runs that differ only in their seeds
share one curve, their mean. With --each, every run has a curve of its own.
"""

import sys

if __name__ == "__main__":
    import start

    start.prepare(loads_torch=False)

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from args import FIELDS
from utils.config.script_parser import Parser, command
from utils.console import say
from utils.errors import UsageError
from utils.files import check_new
from utils.records.epoch_tables import earlier_rows
from utils.records.plots import Line, write_line_chart
from utils.records.run import Run
from utils.tables import aligned, mean_of_runs
from utils.text import escaped, nearest

MOST_NAMED = 3  # options in a label
Curve = dict[int, float]  # epoch -> value
Curves = dict[str, list[Curve]]  # label -> one curve per run


def options_of(run: Path, *, with_seed: bool = False) -> dict[str, object]:
    """Return the values of the options that determine the result of `run`, by default without the seed.

    Raises UsageError if `run` is not a run directory with at least one epoch.
    """
    record = Run(run)
    if not record.config.exists() or not record.metrics.exists():
        raise UsageError(f"{run} is not a run directory with a finished epoch: config.yaml or metrics.csv is missing")
    values = record.options().flat()
    names = {name for name, option in FIELDS.items() if option.metadata["maths"]} | {"epochs"}
    names -= set() if with_seed else {"seed"}
    return {name: value for name, value in values.items() if name in names}


def labels(runs: Mapping[Path, Mapping[str, object]]) -> list[str]:
    """Return one label per run from the options in which the runs differ.

    The label is the architecture if all options are equal, and the directory if more than MOST_NAMED differ.
    """
    kinds = [*runs.values()]
    differing = [name for name in kinds[0] if len({str(kind[name]) for kind in kinds}) > 1] or ["arch"]
    if len(differing) <= MOST_NAMED:
        return [", ".join(f"{name} {kind[name]}" for name in differing) for kind in kinds]
    return [str(next(run for run, other in runs.items() if other == kind)) for kind in kinds]


def curve(run: Path, measure: str) -> Curve:
    """Return the column `measure` of the run's metrics.csv by epoch. Raises UsageError if it is missing or damaged."""
    metrics = Run(run).metrics
    rows = earlier_rows(metrics, sys.maxsize)
    if not rows or not rows[0].get(measure):
        names = list(rows[0]) if rows else []
        raise UsageError(
            f"--measure: {run} has no {measure!r}{nearest(measure, names)}; one of {escaped(', '.join(names), 500)}"
        )
    try:
        return {int(row["epoch"]): float(row[measure]) for row in rows}
    except ValueError:
        raise UsageError(f"{metrics} is damaged: {measure} is not a number in every epoch") from None


def gather(runs: Sequence[Path], measure: str, *, each: bool = False) -> Curves:
    """Read the curve of `measure` from every run. Return the curves by label, in the order of the runs.

    Runs that differ only in their seeds have the same label, unless `each` is True.
    """
    curves: Curves = {}
    options = {run: options_of(run, with_seed=each) for run in runs}
    for label, run in zip(labels(options), options, strict=True):
        curves.setdefault(label, []).append(curve(run, measure))
    return curves


def common_epochs(curves: Sequence[Curve]) -> list[int]:
    """Return the epochs that all curves have. Raises UsageError if there is none."""
    if epochs := [epoch for epoch in curves[0] if all(epoch in curve for curve in curves)]:
        return epochs
    raise UsageError("two runs that differ only in their seeds have no epoch in common")


def mean_line(label: str, curves: Sequence[Curve]) -> Line:
    """Return a plot line of the mean of the curves, over the epochs that all of them have."""
    epochs = common_epochs(curves)
    means = [statistics.mean(curve[epoch] for curve in curves) for epoch in epochs]
    return Line(f"{label} ({len(curves)} runs)" if len(curves) > 1 else label, [*map(float, epochs)], means)


def with_unit(measure: str) -> str:
    """Return the name of a column of metrics.csv with its unit."""
    units = {"acc@": "%", "elapsed_seconds": "s"}
    return next((f"{measure} ({unit})" for part, unit in units.items() if part in measure), measure)


def table(curves_by_label: Curves, measure: str) -> str:
    """Return a table of the last and the largest value per label, as mean ± standard deviation (number of runs).

    `measure` is the column of metrics.csv that the values are from.
    """
    rows = [("", "epochs", f"last {with_unit(measure)}", f"largest {with_unit(measure)}")]
    for label, curves in curves_by_label.items():
        epochs = common_epochs(curves)
        last = mean_of_runs([curve[epochs[-1]] for curve in curves])
        largest = mean_of_runs([max(curve[epoch] for epoch in epochs) for curve in curves])
        rows.append((label, str(len(epochs)), last, largest))
    return aligned(rows)


def parser() -> Parser:
    """Return the parser of the command line."""
    top = Parser(__doc__)
    top.add_run("runs", "directory of a run", nargs="+")
    top.add_argument("--measure", default="test/acc@1", help="column of metrics.csv; default: test/acc@1")
    top.add_argument("--each", action="store_true", help="draw one curve per seed instead of their mean")
    top.add_argument("--title", default="", help="title of the picture")
    top.add_out("report.png")
    return top


@command
def main(argv: Sequence[str]) -> None:
    """Draw the curves of runs and print their table. Return 0, 2 for bad input, 1 if the picture cannot be written."""
    options = parser().parse_args(argv)
    check_new(options.out, force=True, option="--out: ")
    if options.out.suffix.lower() not in ("", ".png"):
        raise UsageError(f"--out: {options.out}: the picture is a PNG file; its name must end in .png")
    curves = gather(options.runs, options.measure, each=options.each)
    say(table(curves, options.measure))
    lines = [mean_line(label, of_runs) for label, of_runs in curves.items()]
    write_line_chart(options.out, lines, "epoch", with_unit(options.measure), options.title)
    say(f"written: {options.out}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
