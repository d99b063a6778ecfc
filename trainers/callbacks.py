"""Callbacks of the training loop that stop on a signal and record checkpoints, metrics, tables and the run status."""

import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from args import Options
from trainers import summary
from trainers.loop import Callbacks, TrainingSetup
from trainers.metrics import Metrics
from trainers.registry import TRAINERS
from trainers.training_state import TrainingState
from utils.console import say
from utils.random_state import rng_state
from utils.records import checkpoints
from utils.records.epoch_tables import Table
from utils.records.metrics_log import MetricsCsv, TableFiles
from utils.records.recorder import RecordedRun
from utils.records.recorder_list import RecorderList
from utils.records.run import LockedRun, place_of
from utils.records.tensorboard import TensorBoard, event_sizes
from utils.stop_signal import StopRequest


class SignalCallbacks(Callbacks):
    """Callbacks that stop the loop after a signal and record nothing. Every rank except rank 0 uses them."""

    def __init__(self) -> None:
        self._stop = StopRequest().listen()

    def stop_asked(self) -> bool:
        """Return True once this process has received a signal that asks it to stop, such as SIGTERM."""
        return bool(self._stop)

    @property
    def stop_reason(self) -> str | None:
        """Name of the signal that requested the stop, or None."""
        return self._stop.reason

    def start(self) -> None:
        """Called before training. RunRecorder overrides this method to start the recorders."""

    def save_initial(self, state: TrainingState) -> None:
        """Called before the first epoch of a new run. RunRecorder overrides this method to write initial.pt."""

    def close(self, final: dict[str, float]) -> None:
        """Called at the end of training. RunRecorder overrides this method to write the `final` metrics."""


class RunRecorder(SignalCallbacks):
    """Callbacks of rank 0, which write checkpoints, metrics, tables and the status into the run directory."""

    def __init__(
        self,
        run: LockedRun,
        options: Options,
        setup: TrainingSetup,
        state: TrainingState,
        checkpoint: Mapping[str, Any] | None,
        description: Mapping[str, Any],
    ) -> None:
        """Choose the recorders of a run, which `start` starts.

        When resuming, they drop the records that are newer than `checkpoint`. `description` holds entries to add to
        every checkpoint.
        """
        super().__init__()
        self._description = description
        self._run, self._options, self._setup = run, options, setup
        self._saved = time.monotonic()
        self._held_out = "val" if options.data.val_split else "test"
        self._trained = (state.train_images, state.train_seconds)
        # Checkpoints of earlier versions lack the sizes of the event files.
        events = {} if checkpoint is None else checkpoint.get("events")
        chosen = () if options.run.dry_run else options.run.tracker
        self._recorders = RecorderList([TableFiles(), MetricsCsv(), TensorBoard(events)], chosen)
        root, project, name = place_of(run.path, options)
        hparams = summary.hparams(options)
        self._recorded = RecordedRun(run.path, root, project, name, run.id, hparams, self._held_out, state.epoch)

    def start(self) -> None:
        """Start the recorders. Raises UsageError if one of them cannot start."""
        self._recorders.start(self._recorded)

    def save_due(self) -> bool:
        """Return True if the last checkpoint is at least --save-minutes old. With --save-minutes 0, return False."""
        minutes = self._options.run.save_minutes
        return minutes > 0 and time.monotonic() - self._saved >= 60 * minutes

    def tables(self, epoch: int, tables: dict[str, Table]) -> None:
        """Record the tables of an epoch. `tables` maps file name to table."""
        self._run.check_held()
        assert tables.keys() <= {*TRAINERS[self._options.trainer].tables}, "a table is missing in the trainer's row"
        for name, table in tables.items():
            self._recorders.table(name, epoch, table)

    def epoch_done(
        self, state: TrainingState, train: Metrics, held_out: Metrics, learning_rate: float, *, is_best: bool
    ) -> None:
        """Record the metrics of a finished epoch, save a checkpoint and print a line.

        The order matters. If the process is killed between the first two steps, resumption deletes the metrics of the
        epoch, for which there is no checkpoint.
        """
        self._run.check_held()
        images, seconds = self._trained
        speed = (state.train_images - images) / max(state.train_seconds - seconds, 1e-9)
        self._trained = (state.train_images, state.train_seconds)
        split, best, epochs = self._held_out, state.best, self._options.optim.epochs
        speeds = {"lr": learning_rate, "images_per_second": speed, "elapsed_seconds": state.seconds}
        metrics = {"train": train.as_dict() | speeds, split: held_out.as_dict() | {"best_acc@1": best["acc@1"]}}
        method = self._setup.method
        for group, values in method.metrics(self._setup.model).items():
            metrics[group] = metrics.get(group, {}) | values
        self._recorders.metrics(state.epoch, metrics)
        if self._options.run.histograms:
            self._recorders.histograms(state.epoch, [*self._histogram_tensors(), *method.histograms()])
        self.save(state, is_best=is_best)
        self._run.set_status("running", epoch=state.epoch, epochs=epochs)
        # A constant density is printed once, before the first epoch.
        kept = f"  kept {100 * metrics['train']['kept']:.2f}%" if method.density_note() else ""
        if method.resets_best(state.epoch - 1):
            say("the density has its final value from this epoch on: earlier epochs do not count as the best")
        say(
            f"epoch {state.epoch}/{epochs}  train loss {train.loss:.4f} acc@1 {train.top1:.2f}%"
            f"  {split} loss {held_out.loss:.4f} acc@1 {held_out.top1:.2f}%"
            f" (best {best['acc@1']:.2f}% in epoch {best['epoch']})"
            f"  lr {learning_rate:.4g}{kept}  {speed:,.0f} images/s"
        )

    def stopped(self, state: TrainingState) -> None:
        """Save a checkpoint and set the status of the run to "stopped"."""
        self.save(state, is_best=False)
        self._run.set_status("stopped", epoch=state.epoch, step=state.step, epochs=self._options.optim.epochs)

    def save(self, state: TrainingState, *, is_best: bool) -> None:
        """Write a checkpoint to last.pt and to the other files that are due.

        The other files are best.pt and the numbered file of --save-every. last.pt is written last, so that it never
        records a best epoch for which best.pt is not yet written.
        """
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
        """Write initial.pt, the checkpoint before training."""
        checkpoints.save(self._checkpoint(state), self._run.initial)

    def _checkpoint(self, state: TrainingState) -> dict[str, Any]:
        """Return the entries of a checkpoint, such as weights, optimizer state and options."""
        setup = self._setup
        self._recorders.flush()  # so that the event files have their final sizes
        return {
            "epoch": state.epoch,
            "step": state.step,
            "state": asdict(state),
            "model": setup.model.state_dict(),
            "optimizer": setup.optimizer.state_dict(),
            "method": setup.method.state_dict(),
            "rng": rng_state(),
            "options": self._options.flat(),
            "events": event_sizes(self._run.logs),
            **self._description,
        }

    def close(self, final: dict[str, float]) -> None:
        """Tell the recorders the final metrics, and end the recording.

        `final` is empty if the run did not finish.
        """
        self._recorders.close(final)

    def _histogram_tensors(self) -> list[tuple[str, Any]]:
        """Return (name, tensor) pairs of all parameters and of their gradients in the last batch."""
        named = [(key.replace(".constraint.", "."), p) for key, p in self._setup.model.named_parameters()]
        return [*named, *((f"{name}.grad", p.grad) for name, p in named if p.grad is not None)]
