"""Base class of all recorders. A recorder stores or sends what a run records, and never changes the training.

The run calls the hooks in this order:

    start
    every epoch:
        table, once per table of the training method
        metrics
        histograms                                             with --histograms
        flush
    flush                                                      before a checkpoint within an epoch
    close

To write a recorder, subclass `Recorder`, override the hooks it needs, and add its row to `utils/records/registry.py`. A
plug-in registers its recorder instead.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.records.epoch_tables import Table

if TYPE_CHECKING:
    from torch import Tensor

MetricsBySplit = Mapping[str, Mapping[str, float]]  # split ("train", "test", "weights", …) -> name -> value


@dataclass(frozen=True)
class RecordedRun:
    """Description of a run for its recorders.

    path: directory of the run.
    root: folder of all run directories.
    project: name of the YAML file, without folder and suffix.
    name: path of the run directory below <root>/<project>, such as "prune-rate=0.5/quickstart".
    id: text that identifies the run. It stays the same when the run is resumed.
    hparams: options by name, in plain types: a few main ones, and all others that affect training and differ from their
        default.
    held_out: the split that is evaluated after every epoch, "test" or "val".
    epoch: number of epochs that are done. Records of later epochs, which a killed process may have left, come again.
    """

    path: Path
    root: Path
    project: str
    name: str
    id: str
    hparams: Mapping[str, Any]
    held_out: str
    epoch: int


class Recorder:
    """Recorder that records nothing, and base class of all recorders.

    A subclass overrides the hooks that it needs. Its constructor takes no arguments. With several processes only rank 0
    has recorders. The arguments of the hooks are copies or must not be changed.

    If `start` raises an exception, the run ends before training. If another hook of a recorder that --tracker chooses
    raises one, the run warns, goes on and calls this recorder no more.
    """

    def start(self, run: RecordedRun) -> None:
        """Prepare the recording of a run, before training.

        A resumed run repeats the epochs after `run.epoch` with the same results. Records of them must be dropped here,
        or skipped when they come again. Raises UsageError if the recorder cannot be used.
        """

    def table(self, name: str, epoch: int, table: Table) -> None:
        """Record a table of the training method. `epoch` is counted from 1."""

    def metrics(self, epoch: int, metrics: MetricsBySplit) -> None:
        """Record the metrics of an epoch.

        `epoch` is counted from 1. `metrics` maps split to values by name, for example metrics["test"]["acc@1"] in
        percent. The split "weights" has values of single layers.
        """

    def histograms(self, epoch: int, tensors: Iterable[tuple[str, "Tensor"]]) -> None:
        """Record the distribution of the values of tensors.

        `tensors` yields pairs of (name, tensor): parameters, gradients of the last batch, and values that the training
        method has collected. Each tensor is a copy, which is made when it is yielded.
        """

    def flush(self) -> None:
        """Write or send what is buffered.

        Called before every checkpoint. After a checkpoint of an epoch, a resumed run does not repeat this epoch.
        """

    def close(self, final: Mapping[str, float]) -> None:
        """Record the final metrics, and end the recording.

        `final` has the test accuracies in percent, "test/acc@1" of the last epoch and "test/best_acc@1" of the best. It
        is empty if the run did not finish.
        """
