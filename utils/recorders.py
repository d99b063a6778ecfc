"""Where a run's measures go: metrics.csv and TensorBoard. A recorder only listens: it never changes training."""

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.files import write_text
from utils.plots import Line
from utils.tables import Row, earlier_rows

if TYPE_CHECKING:
    from torch import Tensor

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


class TensorBoard:
    """Event files in `directory`: scalars by epoch, the run's hparams with its final measures, histograms when asked.

    `epoch` is the last one recorded before, `held_out` the split that has curves ("test" or "val"); from step `purge`
    on, where one is given, a reader drops what earlier files hold. Imports tensorboard when it is made, not before:
    half a second that a run's first batch need not wait for.
    """

    def __init__(
        self, directory: Path, epoch: int, hparams: Mapping[str, Any], held_out: str, purge: int | None = None
    ) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(directory), purge_step=purge)
        self._hparams = {key: _hparam(value) for key, value in hparams.items()}
        self._epoch = epoch
        self._curve = f"{held_out}/"

    def record(self, epoch: int, measures: Measures) -> None:
        for split, values in measures.items():
            for name, value in values.items():
                self._writer.add_scalar(f"{split}/{name}", value, epoch)
        self._epoch = epoch

    def histograms(self, epoch: int, tensors: Iterable[tuple[str, "Tensor"]]) -> None:
        for name, tensor in tensors:
            self._writer.add_histogram(name, tensor.detach().float(), epoch)

    def curve(self, name: str, line: Line) -> None:
        """A line of y over x under a tag of its own, with step 100 x."""
        for x, y in zip(line.xs, line.ys, strict=True):
            self._writer.add_scalar(f"{name}/{line.label.replace(' ', '_')}", y, round(100 * x))

    def flush(self) -> None:
        """Return when the files hold all that was recorded."""
        self._writer.flush()

    def close(self, final: Mapping[str, float]) -> None:
        """Write the hparams and their final measures (`final` empty: the run did not end) and close the files."""
        from torch.utils.tensorboard.summary import hparams

        if final:
            # SummaryWriter.add_hparams would open a second run directory; the page would show the run twice.
            for summary in hparams(self._hparams, dict.fromkeys(final, 0.0)):
                self._writer._get_file_writer().add_summary(summary)
            for name, value in final.items():
                if not name.startswith(self._curve):  # else that curve ends in this value already
                    self._writer.add_scalar(name, value, self._epoch + 1)
        self._writer.close()


def _hparam(value: object) -> bool | int | float | str:
    return value if isinstance(value, bool | int | float | str) else str(value)
