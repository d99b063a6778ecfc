"""results.csv: one row per finished run, appended so that any number of runs ending together lose nothing."""

import csv
import io
import os
from collections.abc import Mapping
from pathlib import Path

from args import UsageError
from utils.files import check_regular, locked

COLUMNS = [
    "Date Finished",  # down to Run Directory: BIPROP's columns in its order
    "Base Config",
    "Current Val Top 1",
    "Current Val Top 5",
    "Best Val Top 1",
    "Best Val Top 5",
    "Best Train Top 1",
    "Best Train Top 5",
    "Name",
    "Seed",
    "Prune Rate",
    "Learning Rate",
    "Epochs",
    "Weight Decay",
    "Learn BN",
    "Tune BN",
    "Bias Only",
    "Run Directory",
    "Status",
    "Arch",
    "Set",
    "Conv Type",
    "Trainer",
    "Kept",
    "Pruned",
    "Last Epoch Test Top 1",
    "Best Epoch Test Top 1",
    "Best Epoch",
    "Best Picked On",
    "Params",
    "Kept Params",
    "Precision",
    "Device",
    "Images/s",
    "Seconds",
    "Commit",
    "Run ID",
]


def check(path: Path) -> None:
    """Make sure, before hours of training, that a row can be appended to `path`. Raises UsageError where not."""
    check_regular(path, "results: ", or_folder=True)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            with path.open("r+", newline="") as file:
                header = next(csv.reader(file), COLUMNS)
        else:
            header = COLUMNS
        with locked(_lock(path)):
            pass
    except OSError as error:
        raise UsageError(f"results: cannot write {path}: {error.strerror}; --results names another file") from error
    except (ValueError, csv.Error):
        header = []
    if header != COLUMNS:
        raise UsageError(f"results: {path} has other columns than this program writes; --results names another file")


def _lock(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")


def append(path: Path, row: Mapping[str, object]) -> None:
    """Append `row` (its keys are COLUMNS) under a lock, unless a row of the same Run ID is there already.

    The header comes with the first row. A last line torn by a crash is ended before. Raises OSError.
    """
    assert set(row) == set(COLUMNS)
    with locked(_lock(path)), path.open("a+b") as file:
        file.seek(0)
        there = file.read()
        if str(row["Run ID"]).encode() in there:
            return
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        if not there:
            writer.writeheader()
        writer.writerow(dict(row))
        torn = b"\n" if there and not there.endswith(b"\n") else b""
        file.write(torn + text.getvalue().encode())
        file.flush()
        os.fsync(file.fileno())
