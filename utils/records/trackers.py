"""Recorders that pass on what a run records to Weights & Biases, trackio or MLflow.

Each imports its package when it starts. All three work without a network:

    wandb      WANDB_MODE=offline writes to logs/wandb in the run directory; `wandb sync` uploads it later
    trackio    writes to the folder TRACKIO_DIR, by default trackio in the cache of Hugging Face
    mlflow     writes to mlflow.db beside the run directories, or to the store that MLFLOW_TRACKING_URI names

Project and run are named after the run directory. No code and no console output is sent. When SIGKILL ends a process,
records of its last seconds can be missing: up to 15 s with wandb offline, half a second with trackio. metrics.csv is
complete.
"""

import contextlib
import io
import json
import logging
import os
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from utils.errors import UsageError
from utils.files import locked, write_text
from utils.records.epoch_tables import Table, as_csv
from utils.records.recorder import MetricsBySplit, RecordedRun, Recorder
from utils.run_paths import RunPaths

if TYPE_CHECKING:
    from torch import Tensor

BINS = 64  # of a histogram
MOST_METRICS = 1000  # that MLflow takes at once


@dataclass
class EpochRecords:
    """Records of one epoch, by name.

    A histogram is a pair of arrays, the counts and the edges of the bins.
    """

    epoch: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    tables: dict[str, Table] = field(default_factory=dict)
    histograms: dict[str, Any] = field(default_factory=dict)


class Tracker(Recorder, ABC):
    """Base class of recorders that send all records of an epoch together, and no epoch twice.

    The file logs/<name>.json of the run directory has the last epoch that was sent, and the id that the package has
    given to the run. A resumed run continues there.
    """

    name = ""

    def start(self, run: RecordedRun) -> None:
        """Begin or continue the run in the package. Raises UsageError if logs/<name>.json is damaged."""
        self._file = RunPaths(run.path).logs / f"{self.name}.json"
        self._stored: dict[str, Any] = {"id": None, "epoch": 0, "final": 0}
        try:
            if self._file.exists():
                self._stored |= json.loads(self._file.read_text(encoding="utf-8"))
        except (ValueError, TypeError) as error:
            raise UsageError(f"{self._file} is damaged: {error}; move it away to begin a new record") from error
        self._epoch, self._held_out_prefix = run.epoch, f"{run.held_out}/"
        self._records = EpochRecords()
        self._store(id=self.open(run, self._stored["id"]))

    def metrics(self, epoch: int, metrics: MetricsBySplit) -> None:
        """Keep the metrics of an epoch until `flush`."""
        self._epoch = self._records.epoch = epoch
        for split, values in metrics.items():
            self._records.metrics |= {f"{split}/{name}": value for name, value in values.items()}

    def table(self, name: str, epoch: int, table: Table) -> None:
        """Keep a table until `flush`."""
        self._records.tables[name] = table

    def histograms(self, epoch: int, tensors: Iterable[tuple[str, "Tensor"]]) -> None:
        """Count the finite values of tensors in bins, and keep the counts until `flush`."""
        for name, tensor in tensors:
            values = tensor.float().cpu().numpy()
            self._records.histograms[name] = np.histogram(values[np.isfinite(values)], BINS)

    def flush(self) -> None:
        """Send the records of the last epoch, unless they were sent before the run was resumed."""
        if not self._records.metrics:  # the epoch is not over
            return
        if self._epoch > self._stored["epoch"]:
            self.send(self._records)
            self._store(epoch=self._epoch)
        self._records = EpochRecords()

    def close(self, final: Mapping[str, float]) -> None:
        """Send the final metrics that differ from those of the last epoch, and end the run in the package."""
        new = {name: value for name, value in final.items() if not name.startswith(self._held_out_prefix)}
        if new and self._stored["final"] < self._epoch:
            self.send(EpochRecords(self._epoch, new))
            self._store(final=self._epoch)
        self.end(finished=bool(final))

    def _store(self, **values: object) -> None:
        self._stored |= values
        write_text(self._file, json.dumps(self._stored) + "\n")

    @abstractmethod
    def open(self, run: RecordedRun, stored: str | None) -> str:
        """Begin a run in the package, or continue the one with the id `stored`, and return its id."""

    @abstractmethod
    def send(self, records: EpochRecords) -> None:
        """Send the records of an epoch, with the epoch as step."""

    @abstractmethod
    def end(self, *, finished: bool) -> None:
        """End the run in the package."""


def _values(records: EpochRecords, package: Any) -> dict[str, Any]:
    """Return the records of an epoch by name, as objects of wandb, or of trackio, which has the same classes."""
    values: dict[str, Any] = dict(records.metrics)
    for name, table in records.tables.items():
        values[name] = package.Table([*table.rows[0]], [[*row.values()] for row in table.rows])
    for name, counts in records.histograms.items():
        values[name] = package.Histogram(np_histogram=counts)
    return values


class Wandb(Tracker):
    """Recorder for Weights & Biases. WANDB_PROJECT names another project than that of the run directory."""

    name = "wandb"

    def open(self, run: RecordedRun, stored: str | None) -> str:
        """Begin or continue the run, which has the id of this run. Raises UsageError if that is impossible."""
        import wandb

        self._wandb = wandb
        settings = wandb.Settings(silent=True, console="off", save_code=False, disable_code=True, disable_git=True)
        project = os.environ.get("WANDB_PROJECT") or re.sub(r"[/\\#?%:]", "-", run.project)
        folder, config = str(RunPaths(run.path).logs), dict(run.hparams)
        try:
            self._run = wandb.init(
                project=project, name=run.name, id=run.id, resume="allow", dir=folder, config=config, settings=settings
            )
        except wandb.Error as error:
            reason = str(error).partition("\n")[0].rstrip(".")
            raise UsageError(f"{reason}; WANDB_MODE=offline needs neither an account nor a network") from error
        return run.id

    def send(self, records: EpochRecords) -> None:
        """Log all records of an epoch at once."""
        self._run.log(_values(records, self._wandb), step=records.epoch, commit=True)

    def end(self, *, finished: bool) -> None:
        """Wait until all is written or sent."""
        self._run.finish(exit_code=0 if finished else 1)


class Trackio(Tracker):
    """Recorder for trackio, which stores runs in a local database."""

    name = "trackio"

    def open(self, run: RecordedRun, stored: str | None) -> str:
        """Begin a run, or continue the newest one of this name, and return the name."""
        with contextlib.redirect_stdout(io.StringIO()):
            import trackio

            self._trackio = trackio
            resume = "never" if stored is None else "allow"
            self._run = trackio.init(
                project=run.project,
                name=run.name,
                config=dict(run.hparams),
                resume=resume,
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
        return run.name

    def send(self, records: EpochRecords) -> None:
        """Log all records of an epoch at once."""
        self._run.log(_values(records, self._trackio), step=records.epoch)

    def end(self, *, finished: bool) -> None:
        """Wait until all is written."""
        with contextlib.redirect_stdout(io.StringIO()):
            self._trackio.finish()


class MLflow(Tracker):
    """Recorder for MLflow. MLFLOW_EXPERIMENT_NAME names another experiment than the project of the run directory.

    MLflow has no histograms, and its names have no "@": acc@1 becomes acc_1. A table becomes a CSV file per epoch.
    """

    name = "mlflow"

    def open(self, run: RecordedRun, stored: str | None) -> str:
        """Create a run and return its id, or mark the run `stored` as running again."""
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow import MlflowClient, entities

        logging.getLogger("mlflow").setLevel(logging.WARNING)
        self._entities, given = entities, os.environ.get("MLFLOW_TRACKING_URI")
        artifacts = None if given else (run.root / "mlflow").as_uri()
        with locked(run.root / ".mlflow.lock"):  # the first process creates the database
            self._client = MlflowClient(given or f"sqlite:///{run.root / 'mlflow.db'}")
            if stored is not None:
                self._client.update_run(stored, status="RUNNING")
                return stored
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or run.project
            known = self._client.get_experiment_by_name(name)
            experiment = known.experiment_id if known else self._client.create_experiment(name, artifacts)
        created: str = self._client.create_run(experiment, run_name=run.name).info.run_id
        self._client.log_batch(created, params=[entities.Param(k, str(v)) for k, v in run.hparams.items()])
        return created

    def send(self, records: EpochRecords) -> None:
        """Log the metrics of an epoch, and each table as a file."""
        run, epoch, now = self._stored["id"], records.epoch, round(1000 * time.time())
        named = {re.sub(r"[^\w\-. :/]", "_", name): value for name, value in records.metrics.items()}
        points = [self._entities.Metric(name, value, now, epoch) for name, value in named.items()]
        for first in range(0, len(points), MOST_METRICS):
            self._client.log_batch(run, metrics=points[first : first + MOST_METRICS])
        for name, table in records.tables.items():
            self._client.log_text(run, as_csv(table.rows, [*table.rows[0]]), f"{name}/epoch_{epoch}.csv")

    def end(self, *, finished: bool) -> None:
        """Mark the run as finished or killed."""
        self._client.set_terminated(self._stored["id"], "FINISHED" if finished else "KILLED")
