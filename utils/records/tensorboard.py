"""TensorBoard's event files: what a run records in them, and how they are cut back on resumption.

An event file only grows. Cut to the length that it had when a checkpoint was saved it holds what an unbroken run had
written, whatever its tags and steps are: TensorBoard itself drops only steps from a given one on, and no negative ones.
"""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.console import warn
from utils.records.metrics_log import Measures
from utils.records.plots import Line
from utils.text import shown

if TYPE_CHECKING:
    from torch import Tensor


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


def event_sizes(directory: Path) -> dict[str, int]:
    """The bytes of each event file."""
    return {path.name: path.stat().st_size for path in sorted(directory.glob("*tfevents*"))}


def check_sizes(sizes: Mapping[str, int]) -> None:
    """Raises ValueError where these are no sizes of files by name."""
    for name, size in sizes.items():
        if not isinstance(name, str) or type(size) is not int or size < 0:
            raise ValueError(f"{shown(name)} is {shown(size)}, a number of bytes expected")


def keep_events(directory: Path, sizes: Mapping[str, int] | None) -> None:
    """Cut each event file to the size it had when a checkpoint was saved, and remove those that came later: TensorBoard
    then shows what an unbroken run had shown; what a file has lost meanwhile is a warning. Does nothing where the sizes
    are unknown."""
    if sizes is None:
        return
    found = event_sizes(directory)
    for name in found.keys() - sizes.keys():
        (directory / name).unlink()
    for name, size in sizes.items():
        if found.get(name, 0) > size:
            os.truncate(directory / name, size)
        elif found.get(name, 0) < size:
            now = f"has {found[name]:,} of its {size:,} bytes" if name in found else "is gone"
            warn(f"{directory / name} {now}: its curves are not whole; metrics.csv has the measures of every epoch")
