"""One run from options to results: the order in which everything is built, written once."""

import secrets
from pathlib import Path
from typing import Any

import torch
from torch import nn

import data
import models
from args import Options, UsageError
from data.batches import DeviceBatches
from models.constraints import CONV_TYPES, constrain, weight_layers
from models.initial import initialise
from trainers import METHODS, report, resumption
from trainers.journal import Journal, restore
from trainers.loop import Parts, Score, State, evaluate, fit
from trainers.method import Method
from trainers.optimizers import freeze_weights, make_optimizer
from trainers.schedules import schedule
from utils import checkpoints, results
from utils import run as runs
from utils.progress import say, warn
from utils.runtime import Runtime, seed_everything
from utils.signals import Stopped


def run(options: Options, runtime: Runtime) -> None:
    """Do what `options` ask for: check, evaluate or train.

    Raises UsageError for what the user can put right, RunFailed where the run cannot go on, Stopped after a signal.
    """
    if options.run.check:
        model, _ = build(options.replace(seed=options.run.seed or 0))
        say(report.layer_table(model) + "\n\n" + report.resolved(options))
    elif options.run.evaluate:
        test_only(options, runtime)
    else:
        train(options, runtime)


def train(options: Options, runtime: Runtime) -> None:
    """Train a new run or go on with one, and report."""
    if options.run.dry_run:
        options = options.replace(epochs=(options.optim.start_epoch or 0) + 1)
    point = resumption.find(options)
    options = _settled(point.options, runtime)
    if point.finished:
        say(f"{point.run.path if point.run else ''} is finished already; --epochs with a larger number goes on with it")
        return
    runtime = runtime.at(options.run.precision)
    model, method = build(options)
    image_set = load_set(options)
    parts = assemble(options, runtime, model, method, image_set)
    if point.snapshot is None:
        _pretrained(options, model)
    if not options.run.dry_run:
        results.check(_results(options))
    run = point.run or runs.create(options)
    if point.snapshot is None or point.longer:
        run.describe(
            options, {"device": runtime.device_name, "precision": runtime.precision_name, "seed": options.run.seed}
        )
    with torch.autograd.set_detect_anomaly(options.run.detect_anomaly):
        _go(options, runtime, parts, run, point.snapshot, image_set)


def _results(options: Options) -> Path:
    return Path(options.run.results).expanduser()


def _settled(options: Options, runtime: Runtime) -> Options:
    """With what was left open decided: the seed drawn, the precision chosen."""
    if options.run.seed is None:
        options = options.replace(seed=secrets.randbelow(2**31))
    if options.run.precision == "auto":
        options = options.replace(precision=runtime.precision_name)
    return options


def build(options: Options) -> tuple[nn.Module, Method]:
    """The constrained network on the CPU, as drawn from the seed, and the method that trains it.

    Raises UsageError for options that do not fit each other or the data set.
    """
    spec, m, c = data.SPECS[options.data.set], options.model, options.constraint
    if m.num_classes not in (None, spec.num_classes):
        raise UsageError(
            f"num_classes: {m.num_classes} given, but {options.data.set} has {spec.num_classes}; leave it out"
        )
    assert options.run.seed is not None
    seed_everything(options.run.seed)
    generator = torch.Generator().manual_seed(options.run.seed)
    own = {"hidden": m.hidden, "bias": m.bias or None, "activation": m.activation, "norm": m.norm}
    try:
        model = models.build(
            m.arch,
            num_classes=spec.num_classes,
            in_shape=spec.in_shape,
            bn_type=m.bn_type,
            width_mult=m.width_mult,
            **{name: value for name, value in own.items() if value is not None},
        )
        initialise(
            model,
            m.init,
            mode=m.mode,
            nonlinearity=m.nonlinearity,
            fan_scale=1 - c.density if m.scale_fan else 1.0,
            bn_weight=m.bn_weight_init,
            bn_bias=m.bn_bias_init,
            generator=generator,
        )
        layers = list(weight_layers(model))
        dense = (layers[0],) * c.first_layer_dense + (layers[-1],) * c.last_layer_dense
        first = None if c.first_layer_dense else c.first_layer_type
        constrain(
            model,
            c.conv_type,
            density=c.density,
            first_layer_type=first,
            dense=dense,
            score_init=c.score_init_constant,
            generator=generator,
        )
        if c.freeze_weights:
            freeze_weights(
                model, learn_batchnorm=c.learn_batchnorm, tune_batchnorm=c.tune_batchnorm, bn_bias_only=c.bn_bias_only
            )
        method = make_method(options)
        method.prepare(model)
        method.parameter_groups(model)
    except (ValueError, OverflowError, RuntimeError) as error:  # RuntimeError: a network no memory can hold
        raise UsageError(str(error).splitlines()[0]) from error
    return model, method


def make_method(options: Options) -> Method:
    """The training method with its own options."""
    o, trainer = options.optim, trainer_name(options)
    own: dict[str, Any] = {"label_smoothing": o.label_smoothing or 0.0}
    own |= {"weight_decay": o.weight_decay, "no_bn_decay": o.no_bn_decay}
    if trainer != "default":
        own["prune_rate_epoch"] = options.constraint.prune_rate_epoch
    if trainer == "lottery":
        own["dense_epochs"] = o.dense_epochs
    if trainer == "ss":
        own["score_l1"] = o.score_l1
    return METHODS[trainer](**own)


def trainer_name(options: Options) -> str:
    """`default` with a constrained conv_type is the trainer of that type."""
    kinds = [options.constraint.conv_type, options.constraint.first_layer_type or "DenseConv"]
    wanted = [CONV_TYPES[kind].trainer for kind in kinds if CONV_TYPES[kind].trainer != "default"]
    return wanted[0] if options.optim.trainer == "default" and wanted else options.optim.trainer


def load_set(options: Options) -> data.ImageSet:
    """The data set, read and verified."""
    d = options.data
    return data.load(d.set, d.data, download=d.download, val_split=d.val_split)


def batches(options: Options, runtime: Runtime, split: data.Split, *, train: bool) -> DeviceBatches:
    """`split` on the device, in batches."""
    return DeviceBatches(
        split,
        data.SPECS[options.data.set],
        device=runtime.device,
        batch_size=options.data.batch_size,
        seed=options.run.seed,
        train=train,
        limit=options.run.dry_run,
    )


def assemble(options: Options, runtime: Runtime, model: nn.Module, method: Method, image_set: data.ImageSet) -> Parts:
    """Move the network to the device and put everything together that the loop needs."""
    o = options.optim
    runtime.place(model)
    factor = schedule(o.lr_policy, epochs=o.epochs, warmup=o.warmup_length, step=o.lr_adjust, gamma=o.lr_gamma)
    try:
        assert all(o.lr * factor(epoch) >= 0 for epoch in range(o.epochs))
    except OverflowError as error:
        raise UsageError(
            f"lr_gamma: {o.lr_gamma} makes the learning rate infinite; it is a factor, such as 0.1"
        ) from error
    groups = method.parameter_groups(model)
    held_out = image_set.test if image_set.val is None else image_set.val
    return Parts(
        model,
        method,
        make_optimizer(o.optimizer, groups, lr=o.lr, momentum=o.momentum, nesterov=o.nesterov),
        runtime,
        batches(options, runtime, image_set.train, train=True),
        batches(options, runtime, held_out, train=False),
        rate=lambda epoch: o.lr * factor(epoch),
        clip=o.grad_clip,
        look_every=options.run.print_freq,
    )


def _go(
    options: Options,
    runtime: Runtime,
    parts: Parts,
    run: runs.Run,
    snapshot: dict[str, Any] | None,
    image_set: data.ImageSet,
) -> None:
    """Train `parts` in the directory of `run`, whatever happens leaving a true status behind."""
    state = State(epoch=options.optim.start_epoch or 0)
    try:
        if snapshot is not None:
            state = restore(parts, snapshot, run)
        say(report.opening(options, parts.model, runtime, trainer_name(options), run))
        journal = Journal(run, options, parts, state, resumed=snapshot is not None)
        final: dict[str, float] = {}
        try:
            run.set_status("running", epoch=state.epoch, epochs=options.optim.epochs)
            if snapshot is None:
                journal.save_initial(state)
            fit(parts, state, options.optim.epochs, journal)
            if state.epoch < options.optim.epochs:
                raise Stopped(
                    f"stopped by {journal.stop_reason} and saved; go on with: python main.py --resume {run.path}"
                )
            final = _finish(options, runtime, parts, run, state, image_set)
        finally:
            journal.close(final)
    except Stopped:
        raise
    except BaseException as error:
        reason = (str(error) or type(error).__name__).split("\n")[0]
        run.set_status("failed", epoch=state.epoch, epochs=options.optim.epochs, reason=reason)
        raise
    run.set_status("done", epoch=state.epoch, epochs=options.optim.epochs)


def _finish(
    options: Options, runtime: Runtime, parts: Parts, run: runs.Run, state: State, image_set: data.ImageSet
) -> dict[str, float]:
    """Test once where best was picked on a validation share, write the results row, say the summary."""
    tests = None
    if image_set.val is not None:
        test = batches(options, runtime, image_set.test, train=False)
        last = evaluate(parts.model, test, parts.method, runtime)
        parts.model.load_state_dict(checkpoints.load(run.path / "checkpoints" / "best.pt")["model"])
        tests = (last, evaluate(parts.model, test, parts.method, runtime))
    if not options.run.dry_run:
        row = report.row(options, parts.model, state, tests, run, runtime, trainer_name(options))
        results.append(_results(options), row)
    say(report.summary(options, parts.model, state, tests, run))
    return report.final_measures(state, tests)


def _pretrained(options: Options, model: nn.Module) -> None:
    """Start from the network of another run's checkpoint."""
    if options.run.pretrained is not None:
        _load_network(options, model, _pretrained_file(options), options.run.pretrained)


def _pretrained_file(options: Options) -> dict[str, Any]:
    try:
        return checkpoints.load(Path(str(options.run.pretrained)).expanduser())
    except UsageError as error:
        raise UsageError(f"pretrained: {error}") from error


def test_only(options: Options, runtime: Runtime) -> None:
    """--evaluate: test a stored network, print, write nothing."""
    if options.run.resume is not None:
        options, snapshot, path = resumption.stored(options)
    else:
        path, snapshot = str(options.run.pretrained), _pretrained_file(options)
    options = _settled(options, runtime)
    runtime = runtime.at(options.run.precision)
    model, method = build(options)
    _load_network(options, model, snapshot, path)
    if options.run.resume is not None:
        whole = snapshot["step"] == 0  # else it is from within the epoch after
        method.before_epoch(model, max(snapshot["epoch"] - whole, 0))  # the state that it was trained in
    runtime.place(model)
    score: Score = evaluate(model, batches(options, runtime, load_set(options).test, train=False), method, runtime)
    say(f"{path} (epoch {snapshot['epoch']}): {options.model.arch}, {report.kept_in_words(model)}")
    say(f"test loss {score.loss:.4f}  acc@1 {score.top1:.2f} %  acc@5 {score.top5:.2f} %")


def _load_network(options: Options, model: nn.Module, snapshot: dict[str, Any], path: str) -> None:
    """Raises UsageError where the file's network is another one than the options ask for."""
    theirs, ours = snapshot.get("options", {}), options.flat()
    differ = [
        f"{name} is {theirs[name]} there and {ours[name]} here"
        for name in ("arch", "conv_type", "prune_rate")
        if name in theirs and theirs[name] != ours[name]
    ]
    if differ:
        raise UsageError(
            f"{path} holds another network: {'; '.join(differ)}; give the same options or the run's config.yaml"
        )
    try:
        model.load_state_dict(snapshot["model"])
    except RuntimeError as error:
        raise UsageError(f"{path} does not fit this network: {str(error).splitlines()[1].strip()}") from error


def warn_all(options: Options) -> None:
    """The warnings that came up while the options were read."""
    for line in options.warnings:
        warn(line)
