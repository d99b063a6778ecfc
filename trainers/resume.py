"""Which run to go on with, from which checkpoint, and whether the options still mean the same run."""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from args import FIELDS, Options, changed_mathematics, from_flat
from trainers.restore import WRONG, progress
from utils.config.yaml_loader import load_yaml
from utils.console import say, warn
from utils.errors import UsageError
from utils.records import checkpoints, results
from utils.records import run as runs
from utils.records.epoch_tables import earlier_rows
from utils.text import shown

TABLES = ("weight_sweep", "statistics", "shifts")  # of single trainers, by epoch
OF_TESTS = ("precision", "batch_size", "test_batch_size")  # in which a test may be another than the training


@dataclass(frozen=True)
class Point:
    """Where to begin: `options` as the run has them; no `run` means a fresh one, no `snapshot` its very beginning."""

    options: Options
    run: runs.Run | None = None
    snapshot: dict[str, Any] | None = None
    path: Path | None = None
    finished: bool = False
    longer: bool = False


def find(options: Options) -> Point:
    """The point that --resume means. Raises UsageError where it means none, or other options would be another run, or
    the checkpoint is of another one, RunInUse where --resume auto means a run that another process is training."""
    if options.run.resume is None:
        return Point(options)
    auto = options.run.resume == "auto"
    run = runs.unfinished(options, lambda path: _is_same(options, path)) if auto else runs.existing(options.run.resume)
    if run is None:
        say(f"no unfinished run in {runs.base(options)}: a fresh one begins")
        return Point(options)
    theirs = from_flat(load_yaml(run.path / "config.yaml"))
    options = _merged(options, theirs, run.path)
    status = runs.read_status(run.path)
    snapshot, path = _snapshot(run.path, options.run.resume)
    epochs = compare(snapshot, path, theirs) if snapshot and path else options.optim.epochs
    if status.get("status") == "done" and status.get("epochs", 0) >= options.optim.epochs:
        if snapshot and path and path.name == "last.pt" and snapshot["epoch"] < options.optim.epochs:
            done = f"{snapshot['epoch']} of {options.optim.epochs} epochs done, status.json that all are"
            raise UsageError(f"resume: {path} says {done}; move status.json away to go on from the checkpoint")
        return Point(options, run, finished=True)
    if snapshot is None and status.get("epoch", 0) > (options.optim.start_epoch or 0):
        raise UsageError(f"resume: {run.path} has trained {status['epoch']} epochs and has no readable checkpoint")
    if snapshot is None:
        say(f"{run.path} has no checkpoint yet: it starts over")
        return Point(options, run)
    _check_tables(run.path, options.optim.start_epoch or 0, snapshot["epoch"])
    if options.optim.epochs > epochs:
        both = f"epochs: {epochs} in the run, {options.optim.epochs} now"
        warn(f"{both}: the learning rates from here on may differ from those of a run that had them from the start")
    inside = f" and {snapshot['step']} batches" if snapshot["step"] else ""
    say(f"going on from {path}: {snapshot['epoch']} epochs{inside} done")
    return Point(options, run, snapshot, path, longer=options.optim.epochs > theirs.optim.epochs)


def _check_tables(directory: Path, begun: int, epochs: int) -> None:
    """Warns where measures of the epochs from `begun` to `epochs` are missing. Raises UsageError for a damaged table of
    the run, before anything is changed; other tables are their user's."""
    results.read(directory / runs.ROW)
    for name in TABLES:
        earlier_rows(directory / f"{name}.csv", 0)
    path = directory / "metrics.csv"
    there = [int(row["epoch"]) for row in earlier_rows(path, epochs + 1)]
    if len({*there}) < len(there):
        raise UsageError(f"{path} is damaged: it has an epoch twice; move it away to go on")
    if missing := epochs - begun - len(there):
        warn(f"{path}: epochs whose row is missing: {missing} of {epochs - begun}; it goes on without them")


def begin(asked: Options, options: Options, facts: dict[str, Any]) -> runs.Run:
    """The directory of a fresh run with its description; `asked` are the options before the seed was drawn.

    Two processes that --resume auto makes begin the same run at once come to one run: for the other, raises RunInUse.
    """
    auto = asked.run.resume == "auto"
    with runs.starting(options) if auto else nullcontext():
        if auto:
            runs.unfinished(asked, lambda path: not _changes(asked, path))
        run = runs.create(options)
        run.describe(options, facts)
    return run


def stored(options: Options) -> tuple[Options, dict[str, Any], str]:
    """(options, snapshot, path) of the run that --resume names, to be read only."""
    assert options.run.resume is not None
    if options.run.resume == "auto":
        raise UsageError("evaluate: --resume auto goes on training; name the run directory or the checkpoint to test")
    directory = runs.directory_of(Path(options.run.resume))
    if not (directory / "config.yaml").exists():
        raise UsageError(f"resume: {options.run.resume} is no run directory and no checkpoint of one")
    asked = {name: value for name, value in options.flat().items() if name in OF_TESTS and value != "auto"}
    theirs = from_flat(load_yaml(directory / "config.yaml"))
    options = _merged(options, theirs.replace(**asked), directory)
    snapshot, path = _snapshot(directory, options.run.resume)
    if snapshot is None or path is None:
        raise UsageError(f"resume: {directory} has no readable checkpoint")
    compare(snapshot, path, theirs)
    return options, snapshot, str(path)


def compare(snapshot: Mapping[str, Any], path: Path, theirs: Options) -> int:
    """The epochs that the checkpoint was trained for. Raises UsageError where it is damaged or where `theirs`, the
    options in config.yaml of its run, are not its own."""
    own = snapshot.get("options")
    if not isinstance(own, Mapping) or not all(isinstance(name, str) for name in own):
        raise UsageError(f"{path} is damaged: options: it does not say with which it was made")
    try:
        made = from_flat(own)
    except (UsageError, *WRONG) as error:
        raise UsageError(f"{path} is damaged: options: {'; '.join(str(error).splitlines())}") from error
    before, after = made.flat(), theirs.flat()
    names = [name for name, option in FIELDS.items() if option.metadata["maths"] or name == "pretrained"]
    differ = [name for name in names if before[name] != after[name]]
    differ += ["epochs"] * (made.optim.epochs > theirs.optim.epochs)
    if differ:
        told = [f"{n}: {shown(before[n])} in the checkpoint, {shown(after[n])} in config.yaml" for n in differ]
        raise UsageError(f"resume: {path} is of another run than the config.yaml beside it: {'; '.join(told)}")
    if snapshot["epoch"] > made.optim.epochs:
        raise UsageError(f"{path} is damaged: it has {snapshot['epoch']} epochs done of {made.optim.epochs}")
    progress(path, snapshot)
    return made.optim.epochs


def _is_same(options: Options, path: Path) -> bool:
    """Whether --resume auto may go on with the run at `path`; says why not."""
    changes = _changes(options, path)
    if changes:
        say(f"left alone, another run: {path} ({'; '.join(changes)})")
    return not changes


def _changes(options: Options, path: Path) -> list[str]:
    """Why the run at `path` is another one than `options` ask for."""
    try:
        theirs = from_flat(load_yaml(path / "config.yaml"))
        runs.read_status(path)
    except UsageError as error:
        return str(error).splitlines()
    changes = changed_mathematics(theirs, _settled(options, theirs))
    if options.optim.epochs != theirs.optim.epochs:  # its learning rates were another schedule's
        changes.append(f"epochs: {theirs.optim.epochs} in the run, {options.optim.epochs} now")
    if options.run.pretrained != theirs.run.pretrained:
        changes.append(f"pretrained: {shown(theirs.run.pretrained)} in the run, {shown(options.run.pretrained)} now")
    return changes


def _settled(options: Options, theirs: Options) -> Options:
    """`options` with what they leave open as the run at hand has it."""
    settled: dict[str, object] = {"seed": theirs.run.seed} if options.run.seed is None else {}
    if options.run.precision == "auto":
        settled["precision"] = theirs.run.precision
    kept = {"config": theirs.run.config, "name": theirs.run.name, "pretrained": theirs.run.pretrained}
    return options.replace(**settled, **kept, start_epoch=theirs.optim.start_epoch)


def _merged(options: Options, theirs: Options, directory: Path) -> Options:
    """The options to go on with. Raises UsageError where they would be another run's."""
    options = _settled(options, theirs)
    if changes := changed_mathematics(theirs, options):
        raise UsageError(f"resume: {directory} is another run: {'; '.join(changes)}; start a new one without --resume")
    if options.optim.epochs < theirs.optim.epochs and not options.run.evaluate:
        both = f"epochs: {theirs.optim.epochs} in the run, {options.optim.epochs} now"
        raise UsageError(f"resume: {both}; only more can be asked for")
    return options


def _snapshot(directory: Path, asked: str | None) -> tuple[dict[str, Any] | None, Path | None]:
    """The checkpoint asked for by name, or the furthest readable one; None where there is only the beginning."""
    if asked is not None and asked.endswith(".pt"):
        return checkpoints.load(Path(asked)), Path(asked)
    snapshot, path, complaints = checkpoints.newest(directory / "checkpoints")
    for complaint in complaints:
        warn(f"{complaint}; " + (f"{path} is used instead" if path else "there is no other"))
    return snapshot, path
