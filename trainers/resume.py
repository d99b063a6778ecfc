"""Resumption: find the run and the checkpoint that --resume names, and check that the options belong to that run."""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from args import FIELDS, Options, differs, from_flat, training_changes
from trainers.extension import warn_if_extended
from trainers.registry import TRAINERS
from trainers.restore import DAMAGE_ERRORS, training_state
from utils.console import say, warn
from utils.errors import UsageError
from utils.records import checkpoints, results
from utils.records import run as runs
from utils.records.epoch_tables import earlier_rows
from utils.records.run import LockedRun, Run
from utils.run_paths import locate_run
from utils.text import combined_error, shown

TEST_OPTIONS = ("precision", "batch_size", "test_batch_size")  # --evaluate may change these options of the run


@dataclass(frozen=True)
class ResumePoint:
    """Point at which training starts, in a new or an existing run.

    In an existing run it is the start of the run or a checkpoint.

    options: the requested options. Options that were not set come from the run.
    run: the existing run, None for a new one.
    checkpoint: the content of the checkpoint, None to train `run` from its start.
    path: the file of `checkpoint`.
    finished: True if no epoch is left to train.
    extended: True if more epochs are requested than config.yaml has.
    """

    options: Options
    run: LockedRun | None = None
    checkpoint: dict[str, Any] | None = None
    path: Path | None = None
    finished: bool = False
    extended: bool = False


def find_resume_point(options: Options) -> ResumePoint:
    """Find the run and checkpoint that --resume names, and lock the run.

    Without --resume, the result is the start of a new run. Raises UsageError if there is no such run, or if the options
    or the checkpoint are of another run. Raises RunInUse if --resume auto finds a run that another process is training.
    """
    if options.run.resume is None:
        return ResumePoint(options)
    if options.run.resume == "auto":
        run = runs.lock_unfinished(options, lambda candidate: _is_requested(options, candidate))
    else:
        run = runs.lock_existing(Path(options.run.resume))
    if run is None:
        say(f"no unfinished run in {runs.base_directory(options)}: a new run starts")
        return ResumePoint(options)
    try:
        return _point_in(run, options)
    except BaseException:
        run.close()  # in a notebook the exception may live on, and the lock with it
        raise


def _point_in(run: LockedRun, options: Options) -> ResumePoint:
    """Find the checkpoint of an existing run from which to resume. The rest is as in `find_resume_point`."""
    run_options = run.options()
    options = _resumed_options(options, run_options, run)
    status = run.status()
    checkpoint, path = _requested_checkpoint(run, options.run.resume) or (None, None)
    epochs = check_same_run(checkpoint, path, run_options) if checkpoint and path else options.optim.epochs
    if status.get("status") == "done" and status.get("epochs", 0) >= options.optim.epochs:
        if checkpoint and path == run.last and checkpoint["epoch"] < options.optim.epochs:
            trained = f"{checkpoint['epoch']} of {options.optim.epochs} epochs trained, status.json records all of them"
            raise UsageError(f"resume: {path} has {trained}; move status.json away to resume from the checkpoint")
        return ResumePoint(options, run, finished=True)
    if checkpoint is None or path is None:
        if status.get("epoch", 0) > (options.optim.start_epoch or 0):
            lost = f"has trained {status['epoch']} epochs and has no readable checkpoint"
            raise UsageError(f"resume: {run.path} {lost}; start a new run without --resume")
        say(f"{run.path} has no checkpoint yet: it starts from the beginning")
        return ResumePoint(options, run)
    _check_tables(run, options.optim.start_epoch or 0, checkpoint["epoch"])
    warn_if_extended(options, epochs, checkpoint["epoch"] + (checkpoint["step"] > 0))
    batches = f" and {checkpoint['step']} batches" if checkpoint["step"] else ""
    say(f"resuming from {path}: {checkpoint['epoch']} epochs{batches} done")
    return ResumePoint(options, run, checkpoint, path, extended=options.optim.epochs > run_options.optim.epochs)


def _check_tables(run: Run, start_epoch: int, epochs: int) -> None:
    """Raise UsageError if a CSV file of `run` is damaged.

    Warn if metrics.csv has no row for some of the epochs after `start_epoch` up to `epochs`. Only files that `run`
    wrote into its directory are read.
    """
    results.read(run.result, results.MOVE_AWAY)
    for name in (name for row in TRAINERS.values() for name in row.tables):
        earlier_rows(run.path / f"{name}.csv", 0)
    recorded = [int(row["epoch"]) for row in earlier_rows(run.metrics, epochs + 1)]
    if len({*recorded}) < len(recorded):
        raise UsageError(f"{run.metrics} is damaged: it has two rows of one epoch; move it away to continue")
    trained = epochs - start_epoch
    if missing := trained - len(recorded):
        warn(f"{run.metrics}: epochs without a row: {missing} of {trained}; the run continues without these rows")


def create_run(requested: Options, options: Options, environment: dict[str, Any]) -> LockedRun:
    """Create and lock the directory of a new run.

    The directory gets config.yaml and environment.json. With --resume auto, raise RunInUse if another process trains a
    run with the options `requested`.

    requested: the options before a random seed was set.
    environment: device, precision and seed, for environment.json.
    """
    auto = requested.run.resume == "auto"
    with runs.exclusive_start(options) if auto else nullcontext():
        if auto:
            runs.check_none_in_training(requested, lambda candidate: not _changes(requested, candidate))
        run = runs.create(options)
        run.describe(options, environment)
    return run


def read_requested(options: Options) -> tuple[Options, dict[str, Any], Path]:
    """Read the checkpoint that --resume names, without locking its run.

    Return (options of the run, checkpoint, path). Raises UsageError if there is no such run, it has no readable
    checkpoint, or the options are of another run.
    """
    assert options.run.resume is not None
    if options.run.resume == "auto":
        raise UsageError("evaluate: --resume auto continues training; name the run directory or the checkpoint to test")
    run = Run(locate_run(Path(options.run.resume), "resume: ")[0].path)
    overrides = {name: value for name, value in options.flat().items() if name in TEST_OPTIONS and value != "auto"}
    run_options = run.options()
    options = _resumed_options(options, run_options.replace(**overrides), run)
    found = _requested_checkpoint(run, options.run.resume)
    if found is None:
        raise UsageError(f"resume: {run.path} has no readable checkpoint; pass another run")
    check_same_run(*found, run_options)
    return options, *found


def check_same_run(checkpoint: Mapping[str, Any], path: Path, run_options: Options) -> int:
    """Check that a checkpoint belongs to a run, and return the checkpoint's number of epochs.

    The number is the option `epochs` of the checkpoint. `run_options` are those of the run's config.yaml. Raises
    UsageError if the checkpoint is damaged or was written with other options.
    """
    stored = checkpoint.get("options")
    if not isinstance(stored, Mapping) or not all(isinstance(name, str) for name in stored):
        raise UsageError(f"{path} is damaged: options: they are missing, or are not a mapping by name")
    try:
        checkpoint_options = from_flat(stored)
    except (UsageError, *DAMAGE_ERRORS) as error:
        raise UsageError(f"{path} is damaged: options: {'; '.join(str(error).splitlines())}") from error
    epochs = checkpoint_options.optim.epochs
    before, after = checkpoint_options.value, run_options.value
    names = [name for name, option in FIELDS.items() if option.metadata["maths"] or name == "pretrained"]
    differing = [name for name in names if differs(checkpoint_options, run_options, name)]
    if epochs > run_options.optim.epochs:
        differing.append("epochs")
    if differing:
        changes = [f"{n}: {shown(before(n))} in the checkpoint, {shown(after(n))} in config.yaml" for n in differing]
        raise combined_error(f"resume: {path} is of another run than the config.yaml beside it: {c}" for c in changes)
    if checkpoint["epoch"] > epochs:
        raise UsageError(
            f"{path} is damaged: its epoch, {checkpoint['epoch']}, is above its number of epochs, {epochs}"
        )
    training_state(path, checkpoint)
    return epochs


def _is_requested(options: Options, run: Run) -> bool:
    """Return True if `options` request the same training as an existing run.

    --resume auto may then resume `run`. Otherwise print the differences.
    """
    changes = _changes(options, run)
    if changes:
        say("\n".join(f"--resume auto does not resume {run.path}: {change}" for change in changes))
    return not changes


def _changes(options: Options, run: Run) -> list[str]:
    """Return the reasons why `options` cannot resume `run`, one line each.

    A reason is an option that changes the training and has another value, or a damaged file of the run.
    """
    try:
        run_options = run.options()
        run.status()
    except UsageError as error:
        return str(error).splitlines()
    changes = training_changes(run_options, _with_run_options(options, run_options))
    if options.optim.epochs != run_options.optim.epochs:  # the learning-rate schedule depends on the number
        changes.append(f"epochs: {run_options.optim.epochs} in the run, {options.optim.epochs} now")
    if options.run.pretrained != run_options.run.pretrained:
        before, now = shown(run_options.run.pretrained), shown(options.run.pretrained)
        changes.append(f"pretrained: {before} in the run, {now} now")
    return changes


def _with_run_options(options: Options, run_options: Options) -> Options:
    """Return `options`, with some values replaced by those of the run to resume.

    The run was started with `run_options`. The values of config, name, pretrained and start_epoch are those of the run.
    Seed and precision are too, if they are not set.
    """
    run = run_options.run
    values: dict[str, object] = {"config": run.config, "name": run.name, "pretrained": run.pretrained}
    if options.run.seed is None:
        values["seed"] = run.seed
    if options.run.precision == "auto":
        values["precision"] = run.precision
    return options.replace(**values, start_epoch=run_options.optim.start_epoch)


def _resumed_options(options: Options, run_options: Options, run: Run) -> Options:
    """Return the options with which to resume `run`.

    They are the requested `options` with values of the run's own `run_options`. Raises UsageError if the request would
    change the results of the run.
    """
    options = _with_run_options(options, run_options)
    same_plugins = options.replace(plugins=run_options.run.plugins)  # another version may be tested, but not trained
    if changes := training_changes(run_options, same_plugins if options.run.evaluate else options):
        raise combined_error(
            f"resume: {run.path} has other options: {change}; start a new one without --resume" for change in changes
        )
    if options.optim.epochs < run_options.optim.epochs and not options.run.evaluate:
        change = f"epochs: {run_options.optim.epochs} in the run, {options.optim.epochs} now"
        raise UsageError(f"resume: {change}; pass --epochs {run_options.optim.epochs} or more")
    return options


def _requested_checkpoint(run: Run, requested: str | None) -> tuple[dict[str, Any], Path] | None:
    """Load the checkpoint from which to resume `run`.

    Return (checkpoint, path), or None if none is readable. `requested` is the argument of --resume. If it is no
    checkpoint file, load the newest checkpoint of `run`.
    """
    file = None if requested is None or requested == "auto" else locate_run(Path(requested))[1]
    return checkpoints.newest(run) if file is None else (checkpoints.load(file), file)
