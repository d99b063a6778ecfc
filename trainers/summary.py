"""Descriptions of a run: console text, layer table, hparams for TensorBoard, and the data for results.csv."""

import shlex

import yaml
from torch import nn

from args import FIELDS, Options
from models.constraints.attachment import constrained_layers
from models.constraints.counts import layer_counts, parameter_counts
from models.constraints.subnet import GlobalSubnetWeight
from trainers.loop import TrainingSetup
from trainers.metrics import Metrics
from trainers.training_state import TrainingState
from utils.records.result_row import FinishedRun
from utils.records.run import LockedRun, Run
from utils.run_paths import RunPaths


def kept_in_words(model: nn.Module) -> str:
    """Return a phrase with the number and share of kept weights.

    Example: "1,212,512 of 2,425,024 weights kept (50.00 %), 50.00 % pruned".
    """
    kept, total = _weight_counts(model)
    share = 100 * kept / total
    return f"{kept:,} of {total:,} weights kept ({share:.2f} %), {100 - share:.2f} % pruned"


def _weight_counts(model: nn.Module) -> tuple[int, int]:
    """Return the number of kept weights and of all weights of a network.

    Kept weights are those that are not pruned. Only linear and convolutional layers count, without their biases.
    """
    counts = layer_counts(model)
    return sum(c.kept for c in counts), sum(c.total for c in counts)


def layer_table(model: nn.Module) -> str:
    """Return a text table of the layers: weight shape, constraint and number of weights.

    Each layer has one line: name, weight shape, constraint, kept weights, all weights.
    """
    rows = [("layer", "weight shape", "constraint", "kept", "weights")]
    for c in layer_counts(model):
        rows.append((c.name, "x".join(map(str, c.shape)), c.constraint, f"{c.kept:,}", f"{c.total:,}"))
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    aligned = ("<", "<", "<", ">", ">")
    lines = [
        "  ".join(f"{cell:{a}{w}}" for cell, a, w in zip(row, aligned, widths, strict=True)).rstrip() for row in rows
    ]
    total, kept = parameter_counts(model)
    return "\n".join([*lines, f"{kept_in_words(model)}; {total:,} parameters, {kept:,} without the pruned weights"])


def resolved(options: Options) -> str:
    """Return the options as YAML, in the format of config.yaml."""
    return yaml.safe_dump(options.flat(), sort_keys=False).rstrip()


def opening(options: Options, setup: TrainingSetup, run: Run) -> str:
    """Return the first log lines of a run, which state its network, data and device.

    They also state trainer, precision, seed and run directory.
    """
    runtime, note = setup.runtime, setup.method.density_note()
    return (
        f"{options.model.arch} on {options.data.set}, trainer {options.trainer}: {kept_in_words(setup.model)}"
        f"{f'; {note}' if note else ''}\n"
        f"{runtime.device_name}, {runtime.precision_name}, seed {options.run.seed}, run directory {run.path}"
    )


def summary(finished: FinishedRun, model: nn.Module) -> str:
    """Return the last log lines of a run, with its test accuracies and training speed.

    They also state the run directory. `model` is the trained network.
    """
    options, (last, best) = finished.options, finished.test_accuracies
    if finished.picked_on == "test":
        accuracy = f"best {best:.2f} % (epoch {finished.best['epoch']}, picked on the test set)"
    else:
        picked = f"picked on the validation share with {finished.best['acc@1']:.2f} %"
        accuracy = f"best {best:.2f} % (epoch {finished.best['epoch']}, {picked})"
    layers = constrained_layers(model, GlobalSubnetWeight)
    minimal = [name for name, layer in layers.items() if layer.constraint.count_kept(layer.weight) == 1]
    lines = ["", f"network        {options.model.arch}, {kept_in_words(model)}"]
    if minimal:
        lines.append(f"one weight     kept in {', '.join(minimal)}, the minimum per layer with GlobalSubnetConv")
    speed = f"{finished.images_per_second:,.0f} images/s in training, {finished.seconds:.1f} s in all"
    dry = " (dry run: no row added to the results)" if options.run.dry_run else ""
    curves = f"tensorboard --logdir {shlex.quote(str(RunPaths(finished.path).logs))}"
    lines += [f"test accuracy  {accuracy}, last {last:.2f} %", f"speed          {speed}"]
    lines += [f"run directory  {finished.path}{dry}", f"curves         {curves}"]
    return "\n".join(lines)


def hparams(options: Options) -> dict[str, object]:
    """Return the options for TensorBoard's hparams page, which compares runs by them.

    They are a few main options, and all others that affect the training and differ from their default.
    """
    flat = options.flat()
    always = ("arch", "set", "conv_type", "prune_rate", "optimizer", "lr", "batch_size", "epochs", "seed")
    changed = {n for n in flat if FIELDS[n].metadata["maths"] and options.value(n) != FIELDS[n].default}
    return {name: flat[name] for name in (*always, *sorted(changed.difference(always)))}


def finished_run(
    options: Options, setup: TrainingSetup, state: TrainingState, tests: tuple[Metrics, Metrics] | None, run: LockedRun
) -> FinishedRun:
    """Collect the data of a finished run for its summary and its row of results.csv.

    `tests` is (metrics of the last epoch, of the best epoch) on the test set. It is None if the run has no validation
    split. The best epoch is then picked on the test set, and `state` has the test accuracies.
    """
    total, kept = parameter_counts(setup.model)
    kept_weights, weights = _weight_counts(setup.model)
    return FinishedRun(
        options,
        run.path,
        run.id,
        options.trainer,
        setup.runtime.precision_name,
        setup.runtime.device_name,
        parameters=total,
        kept_parameters=kept,
        density=kept_weights / weights,
        last=state.last,
        best=state.best,
        best_train=state.best_train,
        test_accuracies=(tests[0].top1, tests[1].top1) if tests else (state.last["acc@1"], state.best["acc@1"]),
        picked_on="validation" if tests else "test",
        images_per_second=state.train_images / max(state.train_seconds, 1e-9),
        seconds=state.seconds,
    )
