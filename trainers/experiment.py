"""One run from its options to its results: build everything in order, then check, test or train."""

import secrets
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

import data
from args import Options
from data.registry import IN_MEMORY
from trainers import load_trained, resume, summary
from trainers.build import assemble, batches, build, load_set
from trainers.callbacks import RunRecorder, SignalCallbacks
from trainers.checkpoint_entries import check_same_data, description
from trainers.checkpoint_sources import StoredNetwork, network_in, read_network
from trainers.loop import TrainingSetup, evaluate, fit
from trainers.restore import is_best, read_best_epoch, restore
from trainers.training_state import TrainingState
from utils.console import say, warn
from utils.distributed import rendezvous
from utils.distributed.runtime import Runtime
from utils.errors import Stopped, StoppedWaiting
from utils.plugin_files import flags_of
from utils.records import checkpoints, results
from utils.records.registry import check_installed
from utils.records.result_row import result_row
from utils.records.run import LockedRun
from utils.text import escaped


def run(options: Options, runtime: Runtime) -> None:
    """Train, check or evaluate a network, as the options say.

    With --check, only build the network and print its layers and options. With --evaluate, only test a stored network.
    Raises UsageError for wrong input, RunFailed if the run cannot continue, Stopped after a signal.
    """
    if not options.run.evaluate:
        runtime.run_on_first(lambda: check_installed(options.run.tracker))
    if options.run.check:
        model, _ = build(options.replace(seed=options.run.seed or 0))
        say(summary.layer_table(model) + "\n\n" + summary.resolved(options))
    elif options.run.evaluate:
        test_only(options, runtime)
    else:
        train(options, runtime)


def train(options: Options, runtime: Runtime, image_set: data.ImageSet | None = None) -> Path:
    """Train a new run or resume one, then record and print the results.

    `image_set` holds the images, by default those of the option `set`. Return the run directory.

    Raises UsageError for wrong input, RunFailed if the run cannot continue, Stopped after a signal.
    """
    if options.run.dry_run:
        options = options.replace(epochs=(options.optim.start_epoch or 0) + 1)
    point = runtime.run_on_first(lambda: resume.find_resume_point(options))
    with ExitStack() as stack:
        if point.run:
            stack.callback(point.run.close)
            if point.finished:
                say(f"{point.run.path} is finished already; a larger number of --epochs continues it")
                return point.run.path
        return _train_from(point, runtime, image_set, stack)


def _train_from(point: resume.ResumePoint, runtime: Runtime, image_set: data.ImageSet | None, stack: ExitStack) -> Path:
    """Train from a point of an existing run or of a new one, and return the run directory.

    The end of `stack` releases the lock of the run. The other arguments are those of `train`.
    """
    options = runtime.run_on_first(lambda: _with_seed_and_precision(point.options, runtime))
    runtime = runtime.at(options.run.precision)
    stored = None
    if point.checkpoint is None and options.run.pretrained is not None:
        stored = runtime.run_on_first(lambda: read_network(str(options.run.pretrained)))
        load_trained.check_declared(stored, options)
    model, method = build(options, None if image_set is None else image_set.spec)
    if stored is not None:
        say(f"{stored.path}: {load_trained.load_weights(stored, model, whole=False)}")
    with runtime.local_first():  # so that one process per machine downloads a missing data set
        image_set = image_set or load_set(options)
    setup = assemble(options, runtime, model, method, image_set)
    if runtime.first and not options.run.dry_run:
        results.check(Path(options.run.results))
    environment = {"device": runtime.device_name, "precision": runtime.precision_name, "seed": options.run.seed}
    run = point.run or runtime.run_on_first(lambda: resume.create_run(point.options, options, environment))
    stack.callback(run.close)
    state = TrainingState(epoch=options.optim.start_epoch or 0)
    if point.checkpoint is not None and point.path is not None:
        checkpoint = point.checkpoint
        if options.data.set == IN_MEMORY:
            check_same_data(checkpoint, point.path, image_set.spec)
        best_epoch = runtime.run_on_first(lambda: read_best_epoch(run, checkpoint))
        state = restore(setup, checkpoint, point.path, best_epoch)
        if runtime.first and best_epoch is None and is_best(checkpoint):
            checkpoints.save(checkpoint, run.best)
    if point.run is not None and (point.checkpoint is None or point.extended):
        run.describe(options, environment)
    with torch.autograd.set_detect_anomaly(options.run.detect_anomaly):
        _train_with_status(options, setup, run, state, point.checkpoint, image_set)
    return run.path


def _with_seed_and_precision(options: Options, runtime: Runtime) -> Options:
    """Return `options` with missing values of seed and precision filled in.

    A missing seed is drawn at random. The precision "auto" becomes "bf16" or "fp32".
    """
    if options.run.seed is None:
        options = options.replace(seed=secrets.randbelow(2**31))
    if options.run.precision == "auto":
        options = options.replace(precision="fp32" if options.needs_fp32 else runtime.precision_name)
    return options


def _train_with_status(
    options: Options,
    setup: TrainingSetup,
    run: LockedRun,
    state: TrainingState,
    checkpoint: dict[str, Any] | None,
    image_set: data.ImageSet,
) -> None:
    """Train to the last epoch, and write the outcome to status.json.

    The outcome is done, stopped or failed. Raises Stopped after a signal.

    state: the progress from which to train.
    checkpoint: the checkpoint from which the run resumes, None for a new run.
    """
    epochs = options.optim.epochs
    final: dict[str, float] = {}
    try:
        say(summary.opening(options, setup, run))
        if setup.runtime.first:
            entries = description(options, image_set.spec)
            recorder: SignalCallbacks = RunRecorder(run, options, setup, state, checkpoint, entries)
        else:
            recorder = SignalCallbacks()
        try:
            setup.runtime.run_on_first(recorder.start)
            run.set_status("running", epoch=state.epoch, epochs=epochs)
            setup.train.prepare()
            setup.held_out.prepare()
            if checkpoint is None:
                recorder.save_initial(state)
            elif state.epoch == epochs:  # no epoch is left, but last.pt or best.pt may be damaged
                best_is_lost = not state.best
                if best_is_lost:
                    state.best = state.last | {"epoch": state.epoch}
                recorder.save(state, is_best=best_is_lost)
            fit(setup, state, epochs, recorder)
            if state.epoch < epochs:
                reason = recorder.stop_reason or "a signal to another process of the run"
                raise Stopped(f"stopped by {reason} and saved", _program(setup.runtime, options), str(run.path))
            final = _finish(options, setup, run, state, image_set)
        finally:
            recorder.close(final)
    except Stopped:
        raise
    except BaseException as error:
        # Of several processes none stops here, because the others could wait for it in a collective operation for ever.
        if isinstance(error, StoppedWaiting) and setup.runtime.alone:
            run.set_status("stopped", epoch=state.epoch, epochs=epochs)
            raise Stopped(str(error), _program(setup.runtime, options), str(run.path)) from error
        is_lost = isinstance(error, Exception) and rendezvous.is_connection_loss(error)
        reason = "another process is gone" if is_lost else (str(error) or type(error).__name__).split("\n")[0]
        run.set_status("failed", epoch=state.epoch, epochs=epochs, reason=reason)
        raise
    run.set_status("done", epoch=state.epoch, epochs=epochs)


def _program(runtime: Runtime, options: Options) -> str:
    """Return the command that resumes a run, with the flags of its plug-ins, without --resume."""
    program = "python main.py" if runtime.alone else "the launcher and parallel_main.py"
    return program + flags_of(options.run.plugins)


def _finish(
    options: Options, setup: TrainingSetup, run: LockedRun, state: TrainingState, image_set: data.ImageSet
) -> dict[str, float]:
    """Write the row of results.csv, print the summary, and return the final metrics for TensorBoard.

    With --val-split, the networks of the last and of the best epoch are first evaluated on the test set.
    """
    tests, runtime = None, setup.runtime
    if image_set.val is not None:
        test = batches(options, runtime, image_set, image_set.test)
        last = evaluate(setup.model, test, setup.method, runtime)
        setup.model.load_state_dict(runtime.run_on_first(lambda: checkpoints.load(run.best)["model"]))
        tests = (last, evaluate(setup.model, test, setup.method, runtime))
    finished = summary.finished_run(options, setup, state, tests, run)
    if runtime.first and not options.run.dry_run:
        row = result_row(finished)
        results.write_own(run.result, row)
        results.append(Path(options.run.results), row)
    say(summary.summary(finished, setup.model))
    return dict(zip(("test/acc@1", "test/best_acc@1"), finished.test_accuracies, strict=True))


def test_only(options: Options, runtime: Runtime) -> None:
    """Evaluate a stored network on the test set and print its loss and accuracies.

    Implements the option --evaluate. No file is written.
    """
    options, stored = runtime.run_on_first(lambda: _requested_network(options))
    options = _with_seed_and_precision(options, runtime)
    runtime = runtime.at(options.run.precision)
    trained = load_trained.rebuild(stored, options)
    say(f"{stored.path}: {trained.report}")
    runtime.put(trained.model)
    with runtime.local_first():
        image_set = load_set(options)
    test = batches(options, runtime, image_set, image_set.test)
    metrics = evaluate(trained.model, test, trained.method, runtime)
    epoch = f" (epoch {escaped(trained.content['epoch'])})" if "epoch" in trained.content else ""
    say(f"{stored.path}{epoch}: {options.model.arch}, {summary.kept_in_words(trained.model)}")
    say(f"test loss {metrics.loss:.4f}  acc@1 {metrics.top1:.2f} %  acc@5 {metrics.top5:.2f} %")


def _requested_network(options: Options) -> tuple[Options, StoredNetwork]:
    """Read the network that --resume or --pretrained names, and the options to build it with.

    Return (options, stored network).
    """
    if options.run.resume is None:
        return options, read_network(str(options.run.pretrained))
    options, checkpoint, path = resume.read_requested(options)
    return options, network_in(checkpoint, str(path))


def warn_all(options: Options) -> None:
    """Print the warnings that were collected while the options were parsed."""
    for line in options.warnings:
        warn(line)
