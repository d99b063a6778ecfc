"""Where a run's measures go: metrics.csv and TensorBoard. A recorder only listens: it never changes training."""

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from args import UsageError
from utils.files import write_text
from utils.plots import Line

if TYPE_CHECKING:
    from torch import Tensor

Measures = Mapping[str, Mapping[str, float]]  # split ("train", "test", "weights", …) -> name -> value


class MetricsCsv:
    """metrics.csv: one row an epoch, one column a measure; what is said of single layers ("weights") stays out of it.

    On resumption the rows after `epochs_done` are dropped, so that no epoch has two.
    """

    def __init__(self, path: Path, epochs_done: int) -> None:
        self._path = path
        self._rows: list[dict[str, str]] = []
        if path.exists() and epochs_done:
            with path.open(newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
            try:
                self._rows = [row for row in rows if int(row["epoch"]) <= epochs_done]
            except (KeyError, TypeError, ValueError):
                raise UsageError(
                    f"{path} is damaged: it has no column of whole epochs; move it away to go on"
                ) from None

    def record(self, epoch: int, measures: Measures) -> None:
        row = {"epoch": str(epoch)}
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

    `held_out` is the split that has curves ("test" or "val"). Imports tensorboard when it is made, not before: half a
    second that a run's first batch need not wait for.
    """

    def __init__(self, directory: Path, epochs_done: int, hparams: Mapping[str, Any], held_out: str) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # purge_step: a reader drops the points after the checkpoint that an interrupted process had still written.
        self._writer = SummaryWriter(str(directory), purge_step=epochs_done + 1)
        self._hparams = {key: _hparam(value) for key, value in hparams.items()}
        self._epoch = epochs_done
        self._curves: set[str] = set()
        self._curve = f"{held_out}/"

    def record(self, epoch: int, measures: Measures) -> None:
        for split, values in measures.items():
            for name, value in values.items():
                self._writer.add_scalar(f"{split}/{name}", value, epoch)
        self._epoch = epoch
        self._writer.flush()

    def histograms(self, epoch: int, tensors: Iterable[tuple[str, "Tensor"]]) -> None:
        for name, tensor in tensors:
            self._writer.add_histogram(name, tensor.detach().float(), epoch)

    def curves(self, name: str, lines: Iterable[Line]) -> None:
        """Lines of y over x, each under a tag of its own, with step 100 x; a line that has been written stays.

        A resumed run writes those of its past again: its purge_step is taken for a step of theirs.
        """
        for line in lines:
            tag = f"{name}/{line.label.replace(' ', '_')}"
            if tag not in self._curves:
                self._curves.add(tag)
                for x, y in zip(line.xs, line.ys, strict=True):
                    self._writer.add_scalar(tag, y, round(100 * x))

    def close(self, final: Mapping[str, float]) -> None:
        """Write the hparams and their final measures (`final` empty: the run did not end) and close the files."""
        from torch.utils.tensorboard.summary import hparams

        if final:
            # SummaryWriter.add_hparams would open a second run directory; the page would show the run twice.
            for summary in hparams(self._hparams, dict.fromkeys(final, 0.0)):
                self._writer._get_file_writer().add_summary(summary)
            for name, value in final.items():
                if not name.startswith(self._curve):  # else that curve ends in this value already
                    # One epoch on: there purge_step reaches it, should the process be killed before the run is done.
                    self._writer.add_scalar(name, value, self._epoch + 1)
        self._writer.close()


def _hparam(value: object) -> bool | int | float | str:
    return value if isinstance(value, bool | int | float | str) else str(value)
