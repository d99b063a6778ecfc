"""Curves of several runs in one picture, and their last and best values in a table.

    python scripts/report.py RUN [RUN ...] [--measure test/acc@1] [--out report.png]

RUN is a run's directory, finished or not. A line is named by the options in which the runs differ, or by its directory
where these are many; runs that differ in nothing but the seed are one line, their mean. A measure is a column of
metrics.csv.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # run as a file: the project is one level up
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from utils import stop_signal

    stop_signal.exit_on_interrupt()

import statistics
from collections.abc import Mapping, Sequence

from args import FIELDS, from_flat
from scripts.parts.sweep_cells import spread
from utils import exit_codes
from utils.config.script_parser import Parser, new_path, old_path
from utils.config.yaml_loader import load_yaml
from utils.console import say
from utils.errors import UsageError
from utils.files import check_new
from utils.records.epoch_tables import earlier_rows
from utils.records.plots import Line, line_chart
from utils.text import escaped, nearest

MANY = 3  # options that a label names at most
Curve = dict[int, float]  # epoch -> value
Curves = dict[str, list[Curve]]  # by label, of each of its runs


def options_of(run: Path) -> dict[str, object]:
    """What makes the run what it is, but its seed. Raises UsageError where `run` is none."""
    if not (run / "config.yaml").exists() or not (run / "metrics.csv").exists():
        raise UsageError(f"{run} is no run directory with an epoch done: it has no config.yaml and metrics.csv")
    values = from_flat(load_yaml(run / "config.yaml")).flat()
    told = {name for name, option in FIELDS.items() if option.metadata["maths"] and name != "seed"} | {"epochs"}
    return {name: value for name, value in values.items() if name in told}


def labels(runs: Mapping[Path, Mapping[str, object]]) -> list[str]:
    """A name for each run of what differs among them, or of its directory where that is much; of one kind alone the
    architecture."""
    kinds = [*runs.values()]
    differ = [name for name in kinds[0] if len({str(kind[name]) for kind in kinds}) > 1] or ["arch"]
    if len(differ) <= MANY:
        return [", ".join(f"{name} {kind[name]}" for name in differ) for kind in kinds]
    return [str(next(run for run, same in runs.items() if same == kind)) for kind in kinds]


def curve(run: Path, measure: str) -> Curve:
    """The column `measure` of its metrics. Raises UsageError where there is none."""
    rows = earlier_rows(run / "metrics.csv", sys.maxsize)
    if not rows or not rows[0].get(measure):
        names = list(rows[0]) if rows else []
        raise UsageError(
            f"--measure: {run} has no {measure!r}{nearest(measure, names)}; one of {escaped(', '.join(names), 500)}"
        )
    try:
        return {int(row["epoch"]): float(row[measure]) for row in rows}
    except ValueError:
        raise UsageError(f"{run / 'metrics.csv'} is damaged: {measure} is not a number in every epoch") from None


def gather(runs: Sequence[Path], measure: str) -> Curves:
    """The curves by label, in the order in which the labels come."""
    curves: Curves = {}
    for label, run in zip(labels({run: options_of(run) for run in runs}), dict.fromkeys(runs), strict=True):
        curves.setdefault(label, []).append(curve(run, measure))
    return curves


def common(of: Sequence[Curve]) -> list[int]:
    """The epochs that all of the runs have. Raises UsageError where there is none."""
    if epochs := [epoch for epoch in of[0] if all(epoch in values for values in of)]:
        return epochs
    raise UsageError("two runs that differ in their seeds alone have no epoch in common")


def mean_line(label: str, of: Sequence[Curve]) -> Line:
    """The mean over runs for every epoch that all of them have."""
    epochs = common(of)
    means = [statistics.mean(values[epoch] for values in of) for epoch in epochs]
    return Line(f"{label} ({len(of)} runs)" if len(of) > 1 else label, [*map(float, epochs)], means)


def table(curves: Curves) -> str:
    """Last and largest value of each label, mean ± standard deviation over its runs (how many)."""
    rows = [("", "epochs", "last", "largest")]
    for label, of in curves.items():
        epochs = common(of)
        last = spread([values[epochs[-1]] for values in of])
        best = spread([max(values[epoch] for epoch in epochs) for values in of])
        rows.append((label, str(len(epochs)), last, best))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def main(argv: Sequence[str]) -> int:
    """Draw and print; returns 0, 2 for bad input, 1 where the picture cannot be written."""
    top = Parser(__doc__)
    top.add_argument("runs", metavar="RUN", nargs="+", type=old_path)
    top.add_argument("--measure", default="test/acc@1", help="default test/acc@1")
    top.add_argument("--title", default="", help="above the picture")
    top.add_argument("--out", type=new_path, default=Path("report.png"), help="default report.png")

    def work() -> int:
        given = top.parse_args(argv)
        check_new(given.out, force=True, option="--out: ")
        if given.out.suffix.lower() not in ("", ".png"):
            raise UsageError(f"--out: {given.out}: a PNG file is drawn; its name must end in .png")
        curves = gather(given.runs, given.measure)
        say(table(curves))
        lines = [mean_line(*of) for of in curves.items()]
        if not line_chart(given.out, lines, "epoch", given.measure, given.title):
            return 1
        say(f"written: {given.out}")
        return 0

    return exit_codes.run_program(work, interrupted=exit_codes.INTERRUPTED)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
