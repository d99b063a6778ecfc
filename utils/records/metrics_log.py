"""Where a run's measures go: metrics.csv and TensorBoard. A recorder only listens: it never changes training."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from utils.files import write_text
from utils.records.epoch_tables import Row, earlier_rows

if TYPE_CHECKING:
    pass

Measures = Mapping[str, Mapping[str, float]]  # split ("train", "test", "weights", …) -> name -> value


class MetricsCsv:
    """metrics.csv: one row an epoch, one column a measure; what is said of single layers ("weights") stays out of it.

    On resumption the rows after `epochs_done` are dropped, so that no epoch has two. Raises UsageError where the file
    is damaged.
    """

    def __init__(self, path: Path, epochs_done: int) -> None:
        self._path = path
        self._rows = earlier_rows(path, epochs_done + 1) if epochs_done else []

    def record(self, epoch: int, measures: Measures) -> None:
        row: Row = {"epoch": str(epoch)}
        for split, values in measures.items():
            if split != "weights":
                row |= {f"{split}/{name}": f"{value:.9g}" for name, value in values.items()}
        self._rows.append(row)
        text = io.StringIO()
        writer = csv.DictWriter(text, list(self._rows[0]), lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(self._rows)
        write_text(self._path, text.getvalue())
