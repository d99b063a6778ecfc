"""metrics.csv: the metrics of a run, one row per epoch."""

from collections.abc import Mapping
from pathlib import Path

from utils.files import write_text
from utils.records.epoch_tables import TableRow, as_csv, earlier_rows

MetricsBySplit = Mapping[str, Mapping[str, float]]  # split ("train", "test", "weights", …) -> name -> value


class MetricsCsv:
    """Writer of metrics.csv, which has one row per epoch and one column per metric.

    Metrics of single layers (split "weights") are left out. When a run is resumed after `epochs_done` epochs, the rows
    of later epochs are dropped. Raises UsageError if the existing file is damaged.
    """

    def __init__(self, path: Path, epochs_done: int) -> None:
        self._path = path
        self._rows = earlier_rows(path, epochs_done + 1) if epochs_done else []

    def record(self, epoch: int, metrics: MetricsBySplit) -> None:
        """Add the metrics of an epoch to metrics.csv as a row.

        The file is replaced atomically. The first row determines the columns.
        """
        row: TableRow = {"epoch": str(epoch)}
        for split, values in metrics.items():
            if split != "weights":
                row |= {f"{split}/{name}": f"{value:.9g}" for name, value in values.items()}
        self._rows.append(row)
        write_text(self._path, as_csv(self._rows, columns=list(self._rows[0])))
