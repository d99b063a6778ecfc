"""Callbacks of the training loop: stop on a signal, and record checkpoints, metrics, tables and status of the run."""

import time
from collections.abc import Mapping
from typing import Any

from args import Options
from trainers import summary
from trainers.loop import TrainingSetup
from trainers.metrics import Metrics
from trainers.training_state import TrainingState
from utils.console import say
from utils.random_state import rng_state
from utils.records import checkpoints
from utils.records.epoch_tables import Table, record_table
from utils.records.metrics_log import MetricsCsv
from utils.records.run import LockedRun
from utils.records.tensorboard import TensorBoard, event_sizes, truncate_events
from utils.stop_signal import StopRequest


class NullCallbacks:
    """Callbacks that record nothing and never stop the loop."""

    def stop_asked(self) -> bool:
        return False

    def save_due(self) -> bool:
        return False

    def save(self, state: TrainingState, *, is_best: bool) -> None: ...

    def tables(self, epoch: int, tables: dict[str, Table]) -> None: ...

    def epoch_done(
        self, state: TrainingState, train: Metrics, held_out: Metrics, rate: float, *, is_best: bool
    ) -> None: ...

    def stopped(self, state: TrainingState) -> None: ...


class SignalCallbacks(NullCallbacks):
    """Callbacks that stop the loop after a signal and record nothing: those of every rank but 0."""

    def __init__(self) -> None:
        self._stop = StopRequest().listen()

    def stop_asked(self) -> bool:
        """Return True after a signal."""
        return bool(self._stop)

    @property
    def stop_reason(self) -> str | None:
        """Name of the signal that requested the stop, or None."""
        return self._stop.reason

    def save_initial(self, state: TrainingState) -> None:
        """Called before the first epoch of a new run."""

    def close(self, final: dict[str, float]) -> None:
        """Called at the end, however training ends. `final` are the final metrics, empty if the run is unfinished."""


class RunRecorder(SignalCallbacks):
    """Callbacks of rank 0: write checkpoints, metrics, tables and status into the directory of the run."""

    def __init__(
        self,
        run: LockedRun,
        options: Options,
        parts: TrainingSetup,
        state: TrainingState,
        checkpoint: Mapping[str, Any] | None,
        description: Mapping[str, Any],
    ) -> None:
        """Drop what was recorded after `checkpoint`, from which the run is resumed.

        description: entries that every checkpoint gets besides the state of training.
        """
        super().__init__()
        self._description = description
        self._run, self._options, self._parts = run, options, parts
        self._saved = time.monotonic()
        self._held_out = "val" if options.data.val_split else "test"
        self._trained = (state.train_images, state.train_seconds)
        self._metrics = MetricsCsv(run.metrics, 0 if checkpoint is None else state.epoch)
        self._epoch = state.epoch
        events = {} if checkpoint is None else checkpoint.get("events")
        self._purge = events is None  # checkpoints of earlier versions lack the sizes of the event files
        truncate_events(run.logs, events)
        self._board: TensorBoard | None = None

    def save_due(self) -> bool:
        """Return True if the last checkpoint is --save-minutes old."""
        minutes = self._options.run.save_minutes
        return minutes > 0 and time.monotonic() - self._saved >= 60 * minutes

    def tables(self, epoch: int, tables: dict[str, Table]) -> None:
        """Write each table to its CSV file and, if it is a curve, to TensorBoard."""
        self._run.check_held()
        for name, table in tables.items():
            for line in record_table(self._run.path, name, epoch, table)[-1:]:  # earlier epochs are recorded already
                self._tensorboard().curve(name, line)

    def epoch_done(
        self, state: TrainingState, train: Metrics, held_out: Metrics, rate: float, *, is_best: bool
    ) -> None:
        """Record the metrics of an epoch, then save a checkpoint, then print a line.

        The order matters: metrics without their checkpoint, after a kill between the two, are dropped on resumption.
        """
        self._run.check_held()
        images, seconds = self._trained
        speed = (state.train_images - images) / max(state.train_seconds - seconds, 1e-9)
        self._trained = (state.train_images, state.train_seconds)
        split = self._held_out
        speed_metrics = {"lr": rate, "images_per_second": speed, "elapsed_seconds": state.seconds}
        metrics = {
            "train": train.as_dict() | speed_metrics,
            split: held_out.as_dict() | {"best_acc@1": state.best["acc@1"]},
        }
        for of, more in self._parts.method.metrics(self._parts.model).items():
            metrics[of] = metrics.get(of, {}) | more
        self._metrics.record(state.epoch, metrics)
        board = self._tensorboard()
        board.record(state.epoch, metrics)
        if self._options.run.histograms:
            board.histograms(state.epoch, [*self._histogram_tensors(), *self._parts.method.histograms()])
        self.save(state, is_best=is_best)
        self._run.set_status("running", epoch=state.epoch, epochs=self._options.optim.epochs)
        best, kept = state.best, ""
        if self._parts.method.density_note():  # else the opening line has the constant density
            kept = f"  kept {100 * metrics['train']['kept']:.2f}%"
        if self._parts.method.resets_best(state.epoch - 1):
            say("from this epoch on the network is the requested one: the best epoch before does not count")
        say(
            f"epoch {state.epoch}/{self._options.optim.epochs}  train loss {train.loss:.4f} acc@1 {train.top1:.2f}%"
            f"  {split} loss {held_out.loss:.4f} acc@1 {held_out.top1:.2f}%"
            f" (best {best['acc@1']:.2f}% in epoch {best['epoch']})  lr {rate:.4g}{kept}  {speed:,.0f} images/s"
        )

    def stopped(self, state: TrainingState) -> None:
        """Save a checkpoint within or after an epoch, and set the status."""
        self.save(state, is_best=False)
        self._run.set_status("stopped", epoch=state.epoch, step=state.step, epochs=self._options.optim.epochs)

    def save(self, state: TrainingState, *, is_best: bool) -> None:
        """Write last.pt, and before it best.pt and the checkpoint of --save-every if they are due."""
        run, every = self._run, self._options.run.save_every
        run.check_held()
        paths = [run.last]
        if is_best:
            paths.insert(0, run.best)
        if every > 0 and state.step == 0 and state.epoch % every == 0:
            paths.insert(0, run.epoch_checkpoint(state.epoch))
        checkpoints.save(self._checkpoint(state), *paths)
        self._saved = time.monotonic()

    def save_initial(self, state: TrainingState) -> None:
        """Write initial.pt: the weights and scores before training."""
        checkpoints.save(self._checkpoint(state), self._run.initial)

    def _checkpoint(self, state: TrainingState) -> dict[str, Any]:
        parts = self._parts
        return {
            "epoch": state.epoch,
            "step": state.step,
            "state": state.state_dict(),
            "model": parts.model.state_dict(),
            "optimizer": parts.optimizer.state_dict(),
            "method": parts.method.state_dict(),
            "rng": rng_state(),
            "options": self._options.flat(),
            "events": self._event_sizes(),
            **self._description,
        }

    def _event_sizes(self) -> dict[str, int]:
        """Return the sizes of the event files with all events up to this checkpoint."""
        if self._board is not None:
            self._board.flush()
        return event_sizes(self._run.logs)

    def close(self, final: dict[str, float]) -> None:
        """Close the event files; `final` are the metrics beside the hparams, empty if the run is unfinished."""
        if self._board is not None or final:
            self._tensorboard().close(final)

    def _tensorboard(self) -> TensorBoard:
        """Return the writer, made at the first event: the import of tensorboard would delay the first batch."""
        if self._board is None:
            purge = self._epoch + 1 if self._purge else None
            hparams = summary.hparams(self._options)
            self._board = TensorBoard(self._run.logs, self._epoch, hparams, self._held_out, purge)
        return self._board

    def _histogram_tensors(self) -> list[tuple[str, Any]]:
        """Return (name, tensor) of every parameter and of its gradient in the last batch."""
        named = [(key.replace(".constraint.", "."), p) for key, p in self._parts.model.named_parameters()]
        return [*named, *((f"{name}.grad", p.grad) for name, p in named if p.grad is not None)]
