"""Which run to go on with, from which checkpoint, and whether the options still mean the same run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from args import Options, UsageError, changed_mathematics, from_flat, load_yaml
from utils import checkpoints
from utils import run as runs
from utils.declared import shown
from utils.progress import say, warn
from utils.recorders import MetricsCsv

OF_TESTS = ("precision", "batch_size", "test_batch_size")  # in which a test may be another than the training


@dataclass(frozen=True)
class Point:
    """Where to begin: `options` as the run has them; no `run` means a fresh one, no `snapshot` its very beginning."""

    options: Options
    run: runs.Run | None = None
    snapshot: dict[str, Any] | None = None
    finished: bool = False
    longer: bool = False


def find(options: Options) -> Point:
    """The point that --resume means. Raises UsageError where it means none, or other options would be another run."""
    if options.run.resume is None:
        return Point(options)
    auto = options.run.resume == "auto"
    run = runs.unfinished(options, lambda path: _is_same(options, path)) if auto else runs.existing(options.run.resume)
    if run is None:
        say(f"no unfinished run in {runs.base(options)}: a fresh one begins")
        return Point(options)
    options, longer = _merged(options, from_flat(load_yaml(run.path / "config.yaml")), run.path)
    status = runs.read_status(run.path)
    if status.get("status") == "done" and status.get("epochs", 0) >= options.optim.epochs:
        return Point(options, run, finished=True)
    snapshot, path = _snapshot(run.path, options.run.resume)
    if snapshot is None and status.get("epoch", 0) > (options.optim.start_epoch or 0):
        raise UsageError(f"resume: {run.path} has trained {status['epoch']} epochs and has no readable checkpoint")
    if snapshot is None:
        say(f"{run.path} has no checkpoint yet: it starts over")
        return Point(options, run)
    MetricsCsv(run.path / "metrics.csv", snapshot["epoch"])  # a damaged one is refused before anything is changed
    inside = f" and {snapshot['step']} batches" if snapshot["step"] else ""
    say(f"going on from {path}: {snapshot['epoch']} epochs{inside} done")
    return Point(options, run, snapshot, longer=longer)


def stored(options: Options) -> tuple[Options, dict[str, Any], str]:
    """(options, snapshot, path) of the run that --resume names, to be read only."""
    assert options.run.resume is not None
    if options.run.resume == "auto":
        raise UsageError("evaluate: --resume auto goes on training; name the run directory or the checkpoint to test")
    directory = runs.directory_of(Path(options.run.resume))
    if not (directory / "config.yaml").exists():
        raise UsageError(f"resume: {options.run.resume} is no run directory and no checkpoint of one")
    asked = {name: value for name, value in options.flat().items() if name in OF_TESTS and value != "auto"}
    options, _ = _merged(options, from_flat(load_yaml(directory / "config.yaml")).replace(**asked), directory)
    snapshot, path = _snapshot(directory, options.run.resume)
    if snapshot is None or path is None:
        raise UsageError(f"resume: {directory} has no readable checkpoint")
    return options, snapshot, str(path)


def _is_same(options: Options, path: Path) -> bool:
    """Whether --resume auto may go on with the run at `path`; says why not."""
    try:
        theirs = from_flat(load_yaml(path / "config.yaml"))
    except UsageError as error:
        changes = [str(error)]
    else:
        changes = changed_mathematics(theirs, _settled(options, theirs))
        if options.optim.epochs != theirs.optim.epochs:  # its learning rates were another schedule's
            changes.append(f"epochs: {theirs.optim.epochs} in the run, {options.optim.epochs} now")
        if options.run.pretrained != theirs.run.pretrained:
            changes.append(
                f"pretrained: {shown(theirs.run.pretrained)} in the run, {shown(options.run.pretrained)} now"
            )
    if changes:
        say(f"left alone, another run: {path} ({'; '.join(changes)})")
    return not changes


def _settled(options: Options, theirs: Options) -> Options:
    """`options` with what they leave open as the run at hand has it."""
    settled: dict[str, object] = {"seed": theirs.run.seed} if options.run.seed is None else {}
    if options.run.precision == "auto":
        settled["precision"] = theirs.run.precision
    kept = {"config": theirs.run.config, "name": theirs.run.name, "pretrained": theirs.run.pretrained}
    return options.replace(**settled, **kept, start_epoch=theirs.optim.start_epoch)


def _merged(options: Options, theirs: Options, directory: Path) -> tuple[Options, bool]:
    """The options to go on with, and whether they ask for more epochs than the run had."""
    options = _settled(options, theirs)
    if changes := changed_mathematics(theirs, options):
        raise UsageError(f"resume: {directory} is another run: {'; '.join(changes)}; start a new one without --resume")
    both = f"epochs: {theirs.optim.epochs} in the run, {options.optim.epochs} now"
    if options.optim.epochs < theirs.optim.epochs and not options.run.evaluate:
        raise UsageError(f"resume: {both}; only more can be asked for")
    longer = options.optim.epochs > theirs.optim.epochs
    if longer and not options.run.evaluate:
        warn(f"{both}: the learning rates from here on may differ from those of a run that had them from the start")
    return options, longer


def _snapshot(directory: Path, asked: str | None) -> tuple[dict[str, Any] | None, Path | None]:
    """The checkpoint asked for by name, or the furthest readable one; None where there is only the beginning."""
    if asked is not None and asked.endswith(".pt"):
        return checkpoints.load(Path(asked)), Path(asked)
    snapshot, path, complaints = checkpoints.newest(directory / "checkpoints")
    for complaint in complaints:
        warn(f"{complaint}; " + (f"{path} is used instead" if path else "there is no other"))
    return snapshot, path
