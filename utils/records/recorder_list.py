"""The recorders of a run, which are told of each event in one place."""

from collections.abc import Callable, Iterable, Mapping

from torch import Tensor

from utils import plugin_files
from utils.console import warn
from utils.errors import UsageError
from utils.random_state import preserved_generators
from utils.records.epoch_tables import Table
from utils.records.recorder import MetricsBySplit, RecordedRun, Recorder
from utils.records.registry import RECORDERS


class RecorderList:
    """Recorders of the files in the run directory, and recorders that the user has chosen.

    files: recorders of the program. Their errors end the run.
    chosen: keys of RECORDERS. After its first error, such a recorder is called no more, and a warning is printed.

    The random generators have the same states before and after every call of a recorder.
    """

    def __init__(self, files: Iterable[Recorder], chosen: Iterable[str] = ()) -> None:
        self._files, self._chosen = [*files], dict.fromkeys(chosen)
        self._started: list[tuple[str, Recorder]] = []  # the name is "" for a recorder of the program

    def start(self, run: RecordedRun) -> None:
        """Start all recorders. Raises UsageError if one of the chosen recorders cannot start."""
        for recorder in self._files:
            recorder.start(run)
            self._started.append(("", recorder))
        for name in self._chosen:
            try:
                with preserved_generators():
                    chosen: Recorder = RECORDERS[name].load()()
                    chosen.start(run)
            except Exception as error:
                self.close({})
                raise UsageError(f"tracker: {name} cannot start: {_reason(error)}") from error
            self._started.append((name, chosen))

    def table(self, name: str, epoch: int, table: Table) -> None:
        """Tell the recorders a table of the training method."""
        self._tell(lambda recorder: recorder.table(name, epoch, table))

    def metrics(self, epoch: int, metrics: MetricsBySplit) -> None:
        """Tell the recorders the metrics of an epoch. Each one gets a copy."""
        self._tell(lambda recorder: recorder.metrics(epoch, {split: dict(row) for split, row in metrics.items()}))

    def histograms(self, epoch: int, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Tell the recorders the tensors whose histograms they may record. Each one gets copies."""
        pairs = [*tensors]
        self._tell(lambda recorder: recorder.histograms(epoch, ((name, t.detach().clone()) for name, t in pairs)))

    def flush(self) -> None:
        """Let the recorders write or send what they have buffered."""
        self._tell(lambda recorder: recorder.flush())

    def close(self, final: Mapping[str, float]) -> None:
        """Tell the recorders the final metrics, and end the recording."""
        self._tell(lambda recorder: recorder.close(dict(final)))

    def _tell(self, hook: Callable[[Recorder], None]) -> None:
        for name, recorder in [*self._started]:
            try:
                with preserved_generators():
                    hook(recorder)
            except Exception as error:
                if not name:
                    raise
                self._started.remove((name, recorder))
                warn(f"tracker: {name} records no longer: {_reason(error)}; the training continues without it")


def _reason(error: Exception) -> str:
    """Return one line of text that explains an error of a recorder."""
    if plugin_files.place(error):
        return plugin_files.one_line(error).removesuffix(f"; {plugin_files.DEBUG_ADVICE}")
    reason = str(error).strip().partition("\n")[0]
    return reason if reason and isinstance(error, UsageError) else f"{type(error).__name__}: {reason}"
