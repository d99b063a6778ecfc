"""A run on disk: its directory is created atomically, and one process at a time trains it."""

import json
import os
import platform
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain, count
from pathlib import Path
from typing import IO, Any

import yaml

from args import Options, from_flat
from utils.config.yaml_loader import load_yaml
from utils.errors import RunFailed, RunInUse, UsageError
from utils.files import check_regular, locked, mkdir_failure, try_lock, write_text
from utils.records.environment import environment
from utils.run_paths import RunPaths, locate_run
from utils.text import shown

STATUSES = ("running", "done", "failed", "stopped")
COUNTS = ("epoch", "epochs", "step")  # non-negative integers in status.json
PROCESS_ID = uuid.uuid4().hex  # unlike a pid it is unique across machines
DRY_RUN = ",dry-run"  # end of the name of a dry run's directory
LOG_DIR_ADVICE = "pass another folder with --log-dir"


class Run(RunPaths):
    """Read access to a training run, which another process may be training.

    `path` is the directory of the run.
    """

    def options(self) -> Options:
        """Return the options in config.yaml. Raises UsageError if the file is missing or damaged."""
        return from_flat(load_yaml(self.config))

    def status(self) -> dict[str, Any]:
        """Return the content of status.json, or {} if the file does not exist.

        Raises UsageError if the file is damaged.
        """
        check_regular(self.status_file)
        try:
            return _checked_status(json.loads(self.status_file.read_text(encoding="utf-8")))
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except (OSError, ValueError, RecursionError) as error:
            reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
            raise UsageError(f"{self.status_file} is damaged: {reason}; move it away to continue") from error

    def is_done(self) -> bool:
        """Return True if status.json is readable and its status is "done"."""
        try:
            return self.status().get("status") == "done"
        except UsageError:
            return False

    def lock_owner(self) -> str:
        """Return a description of the process that holds the run's lock.

        An example is "another process (pid 7 on 'a')".
        """
        try:
            record = json.loads(self.lock_file.read_text(encoding="utf-8"))
            return f"another process (pid {int(record['pid'])} on {record['host']!r:.80})"
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return "another process"


def _checked_status(record: Any) -> dict[str, Any]:
    """Return the content of status.json, or raise ValueError if one of its values is invalid."""
    if not isinstance(record, dict):
        raise ValueError(f"a JSON object is expected, {shown(record)} found")
    valid = {"status": record.get("status") in STATUSES, "id": isinstance(record.get("id"), str)}
    valid |= {name: type(record.get(name)) is int and record[name] >= 0 for name in COUNTS}
    for name, is_valid in valid.items():
        if name in record and not is_valid:
            raise ValueError(f"{name} is {shown(record[name])}")
    return record


class LockedRun(Run):
    """Run that this process trains, locked so that no other process writes to it.

    The lock file records the machine, the pid and an id of the process. A copy of this object in another process has no
    lock and writes nothing.

    Raises UsageError if status.json is damaged or a file stands in the place of a folder.
    """

    def __init__(self, path: Path, lock: IO[str]) -> None:
        super().__init__(path)
        self.id = str(self.status().get("id") or uuid.uuid4().hex)
        self._lock: IO[str] | None = lock
        self._owner = json.dumps({"host": platform.node(), "pid": os.getpid(), "process": PROCESS_ID})
        lock.truncate(0)
        lock.write(self._owner)
        lock.flush()
        for folder in (self.logs, self.checkpoints):
            try:
                folder.mkdir(exist_ok=True)
            except FileExistsError:
                raise UsageError(f"{folder} is not a directory; move it away to continue") from None
        for folder in (self.path, self.checkpoints):
            for temporary in folder.glob(".*.tmp"):  # left by a process that was killed during a write
                temporary.unlink(missing_ok=True)

    def close(self) -> None:
        """Release the lock. This process then writes nothing more into the run directory."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __getstate__(self) -> dict[str, Any]:
        """Return the attributes to pickle, without the open lock file, which only this process may hold."""
        return self.__dict__ | {"_lock": None}

    @property
    def is_held(self) -> bool:
        """True while this process holds the run's lock.

        It becomes False if another process takes over the run, which is possible on file systems that do not share
        locks.
        """
        try:
            return self._lock is not None and self.lock_file.read_text() in (self._owner, "")
        except (OSError, ValueError):
            return True

    def check_held(self) -> None:
        """Raise RunFailed if another process has taken over the directory of this run."""
        if not self.is_held:
            owner = self.lock_owner()
            raise RunFailed(f"{self.path} is now trained by {owner}; its file system shares no locks: start runs once")

    def describe(self, options: Options, device_info: dict[str, Any]) -> None:
        """Write the options of this run to config.yaml, and its metadata to environment.json.

        The metadata are the command, the commit, versions and `device_info`. A new run calls this before it writes
        anything else.
        """
        if self._lock is None:
            return
        repeatable = options.replace(resume=None)  # --config with this file starts a new run
        write_text(self.config, yaml.safe_dump(repeatable.flat(), sort_keys=False))
        write_text(self.environment, json.dumps(environment() | device_info, indent=2) + "\n")

    def set_status(self, status: str, **details: object) -> None:
        """Write a status, the current time and details to status.json.

        `status` is one of STATUSES. `details` has values such as the epoch.
        """
        assert status in STATUSES
        if not self.is_held:
            return
        record = {"status": status, "id": self.id, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **details}
        write_text(self.status_file, json.dumps(record) + "\n")


def create(options: Options) -> LockedRun:
    """Create the directory of a new training run, and lock it.

    The directory is `base_directory(options)`, or if that is taken its first free sub-directory of 0, 1, …. Processes
    that call this at the same time get different directories. Raises UsageError if no directory can be made.
    """
    base = base_directory(options)
    for path in chain([base], (base / str(number) for number in count())):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.mkdir()
        except FileExistsError as taken:
            if not path.is_dir():
                reason = mkdir_failure(path, taken)
                raise UsageError(f"log_dir: cannot make {path}: {reason}; {LOG_DIR_ADVICE}") from None
            if not _is_abandoned(path):
                continue
        except OSError as error:
            raise UsageError(f"log_dir: cannot make {path}: {mkdir_failure(path, error)}; {LOG_DIR_ADVICE}") from error
        lock = try_lock(RunPaths(path).lock_file)
        if lock is not None and not RunPaths(path).exists:
            return LockedRun(path, lock)
    raise AssertionError("the candidates never end")


def _is_abandoned(path: Path) -> bool:
    """Return True if a run directory was abandoned before its config.yaml was written.

    The process that created the directory `path` has then ended.
    """
    run = RunPaths(path)
    names = {entry.name for entry in path.iterdir() if not entry.name.endswith(".tmp")}
    return names <= {run.lock_file.name, run.logs.name, run.checkpoints.name}


@contextmanager
def exclusive_start(options: Options) -> Iterator[None]:
    """Let only one process at a time start a --resume auto run in the same --log-dir.

    A lock is held in the `with` block. If several processes start the same run at once, the first creates the run and
    the others find it. Raises UsageError if --log-dir cannot be written.
    """
    root = options.run.root
    try:
        root.mkdir(parents=True, exist_ok=True)
        (root / ".start.lock").touch()
    except OSError as error:
        raise UsageError(f"log_dir: cannot write {root}: {mkdir_failure(root, error)}; {LOG_DIR_ADVICE}") from error
    with locked(root / ".start.lock"):
        yield


def base_directory(options: Options) -> Path:
    """Return the base directory of all runs with these options.

    It is <log-dir>/<config stem>[/prune-rate=<k>]/<name>. For a dry run, ",dry-run" is appended. The runs are in this
    directory and in its numbered sub-directories.
    """
    name = f"{options.run.name}{DRY_RUN if options.run.dry_run else ''}"
    level = () if options.constraint.prune_rate is None else (f"prune-rate={options.constraint.prune_rate}",)
    return options.run.root.joinpath(options.run.stem, *level, name)


def place_of(path: Path, options: Options) -> tuple[Path, str, str]:
    """Return the names by which the run in directory `path` differs from others.

    They are the root of all run directories, the name of the YAML file, and the rest of the path. `options` are those
    of the run.
    """
    expected = base_directory(options).relative_to(options.run.root).parts
    parts = path.absolute().parts
    depth = len(expected) + (parts[-len(expected) :] != expected)  # a numbered directory is one level deeper
    root, project, *name = Path(*parts[:-depth]), *parts[-depth:]
    return root, project, "/".join(name)


def lock_unfinished(options: Options, has_same_options: Callable[[Run], bool]) -> LockedRun | None:
    """Lock and return the newest unfinished run with these options, or None.

    `has_same_options` compares the options. The runs in `base_directory(options)` are searched. Raises RunInUse if
    another process is training one of the runs with the same options.
    """
    locks = _locked_unfinished(options, has_same_options)
    if not locks:
        return None
    (newest, lock), *others = locks.items()
    for _, other in others:
        other.close()
    return LockedRun(newest.path, lock)


def check_none_in_training(options: Options, has_same_options: Callable[[Run], bool]) -> None:
    """Raise RunInUse if another process is training a run with these options.

    `has_same_options` compares the options.
    """
    for lock in _locked_unfinished(options, has_same_options).values():
        lock.close()


def _locked_unfinished(options: Options, has_same_options: Callable[[Run], bool]) -> dict[Run, IO[str]]:
    """Lock all unfinished runs with these options, and return them with their lock files.

    The newest run is first. The runs in `base_directory(options)` are searched. `has_same_options(run)` compares the
    options of a run.

    Raises RunInUse if another process holds the lock of such a run.
    """
    base = base_directory(options)
    numbered = [path for path in base.glob("*") if path.name.isdigit()] if base.is_dir() else []
    unfinished = [run for run in map(Run, (base, *numbered)) if run.exists and not run.is_done()]
    newest_first = sorted(unfinished, key=lambda run: run.config.stat().st_mtime_ns, reverse=True)
    locks = {run: try_lock(run.lock_file) for run in filter(has_same_options, newest_first)}
    for run, lock in locks.items():
        if lock is None:
            raise RunInUse(f"{run.path} is being trained by {run.lock_owner()}; nothing was started")
    return {run: lock for run, lock in locks.items() if lock}


def lock_existing(path: Path) -> LockedRun:
    """Lock and return an existing run, given its directory or a checkpoint in its directory.

    Raises UsageError if there is no such run or another process holds its lock.
    """
    run = Run(locate_run(path, "resume: ")[0].path)
    lock = try_lock(run.lock_file)
    if lock is None:
        raise UsageError(f"resume: {run.path} is in use by {run.lock_owner()}")
    return LockedRun(run.path, lock)
