"""TensorBoard's event files: writing them, and truncating them when a run is resumed.

An event file only grows. After truncation to the length that the file had when a checkpoint was saved, it contains
exactly the events of an uninterrupted run. TensorBoard's own `purge_step` is not enough, because it keeps events with
negative steps.
"""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.console import warn
from utils.records.epoch_tables import Table
from utils.records.recorder import MetricsBySplit, RecordedRun, Recorder
from utils.run_paths import RunPaths
from utils.text import shown

if TYPE_CHECKING:
    from torch import Tensor


class TensorBoard(Recorder):
    """Recorder of TensorBoard event files, with metrics, curves, histograms and hyperparameters.

    sizes: bytes per event file that the checkpoint has recorded from which the run is resumed, {} for a new run. With
        None, as in older checkpoints, TensorBoard ignores the events of repeated epochs.

    tensorboard is imported for the first record. The import takes half a second, by which the first batch of a run
    would otherwise be delayed.
    """

    def __init__(self, sizes: Mapping[str, int] | None) -> None:
        self._sizes = sizes
        self._opened: Any = None  # torch's annotations of SummaryWriter are incomplete

    def start(self, run: RecordedRun) -> None:
        """Truncate the event files to the epochs that are done."""
        self._directory = RunPaths(run.path).logs
        self._purge = run.epoch + 1 if self._sizes is None else None
        truncate_events(self._directory, self._sizes)
        kinds = bool | int | float | str  # the types that TensorBoard accepts
        self._hparams = {key: value if isinstance(value, kinds) else str(value) for key, value in run.hparams.items()}
        self._epoch = run.epoch
        self._held_out_prefix = f"{run.held_out}/"

    @property
    def _writer(self) -> Any:
        """SummaryWriter, which is created on first use."""
        if self._opened is None:
            from torch.utils.tensorboard import SummaryWriter

            self._opened = SummaryWriter(str(self._directory), purge_step=self._purge)
        return self._opened

    def metrics(self, epoch: int, metrics: MetricsBySplit) -> None:
        """Write the metrics of an epoch to TensorBoard as scalars.

        The scalar of a metric is <split>/<name>, its step `epoch`.
        """
        for split, values in metrics.items():
            for name, value in values.items():
                self._writer.add_scalar(f"{split}/{name}", value, epoch)
        self._epoch = epoch

    def histograms(self, epoch: int, tensors: Iterable[tuple[str, "Tensor"]]) -> None:
        """Write one TensorBoard histogram per tensor at step `epoch`.

        `tensors` has pairs of (name, tensor).
        """
        for name, tensor in tensors:
            self._writer.add_histogram(name, tensor.float(), epoch)

    def table(self, name: str, epoch: int, table: Table) -> None:
        """Write the points of a table that is a curve to TensorBoard as scalars.

        The tag is <name>/epoch_<epoch>. A step must be an integer, so the step of a point is 100 x, rounded.
        """
        for row in table.rows if table.x else []:
            self._writer.add_scalar(f"{name}/epoch_{epoch}", float(row[table.y]), round(100 * float(row[table.x])))

    def flush(self) -> None:
        """Write all buffered events to the event files on disk, which then have their final sizes."""
        if self._opened is not None:
            self._opened.flush()

    def close(self, final: Mapping[str, float]) -> None:
        """Write the final metrics to TensorBoard's hparams page, and close the event files.

        The hparams page does not show a run that did not finish.
        """
        if self._opened is None and not final:
            return
        from torch.utils.tensorboard import summary

        if final:
            # SummaryWriter.add_hparams would open a second run directory, and TensorBoard would show the run twice.
            make_hparams: Any = summary.hparams  # without annotations in torch
            for event in make_hparams(self._hparams, dict.fromkeys(final, 0.0)):
                self._writer.file_writer.add_summary(event)
            for name, value in final.items():
                if not name.startswith(self._held_out_prefix):  # these were recorded with the last epoch
                    self._writer.add_scalar(name, value, self._epoch + 1)
        self._writer.close()


def event_sizes(directory: Path) -> dict[str, int]:
    """Return the size in bytes of each event file in `directory`, by file name."""
    return {path.name: path.stat().st_size for path in sorted(directory.glob("*tfevents*"))}


def check_event_sizes(sizes: Mapping[str, int]) -> None:
    """Raise ValueError unless `sizes` maps names of event files to numbers of bytes.

    `sizes` was read from a checkpoint.
    """
    for name, size in sizes.items():
        if not isinstance(name, str) or type(size) is not int or size < 0:
            raise ValueError(f"{shown(name)} is {shown(size)}, a number of bytes expected")


def truncate_events(directory: Path, sizes: Mapping[str, int] | None) -> None:
    """Truncate the event files of a run to the sizes that a checkpoint has recorded.

    Event files that are not in `sizes` are removed.

    sizes: bytes per file name, as a checkpoint has recorded them. With None, as in older checkpoints, nothing is done.
    Prints a warning for a file that is missing or shorter.
    """
    if sizes is None:
        return
    current = event_sizes(directory)
    for name in current.keys() - sizes.keys():
        (directory / name).unlink()
    for name, size in sizes.items():
        if current.get(name, 0) > size:
            os.truncate(directory / name, size)
        elif current.get(name, 0) < size:
            loss = f"has {current[name]:,} of its {size:,} bytes" if name in current else "is missing"
            warn(f"{directory / name} {loss}: its curves are incomplete; metrics.csv has the metrics of every epoch")
