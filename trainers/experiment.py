"""One run from options to results: the order in which everything is built, written once."""

import secrets
import shlex
from pathlib import Path
from typing import Any

import torch

import data
from args import Options
from trainers import load_trained, resume, summary
from trainers.build import assemble, batches, build, load_set
from trainers.callbacks import RunRecorder, SignalCallbacks
from trainers.loop import TrainingSetup, evaluate, fit
from trainers.metrics import Metrics
from trainers.restore import best_epoch, is_best, restore
from trainers.training_state import TrainingState
from utils.console import say, warn
from utils.distributed import rendezvous
from utils.distributed.runtime import Runtime
from utils.errors import Stopped, StoppedWaiting
from utils.records import checkpoints, results
from utils.records import run as runs
from utils.text import escaped


def run(options: Options, runtime: Runtime) -> None:
    """Do what `options` ask for: check, evaluate or train.

    Raises UsageError for what the user can put right, RunFailed where the run cannot go on, Stopped after a signal.
    """
    if options.run.check:
        model, _ = build(options.replace(seed=options.run.seed or 0))
        say(summary.layer_table(model) + "\n\n" + summary.resolved(options))
    elif options.run.evaluate:
        test_only(options, runtime)
    else:
        train(options, runtime)


def train(options: Options, runtime: Runtime) -> None:
    """Train a new run or go on with one, and report."""
    if options.run.dry_run:
        options = options.replace(epochs=(options.optim.start_epoch or 0) + 1)
    point = runtime.run_on_first(lambda: resume.find(options))
    options = runtime.run_on_first(lambda: _settled(point.options, runtime))
    if point.finished:
        say(f"{point.run.path if point.run else ''} is finished already; --epochs with a larger number goes on with it")
        return
    runtime = runtime.at(options.run.precision)
    stored = None
    if point.snapshot is None and options.run.pretrained is not None:
        stored = runtime.run_on_first(lambda: load_trained.read(str(options.run.pretrained)))
        load_trained.compare(stored, options)
    model, method = build(options)
    if stored is not None:
        load_trained.load(stored, model, whole=False)
    with runtime.local_first():  # a download, for one
        image_set = load_set(options)
    parts = assemble(options, runtime, model, method, image_set)
    if not options.run.dry_run and runtime.first:
        results.check(_results(options))
    facts = {"device": runtime.device_name, "precision": runtime.precision_name, "seed": options.run.seed}
    run = point.run or runtime.run_on_first(lambda: resume.begin(point.options, options, facts))
    state = TrainingState(epoch=options.optim.start_epoch or 0)
    if point.snapshot is not None and point.path is not None:
        snapshot = point.snapshot
        best = runtime.run_on_first(lambda: best_epoch(run, snapshot))
        state = restore(parts, snapshot, point.path, best)
        if runtime.first and best is None and is_best(snapshot):
            checkpoints.save(run.path / "checkpoints", snapshot, ["best.pt"])
    if point.run is not None and (point.snapshot is None or point.longer):
        run.describe(options, facts)
    with torch.autograd.set_detect_anomaly(options.run.detect_anomaly):
        _go(options, runtime, parts, run, state, point.snapshot, image_set)


def _results(options: Options) -> Path:
    return Path(options.run.results)


def _settled(options: Options, runtime: Runtime) -> Options:
    """With what was left open decided: the seed drawn, the precision chosen."""
    if options.run.seed is None:
        options = options.replace(seed=secrets.randbelow(2**31))
    if options.run.precision == "auto":
        options = options.replace(precision="fp32" if options.needs_fp32 else runtime.precision_name)
    return options


def _go(
    options: Options,
    runtime: Runtime,
    parts: TrainingSetup,
    run: runs.Run,
    state: TrainingState,
    snapshot: dict[str, Any] | None,
    image_set: data.ImageSet,
) -> None:
    """Train `parts` from `state` on in the directory of `run`, whatever happens leaving a true status behind."""
    try:
        say(summary.opening(options, parts.model, runtime, options.trainer, run))
        journal = RunRecorder(run, options, parts, state, snapshot) if runtime.first else SignalCallbacks()
        final: dict[str, float] = {}
        try:
            run.set_status("running", epoch=state.epoch, epochs=options.optim.epochs)
            parts.train.prepare()
            parts.held_out.prepare()
            if snapshot is None:
                journal.save_initial(state)
            elif state.epoch == options.optim.epochs:  # nothing is left to train: last.pt or best.pt may be damaged
                best_is_lost = not state.best
                if best_is_lost:
                    state.best = state.last | {"epoch": state.epoch}
                journal.save(state, is_best=best_is_lost)
            fit(parts, state, options.optim.epochs, journal)
            if state.epoch < options.optim.epochs:
                reason = journal.stop_reason or "a signal to another process"
                raise Stopped(f"stopped by {reason} and saved; {_to_go_on(runtime, run)}")
            final = _finish(options, runtime, parts, run, state, image_set)
        finally:
            journal.close(final)
    except Stopped:
        raise
    except BaseException as error:
        if isinstance(error, StoppedWaiting) and runtime.alone:  # several cannot agree to stop: one waits elsewhere
            run.set_status("stopped", epoch=state.epoch, epochs=options.optim.epochs)
            raise Stopped(f"{error}; {_to_go_on(runtime, run)}") from error
        gone = isinstance(error, Exception) and rendezvous.is_connection_loss(error)
        reason = "another process is gone" if gone else (str(error) or type(error).__name__).split("\n")[0]
        run.set_status("failed", epoch=state.epoch, epochs=options.optim.epochs, reason=reason)
        raise
    run.set_status("done", epoch=state.epoch, epochs=options.optim.epochs)


def _to_go_on(runtime: Runtime, run: runs.Run) -> str:
    program = "python main.py" if runtime.alone else "the launcher and parallel_main.py"
    return f"go on with: {program} --resume {shlex.quote(str(run.path))}"


def _finish(
    options: Options,
    runtime: Runtime,
    parts: TrainingSetup,
    run: runs.Run,
    state: TrainingState,
    image_set: data.ImageSet,
) -> dict[str, float]:
    """Test once where best was picked on a validation share, write the results row, say the summary."""
    tests = None
    if image_set.val is not None:
        test = batches(options, runtime, image_set, image_set.test)
        last = evaluate(parts.model, test, parts.method, runtime)
        best = runtime.run_on_first(lambda: checkpoints.load(run.path / "checkpoints" / "best.pt")["model"])
        parts.model.load_state_dict(best)
        tests = (last, evaluate(parts.model, test, parts.method, runtime))
    if not options.run.dry_run and runtime.first:
        row = summary.row(options, parts.model, state, tests, run, runtime, options.trainer)
        results.keep(run.path / runs.ROW, row)
        results.append(_results(options), row)
    say(summary.summary(options, parts.model, state, tests, run))
    return summary.final_measures(state, tests)


def test_only(options: Options, runtime: Runtime) -> None:
    """--evaluate: test a stored network, print, write nothing."""
    if options.run.resume is not None:
        options, snapshot, path = runtime.run_on_first(lambda: resume.stored(options))
        stored = load_trained.from_content(snapshot, path)
    else:
        stored = runtime.run_on_first(lambda: load_trained.read(str(options.run.pretrained)))
    options = _settled(options, runtime)
    runtime = runtime.at(options.run.precision)
    load_trained.compare(stored, options)
    model, method = build(options)
    load_trained.load(stored, model, whole=True)
    epochs, step = stored.content.get("epoch"), stored.content.get("step")
    if isinstance(epochs, int) and isinstance(step, int):  # else it is of no run of ours: the options alone decide
        whole = step == 0  # else it is from within the epoch after
        method.before_epoch(model, max(epochs - whole, 0))  # the state that it was trained in
    runtime.put(model)
    with runtime.local_first():
        image_set = load_set(options)
    score: Metrics = evaluate(model, batches(options, runtime, image_set, image_set.test), method, runtime)
    epoch = f" (epoch {escaped(stored.content['epoch'])})" if "epoch" in stored.content else ""
    say(f"{stored.path}{epoch}: {options.model.arch}, {summary.kept_in_words(model)}")
    say(f"test loss {score.loss:.4f}  acc@1 {score.top1:.2f} %  acc@5 {score.top5:.2f} %")


def warn_all(options: Options) -> None:
    """The warnings that came up while the options were read."""
    for line in options.warnings:
        warn(line)
