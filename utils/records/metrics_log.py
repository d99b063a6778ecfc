"""The CSV files of a run: metrics.csv with one row per epoch, and one file per table of the training method."""

from pathlib import Path

from utils.files import write_text
from utils.records.epoch_tables import Table, TableRow, as_csv, earlier_rows, record_table
from utils.records.recorder import MetricsBySplit, RecordedRun, Recorder
from utils.run_paths import RunPaths


class TableFiles(Recorder):
    """Recorder of the training method's tables, as CSV files and charts in the run directory."""

    def start(self, run: RecordedRun) -> None:
        """Note the directory of the run."""
        self._directory = run.path

    def table(self, name: str, epoch: int, table: Table) -> None:
        """Add a table to its CSV file, see `record_table`."""
        record_table(self._directory, name, epoch, table)


class MetricsCsv(Recorder):
    """Recorder of metrics.csv, which has one row per epoch and one column per metric.

    Metrics of single layers (split "weights") are left out.
    """

    def start(self, run: RecordedRun) -> None:
        """Read the rows of the epochs that are done, and drop later ones.

        Raises UsageError if the existing file is damaged.
        """
        self._path: Path = RunPaths(run.path).metrics
        self._rows = earlier_rows(self._path, run.epoch + 1) if run.epoch else []

    def metrics(self, epoch: int, metrics: MetricsBySplit) -> None:
        """Add the metrics of an epoch to metrics.csv as a row.

        The file is replaced atomically. The first row determines the columns.
        """
        row: TableRow = {"epoch": str(epoch)}
        for split, values in metrics.items():
            if split != "weights":
                row |= {f"{split}/{name}": f"{value:.9g}" for name, value in values.items()}
        self._rows.append(row)
        write_text(self._path, as_csv(self._rows, columns=list(self._rows[0])))
