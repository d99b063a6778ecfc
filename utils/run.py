"""One run, one directory: made atomically, described by its own files, held by one process at a time."""

import functools
import json
import platform
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import yaml

from args import Options, UsageError
from utils.files import try_lock, write_text

STATUSES = ("running", "done", "failed", "stopped")


class Run:
    """A run's directory, locked by this process. `path` holds config.yaml, environment.json, metrics.csv, status.json,
    logs/ and checkpoints/. Told to another process, it writes nothing there."""

    def __init__(self, path: Path, lock: IO[str]) -> None:
        self.path = path
        self._lock: IO[str] | None = lock
        for folder in ("logs", "checkpoints"):
            (path / folder).mkdir(exist_ok=True)
        for left in (*path.glob(".*.tmp"), *path.glob("checkpoints/.*.tmp")):  # by a process killed while it wrote
            left.unlink(missing_ok=True)
        self.id = str(read_status(path).get("id") or uuid.uuid4().hex)

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "id": self.id, "_lock": None}

    def describe(self, options: Options, facts: dict[str, Any]) -> None:
        """Write config.yaml and environment.json, once, before anything else happens in the directory."""
        if self._lock is None:
            return
        again = options.replace(resume=None)  # to repeat the run is to begin it, however this one was begun
        write_text(self.path / "config.yaml", yaml.safe_dump(again.flat(), sort_keys=False))
        write_text(self.path / "environment.json", json.dumps(environment() | facts, indent=2) + "\n")

    def set_status(self, status: str, **facts: object) -> None:
        """Record running, done, failed or stopped, with the epoch and whatever else there is to say."""
        assert status in STATUSES
        if self._lock is None:
            return
        record = {"status": status, "id": self.id, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **facts}
        write_text(self.path / "status.json", json.dumps(record) + "\n")


def create(options: Options) -> Run:
    """Make the directory of a new run; where the name is taken, the first free <name>/0, <name>/1, … .

    Any number of processes may do so at once: each gets its own. Raises UsageError where it cannot be made.
    """
    home = base(options)
    for path in _candidates(home):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.mkdir()
        except FileExistsError:
            if not path.is_dir():
                raise UsageError(f"log_dir: {path} is a file; a directory is needed there") from None
            continue
        except OSError as error:
            raise UsageError(f"log_dir: cannot make {path}: {error.strerror}; --log-dir names another place") from error
        lock = try_lock(path / ".lock")
        assert lock is not None, "nobody resumes a directory without config.yaml"
        return Run(path, lock)
    raise AssertionError("the candidates never end")


def _candidates(home: Path) -> Iterator[Path]:
    yield home
    number = 0
    while True:
        yield home / str(number)
        number += 1


def base(options: Options) -> Path:
    """<log-dir>/<config stem>[/prune-rate=<k>]/<name>: where the runs of this configuration live, dry runs apart."""
    name = f"{options.run.name}{',dry-run' * bool(options.run.dry_run)}"
    level = () if options.constraint.prune_rate is None else (f"prune-rate={options.constraint.prune_rate}",)
    return Path(options.run.log_dir or "runs").expanduser().joinpath(options.run.stem, *level, name)


def unfinished(options: Options, is_same: Callable[[Path], bool]) -> Run | None:
    """The newest run of this configuration that is neither done nor in use and that `is_same`, or None."""
    home = base(options)
    numbered = [p for p in home.glob("*") if p.name.isdigit()] if home.is_dir() else []
    paths = [p for p in (home, *numbered) if (p / "config.yaml").exists() and read_status(p).get("status") != "done"]
    newest_first = sorted(paths, key=lambda p: (p / "config.yaml").stat().st_mtime_ns, reverse=True)
    for path in filter(is_same, newest_first):
        lock = try_lock(path / ".lock")
        if lock is not None:
            return Run(path, lock)
    return None


def existing(path: str) -> Run:
    """The run at `path`: its directory or one of its checkpoints. Raises UsageError where none is or it is in use."""
    directory = directory_of(Path(path))
    if not (directory / "config.yaml").exists():
        raise UsageError(f"resume: {path} is no run directory and no checkpoint of one: no config.yaml in {directory}")
    lock = try_lock(directory / ".lock")
    if lock is None:
        raise UsageError(f"resume: {directory} is being worked on by another process")
    return Run(directory, lock)


def directory_of(path: Path) -> Path:
    """The run directory a path means: itself, or the one whose checkpoints/ holds it."""
    return path.parent.parent if path.parent.name == "checkpoints" and not path.is_dir() else path


def read_status(path: Path) -> dict[str, Any]:
    """status.json of the run at `path`; empty where there is none."""
    try:
        record = json.loads((path / "status.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def environment() -> dict[str, Any]:
    """What is needed to repeat a run besides its config: command, commit, versions, machine."""
    import numpy
    import torch

    return {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "commit": commit(),
        "dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "cuda": torch.version.cuda,
        "platform": platform.platform(),
        "host": platform.node(),
    }


@functools.cache
def commit() -> str:
    """The git commit this program was at when it was first asked; empty outside a repository."""
    return _git("rev-parse", "HEAD")


def _git(*command: str) -> str:
    try:
        here = Path(__file__).resolve().parent
        done = subprocess.run(["git", *command], cwd=here, capture_output=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode(errors="replace").strip() if done.returncode == 0 else ""
