"""One run, one directory: made atomically, described by its own files, held by one process at a time."""

import functools
import json
import os
import platform
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import yaml

from args import Options
from utils.errors import RunFailed, RunInUse, UsageError
from utils.files import check_regular, locked, mkdir_failure, try_lock, write_text
from utils.text import shown

STATUSES = ("running", "done", "failed", "stopped")
COUNTS = ("epoch", "epochs", "step")  # of status.json
ROW = "result.csv"  # the run's own rows of results.csv
PROCESS = uuid.uuid4().hex
ELSEWHERE = "--log-dir names another place"


class Run:
    """A run's directory, locked by this process. `path` holds config.yaml, environment.json, metrics.csv, status.json,
    result.csv, logs/ and checkpoints/. A copy in another process writes nothing there.

    The lock file says who holds the lock: machine, pid, and a name that no other process has. Raises UsageError
    where status.json is damaged.
    """

    def __init__(self, path: Path, lock: IO[str]) -> None:
        self.path = path
        self.id = str(read_status(path).get("id") or uuid.uuid4().hex)
        self._lock: IO[str] | None = lock
        self._holder = json.dumps({"host": platform.node(), "pid": os.getpid(), "process": PROCESS})
        lock.truncate(0)
        lock.write(self._holder)
        lock.flush()
        for folder in ("logs", "checkpoints"):
            try:
                (path / folder).mkdir(exist_ok=True)
            except FileExistsError:
                raise UsageError(f"{path / folder} is no directory; move it away to go on") from None
        for left in (*path.glob(".*.tmp"), *path.glob("checkpoints/.*.tmp")):  # by a process killed while it wrote
            left.unlink(missing_ok=True)

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "id": self.id, "_lock": None}

    @property
    def held(self) -> bool:
        """Whether no other process has taken the run over, as one can on a file system that shares no locks."""
        try:
            return self._lock is not None and (self.path / ".lock").read_text() in (self._holder, "")
        except (OSError, ValueError):
            return True

    def check_held(self) -> None:
        """Raises RunFailed where another process has taken the run over."""
        if not self.held:
            raise RunFailed(f"{self.path} was taken over by {holder(self.path)}; its file system shares no locks")

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
        if not self.held:
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
        except FileExistsError as taken:
            if not path.is_dir():
                raise UsageError(f"log_dir: cannot make {path}: {mkdir_failure(path, taken)}; {ELSEWHERE}") from None
            if not _is_left(path):
                continue
        except OSError as error:
            raise UsageError(f"log_dir: cannot make {path}: {mkdir_failure(path, error)}; {ELSEWHERE}") from error
        lock = try_lock(path / ".lock")
        if lock is not None and not (path / "config.yaml").exists():
            return Run(path, lock)
    raise AssertionError("the candidates never end")


def _is_left(path: Path) -> bool:
    """Whether a process was killed there before it wrote config.yaml."""
    names = {entry.name for entry in path.iterdir() if not entry.name.endswith(".tmp")}
    return names <= {".lock", "logs", "checkpoints"}


@contextmanager
def starting(options: Options) -> Iterator[None]:
    """While it lasts no other run of --resume auto is begun in this log directory. Raises UsageError."""
    root = _root(options)
    try:
        root.mkdir(parents=True, exist_ok=True)
        (root / ".start.lock").touch()
    except OSError as error:
        raise UsageError(f"log_dir: cannot write {root}: {mkdir_failure(root, error)}; {ELSEWHERE}") from error
    with locked(root / ".start.lock"):
        yield


def _root(options: Options) -> Path:
    return Path(options.run.log_dir or "runs")


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
    return _root(options).joinpath(options.run.stem, *level, name)


def unfinished(options: Options, is_same: Callable[[Path], bool]) -> Run | None:
    """The newest run of this configuration that is not done and that `is_same`, or None.

    Raises RunInUse where another process is training one of them.
    """
    home = base(options)
    numbered = [p for p in home.glob("*") if p.name.isdigit()] if home.is_dir() else []
    paths = [p for p in (home, *numbered) if (p / "config.yaml").exists() and not _is_done(p)]
    newest_first = sorted(paths, key=lambda p: (p / "config.yaml").stat().st_mtime_ns, reverse=True)
    locks = {path: try_lock(path / ".lock") for path in filter(is_same, newest_first)}
    if busy := [path for path, lock in locks.items() if lock is None]:
        raise RunInUse(f"{busy[0]} is being trained by {holder(busy[0])}; nothing was started")
    return next((Run(path, lock) for path, lock in locks.items() if lock), None)


def _is_done(path: Path) -> bool:
    try:
        return read_status(path).get("status") == "done"
    except UsageError:
        return False


def existing(path: str) -> Run:
    """The run at `path`: its directory or one of its checkpoints. Raises UsageError where none is or it is in use."""
    directory = directory_of(Path(path))
    if not (directory / "config.yaml").exists():
        raise UsageError(f"resume: {path} is no run directory and no checkpoint of one: no config.yaml in {directory}")
    lock = try_lock(directory / ".lock")
    if lock is None:
        raise UsageError(f"resume: {directory} is being worked on by {holder(directory)}")
    return Run(directory, lock)


def directory_of(path: Path) -> Path:
    """The run directory a path means: itself, or the one whose checkpoints/ holds it."""
    return path.parent.parent if path.parent.name == "checkpoints" and not path.is_dir() else path


def holder(path: Path) -> str:
    """The process that holds the lock on the run at `path`, in words."""
    try:
        record = json.loads((path / ".lock").read_text(encoding="utf-8"))
        return f"another process (pid {int(record['pid'])} on {record['host']!r:.80})"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return "another process"


def read_status(path: Path) -> dict[str, Any]:
    """status.json of the run at `path`; empty where there is none. Raises UsageError where it is damaged."""
    file = path / "status.json"
    check_regular(file)
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        found = record if isinstance(record, dict) else {"it": record}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{file} is damaged: {_reason(error)}; move it away to go on") from error
    sound = {"status": STATUSES.__contains__, "id": lambda value: isinstance(value, str)}
    sound |= dict.fromkeys(COUNTS, lambda value: type(value) is int and value >= 0)
    for name, value in found.items():
        if name == "it" or (name in sound and not sound[name](value)):
            raise UsageError(f"{file} is damaged: {name} is {shown(value)}; move it away to go on")
    return found


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error).partition("\n")[0]


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
