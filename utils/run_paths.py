"""Names of the files and folders in a run's directory.

This module imports neither torch nor the options, so that the parser of the command line can use it.
"""

import os
from pathlib import Path

from utils.errors import UsageError


class RunPaths:
    """Paths of the files and folders in the run directory `path`. None of them needs to exist."""

    RESULT = (
        "result.csv"  # the rows that this run adds to results.csv: one for each number of epochs that it was trained to
    )

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.environment = path / "environment.json"
        self.status_file = path / "status.json"
        self.metrics = path / "metrics.csv"
        self.result = path / self.RESULT
        self.lock_file = path / ".lock"
        self.logs = path / "logs"
        self.checkpoints = path / "checkpoints"
        self.last = self.checkpoints / "last.pt"
        self.best = self.checkpoints / "best.pt"
        self.initial = self.checkpoints / "initial.pt"

    def epoch_checkpoint(self, epoch: int) -> Path:
        """Return the path of the checkpoint that --save-every keeps after `epoch`."""
        return self.checkpoints / f"epoch_{epoch}.pt"

    @property
    def exists(self) -> bool:
        """True if the directory is a run's directory, that is, if it contains config.yaml."""
        return os.access(self.config, os.F_OK)  # Path.exists raises if a folder is not readable


def locate(path: Path) -> tuple[RunPaths | None, Path | None]:
    """Return (run, checkpoint) for the path of a trained network, which is a run's directory or a checkpoint.

    A directory gives (run, None), a checkpoint in a run's directory gives (run, path), any other file (None, path). A
    directory counts as a run even without config.yaml: see `RunPaths.exists`.
    """
    if os.path.isdir(path):  # noqa: PTH112 Path.is_dir raises PermissionError below a folder that is not readable
        return RunPaths(path), None
    run = RunPaths(path.parent.parent)
    return (run if path.parent.name == run.checkpoints.name and run.exists else None), path


def locate_run(path: Path, option: str = "") -> tuple[RunPaths, Path | None]:
    """Return (run, checkpoint) for the path of a run's directory or of a checkpoint in one, as `locate` does.

    Raises UsageError, with a message that starts with `option`, if `path` is neither.
    """
    run, checkpoint = locate(path)
    if run is None or not run.exists:
        is_there = os.access(path, os.F_OK)
        fault = "is neither a run directory nor a checkpoint in one" if is_there else "does not exist"
        raise UsageError(f"{option}{path} {fault}; pass a directory with config.yaml, or a checkpoint of a run")
    return run, checkpoint
