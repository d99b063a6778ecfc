"""The layout of a run's directory: the names of its files and folders.

This module imports neither torch nor the options, so that the command-line parser can import it.
"""

import os
from pathlib import Path

from utils.errors import UsageError


class RunPaths:
    """Paths of the files and folders in a run directory.

    `path` is the run directory. None of the paths needs to exist.
    """

    RESULT = "result.csv"  # this run's rows of results.csv, one per number of epochs that the run was trained for

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
        """Return the path of the checkpoint that --save-every keeps after epoch `epoch`."""
        return self.checkpoints / f"epoch_{epoch}.pt"

    @property
    def exists(self) -> bool:
        """True if the run directory contains config.yaml, which every run has."""
        return os.access(self.config, os.F_OK)  # Path.exists would raise PermissionError below an unreadable folder


def locate(path: Path) -> tuple[RunPaths | None, Path | None]:
    """Split the path of a trained network into its run directory and its checkpoint.

    Returns (paths of the run directory, path of the checkpoint file). A directory gives (run, None), even without a
    config.yaml. A checkpoint in a run directory gives (run, path). Any other file gives (None, path).
    """
    if os.path.isdir(path):  # noqa: PTH112 Path.is_dir raises PermissionError below an unreadable folder
        return RunPaths(path), None
    run = RunPaths(path.parent.parent)
    return (run if path.parent.name == run.checkpoints.name and run.exists else None), path


def locate_run(path: Path, option: str = "") -> tuple[RunPaths, Path | None]:
    """Return the run directory and the checkpoint that a path names.

    Returns (paths of the run directory, checkpoint). `path` is a run directory or a checkpoint in one. For a run
    directory, the checkpoint is None. Raises UsageError for any other path. The message starts with `option`, such as
    "resume: ".
    """
    run, checkpoint = locate(path)
    if run is None or not run.exists:
        is_there = os.access(path, os.F_OK)
        fault = "is neither a run directory nor a checkpoint in one" if is_there else "does not exist"
        raise UsageError(f"{option}{path} {fault}; pass a directory with config.yaml, or a checkpoint of a run")
    return run, checkpoint
