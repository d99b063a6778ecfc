"""Descriptions of runs for recorders, with defaults for what a test does not need."""

from pathlib import Path
from typing import Any

from utils.records.recorder import RecordedRun

CIRCUIT: dict[str, Any] = {  # options of a run that records metrics, a table and histograms
    "arch": "CircuitMLP",
    "hidden": [40, 30],
    "conv_type": "BinaryConv",
    "init": "binary",
    "freeze_weights": None,
    "prune_rate": None,
    "lr": 0.01,
    "random_mag": 1.0,
    "sweep_on": "0:2:1",
    "sweep_every": 2,
    "histograms": True,
}


def recorded_run(path: Path, epoch: int = 0, **changes: Any) -> RecordedRun:
    """Return the description of a run in directory `path`, of which `epoch` epochs are done."""
    values = {"project": "ticket", "name": path.name, "id": "7", "hparams": {}, "held_out": "test"}
    return RecordedRun(path=path, root=path.parent, epoch=epoch, **(values | changes))


def started(recorder: Any, path: Path, epoch: int = 0, **changes: Any) -> Any:
    """Return the recorder after its start."""
    recorder.start(recorded_run(path, epoch, **changes))
    return recorder
