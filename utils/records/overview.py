"""Overview of all runs below a folder, as a table."""

import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from utils.config.yaml_loader import load_yaml
from utils.console import warn
from utils.errors import RunFailed, UsageError
from utils.records import results
from utils.records.epoch_tables import earlier_rows
from utils.records.run import Run
from utils.tables import Rows
from utils.text import split_problems


def all_runs(folder: Path) -> Rows:
    """Return one row per run below a folder, ordered by path.

    Warn of each run that cannot be read, and leave it out. Raises UsageError if there is no such folder.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder")
    rows = Rows()
    for run in sorted(_runs_below(folder), key=lambda found: found.path):
        try:
            rows.append(overview(run))
        except (UsageError, RunFailed) as error:
            for problem in split_problems(error):
                warn(f"{run.path} is left out: {problem}")
    return rows


def _runs_below(folder: Path) -> Iterator[Run]:
    """Yield the runs in `folder` and below it. A run may have numbered repeats below it."""
    for path, folders, files in os.walk(folder):
        run = Run(Path(path))
        if run.config.name in files:
            yield run
            folders[:] = [name for name in folders if name not in (run.logs.name, run.checkpoints.name)]


def overview(run: Run) -> dict[str, Any]:
    """Return the row of a run.

    status: "running", "done", "failed" or "stopped"; None before training. epoch, epochs: epochs trained, and to train.
    accuracy, best_accuracy: top-1 accuracy (%) on the test set in the last and in the best epoch. Both are None before
    the first epoch, and until the end of a run with a validation split. kept: share of the weights that is not pruned,
    of a finished run. Raises UsageError if a file is damaged.
    """
    options, status = load_yaml(run.config), run.status()  # not run.options(), which needs the plug-ins of the run
    finished, _ = results.read(run.result, results.MOVE_AWAY)
    metrics = earlier_rows(run.metrics, sys.maxsize)
    last = metrics[-1] if metrics else {}
    accuracies = _number(last, "test/acc@1"), _number(last, "test/best_acc@1")
    if finished:
        accuracies = _number(finished[-1], "Last Epoch Test Top 1"), _number(finished[-1], "Best Epoch Test Top 1")
    return {
        "path": str(run.path),
        "status": status.get("status"),
        "epoch": status.get("epoch", 0),
        "epochs": _count(options, "epochs"),
        **{name: options.get(name) for name in ("arch", "set", "conv_type")},
        "prune_rate": _number(options, "prune_rate"),
        "seed": _count(options, "seed"),
        "kept": _number(finished[-1], "Kept") if finished else None,
        "accuracy": accuracies[0],
        "best_accuracy": accuracies[1],
    }


def metric_rows(run: Run) -> Rows:
    """Return the rows of a run's metrics.csv, with numbers as values. Raises UsageError if the file is damaged."""
    return Rows(
        {name: int(value) if name == "epoch" else _number(row, name) for name, value in row.items()}
        for row in earlier_rows(run.metrics, sys.maxsize)
    )


def _count(row: Mapping[str, Any], name: str) -> int | None:
    """Return a value of a table as an int, or None if it is missing. Raises UsageError for another text."""
    value = _number(row, name)
    return None if value is None else int(row[name])


def _number(row: Mapping[str, Any], name: str) -> float | None:
    """Return a value of a table as a float, or None if it is missing. Raises UsageError for another text."""
    value = row.get(name)
    try:
        return None if value in (None, "") else float(value)
    except ValueError:
        raise UsageError(f"{name}: {value!r} is no number") from None
