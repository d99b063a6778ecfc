"""The record of a run while it trains: checkpoints, measures, status, a line an epoch."""

import time
from collections.abc import Mapping
from typing import Any

from args import Options
from trainers import summary
from trainers.loop import Parts, Score, State
from utils.console import say
from utils.distributed.runtime import rng_state
from utils.records import checkpoints
from utils.records.epoch_tables import Table, record_table
from utils.records.metrics_log import MetricsCsv
from utils.records.run import Run
from utils.records.tensorboard import TensorBoard, event_sizes, keep_events
from utils.stop_signal import StopRequest


class NullCallbacks:
    """Callbacks that record nothing and never stop the loop."""

    def stop_asked(self) -> bool:
        return False

    def save_due(self) -> bool:
        return False

    def save(self, state: State, *, is_best: bool) -> None: ...

    def tables(self, epoch: int, tables: dict[str, Table]) -> None: ...

    def epoch_done(self, state: State, train: Score, held_out: Score, rate: float, *, is_best: bool) -> None: ...

    def stopped(self, state: State) -> None: ...


class SignalCallbacks:
    """Hears the loop's events and asks it to stop when told so: all that any process but the first has to do."""

    def __init__(self) -> None:
        self._stop = StopRequest().listen()

    def stop_asked(self) -> bool:
        return bool(self._stop)

    @property
    def stop_reason(self) -> str | None:
        """The signal that asked to stop, or None."""
        return self._stop.reason

    def save_due(self) -> bool:
        return False

    def save(self, state: State, *, is_best: bool) -> None: ...

    def save_initial(self, state: State) -> None: ...

    def tables(self, epoch: int, tables: dict[str, Table]) -> None: ...

    def epoch_done(self, state: State, train: Score, held_out: Score, rate: float, *, is_best: bool) -> None: ...

    def stopped(self, state: State) -> None: ...

    def close(self, final: dict[str, float]) -> None: ...


class RunRecorder(SignalCallbacks):
    """Writes what it hears into the run's directory."""

    def __init__(
        self, run: Run, options: Options, parts: Parts, state: State, snapshot: Mapping[str, Any] | None
    ) -> None:
        """`snapshot` is the checkpoint that the run goes on from: what was recorded after it is dropped here."""
        super().__init__()
        self._run, self._options, self._parts = run, options, parts
        self._saved = time.monotonic()
        self._held_out = "val" if options.data.val_split else "test"
        self._trained = (state.train_images, state.train_seconds)
        self._metrics = MetricsCsv(run.path / "metrics.csv", 0 if snapshot is None else state.epoch)
        self._epoch = state.epoch
        events = {} if snapshot is None else snapshot.get("events")
        self._purge = events is None  # an older checkpoint does not say how long the event files were
        keep_events(run.path / "logs", events)
        self._board: TensorBoard | None = None

    def save_due(self) -> bool:
        """Whether the last checkpoint is --save-minutes old."""
        minutes = self._options.run.save_minutes
        return minutes > 0 and time.monotonic() - self._saved >= 60 * minutes

    def tables(self, epoch: int, tables: dict[str, Table]) -> None:
        """Into files of the run's directory, and as curves."""
        self._run.check_held()
        for name, table in tables.items():
            for line in record_table(self._run.path, name, epoch, table)[-1:]:  # those of earlier epochs are there
                self._tensorboard().curve(name, line)

    def epoch_done(self, state: State, train: Score, held_out: Score, rate: float, *, is_best: bool) -> None:
        """Measures first, then the checkpoint: what a kill between them repeats is dropped on resumption."""
        self._run.check_held()
        images, seconds = self._trained
        speed = (state.train_images - images) / max(state.train_seconds - seconds, 1e-9)
        self._trained = (state.train_images, state.train_seconds)
        split = self._held_out
        clock = {"lr": rate, "images_per_second": speed, "elapsed_seconds": state.seconds}
        measures = {
            "train": train.named() | clock,
            split: held_out.named() | {"best_acc@1": state.best["acc@1"]},
        }
        for of, more in self._parts.method.measures(self._parts.model).items():
            measures[of] = measures.get(of, {}) | more
        self._metrics.record(state.epoch, measures)
        board = self._tensorboard()
        board.record(state.epoch, measures)
        if self._options.run.histograms:
            board.histograms(state.epoch, [*self._histogram_tensors(), *self._parts.method.histograms()])
        self.save(state, is_best=is_best)
        self._run.set_status("running", epoch=state.epoch, epochs=self._options.optim.epochs)
        best, kept = state.best, ""
        if summary.coming(self._options):  # else it is what the opening line says
            kept = f"  kept {100 * measures['train']['kept']:.2f}%"
        if self._parts.method.resets_best(state.epoch - 1):
            say("from this epoch on it is the network that was asked for: what was best before counts no more")
        say(
            f"epoch {state.epoch}/{self._options.optim.epochs}  train loss {train.loss:.4f} acc@1 {train.top1:.2f}%"
            f"  {split} loss {held_out.loss:.4f} acc@1 {held_out.top1:.2f}%"
            f" (best {best['acc@1']:.2f}% in epoch {best['epoch']})  lr {rate:.4g}{kept}  {speed:,.0f} images/s"
        )

    def stopped(self, state: State) -> None:
        self.save(state, is_best=False)
        self._run.set_status("stopped", epoch=state.epoch, step=state.step, epochs=self._options.optim.epochs)

    def save(self, state: State, *, is_best: bool) -> None:
        """Write last.pt, and before it best.pt and epoch_<n>.pt where they are due."""
        self._run.check_held()
        every = self._options.run.save_every
        names = [f"epoch_{state.epoch}.pt"] if every > 0 and state.step == 0 and state.epoch % every == 0 else []
        names += ["best.pt"] if is_best else []
        checkpoints.save(self._run.path / "checkpoints", self._snapshot(state), [*names, "last.pt"])
        self._saved = time.monotonic()

    def save_initial(self, state: State) -> None:
        """initial.pt: weights and scores as drawn."""
        checkpoints.save(self._run.path / "checkpoints", self._snapshot(state), ["initial.pt"])

    def _snapshot(self, state: State) -> dict[str, Any]:
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
            "events": self._events(),
        }

    def _events(self) -> dict[str, int]:
        """How long the event files are now, with all that belongs to this checkpoint."""
        if self._board is not None:
            self._board.flush()
        return event_sizes(self._run.path / "logs")

    def close(self, final: dict[str, float]) -> None:
        """End the event files; `final` are the measures beside the hparams, empty where the run did not end."""
        if self._board is not None or final:
            self._tensorboard().close(final)

    def _tensorboard(self) -> TensorBoard:
        """Made when there is something to write: importing it would delay the first batch."""
        if self._board is None:
            purge = self._epoch + 1 if self._purge else None
            self._board = TensorBoard(
                self._run.path / "logs", self._epoch, summary.hparams(self._options), self._held_out, purge
            )
        return self._board

    def _histogram_tensors(self) -> list[tuple[str, Any]]:
        """Every parameter, and its gradient of the last batch."""
        named = [(key.replace(".constraint.", "."), p) for key, p in self._parts.model.named_parameters()]
        return [*named, *((f"{name}.grad", p.grad) for name, p in named if p.grad is not None)]
