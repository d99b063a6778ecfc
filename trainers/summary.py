"""What a run says of itself in words, tables and its row of results.csv."""

import shlex
import time

import yaml
from torch import nn

from args import FIELDS, Options
from models.constraints import layer_counts, parameter_counts
from trainers.metrics import Metrics
from trainers.training_state import TrainingState
from utils.distributed.runtime import Runtime
from utils.records.results import DATE
from utils.records.run import Run, commit


def kept_in_words(model: nn.Module) -> str:
    """ "1,212,512 of 2,425,024 weights kept (50.00 %), 50.00 % pruned"."""
    counts = layer_counts(model)
    kept, total = sum(c.kept for c in counts), sum(c.total for c in counts)
    share = 100 * kept / total
    return f"{kept:,} of {total:,} weights kept ({share:.2f} %), {100 - share:.2f} % pruned"


def layer_table(model: nn.Module) -> str:
    """A line a layer: name, weight shape, constraint, weights kept, weights."""
    rows = [("layer", "weight shape", "constraint", "kept", "weights")]
    for c in layer_counts(model):
        rows.append((c.name, "x".join(map(str, c.shape)), c.constraint, f"{c.kept:,}", f"{c.total:,}"))
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    aligned = ("<", "<", "<", ">", ">")
    lines = [
        "  ".join(f"{cell:{a}{w}}" for cell, a, w in zip(row, aligned, widths, strict=True)).rstrip() for row in rows
    ]
    total, kept = parameter_counts(model)
    return "\n".join([*lines, f"{kept_in_words(model)}; {total:,} parameters in all, {kept:,} with what is kept"])


def resolved(options: Options) -> str:
    """The configuration as YAML: what config.yaml of the run would hold."""
    return yaml.safe_dump(options.flat(), sort_keys=False).rstrip()


def opening(options: Options, model: nn.Module, runtime: Runtime, trainer: str, run: Run) -> str:
    """What is about to be trained, where."""
    return (
        f"{options.model.arch} on {options.data.set}, trainer {trainer}: {kept_in_words(model)}"
        f"{coming(options)}\n"
        f"{runtime.device_name}, {runtime.precision_name}, seed {options.run.seed}, run directory {run.path}"
    )


def coming(options: Options) -> str:
    """What the first epochs do otherwise."""
    c, o = options.constraint, options.optim
    dense = f"; all of them in the first {o.dense_epochs} epochs" * (o.trainer == "lottery")
    then = "then " if dense else ""
    falling = f"; {then}GlobalSubnetConv comes down to that from 50 % in {c.prune_rate_epoch} epochs"
    cubic = f"; SparseConv comes down to {100 * c.density:g} %" * (c.rewires_layers and c.density_schedule == "cubic")
    progress = "; SparseConv comes down when connections first move" * (c.rewires_filters and c.sparse_hold)
    return dense + falling * (c.density_falls and c.prune_rate_epoch > 0) + cubic + progress


def summary(
    options: Options, model: nn.Module, state: TrainingState, tests: tuple[Metrics, Metrics] | None, run: Run
) -> str:
    """The last words of a run. `tests`: (last epoch, best epoch) on the test set where best was picked elsewhere."""
    best, last = state.best, state.last
    if tests is None:
        accuracy = (
            f"test accuracy  best {best['acc@1']:.2f} % (epoch {best['epoch']}, picked on the test set), "
            f"last {last['acc@1']:.2f} %"
        )
    else:
        accuracy = (
            f"test accuracy  {tests[1].top1:.2f} % (epoch {best['epoch']}, picked on the validation share: "
            f"{best['acc@1']:.2f} % there), last {tests[0].top1:.2f} %"
        )
    floor = [c.name for c in layer_counts(model) if c.constraint == "GlobalSubnetWeight" and c.kept == 1]
    return "\n".join(
        [
            "",
            f"network        {options.model.arch}, {kept_in_words(model)}",
            *(
                [f"at the floor   {', '.join(floor)}: one weight kept, the least that the global selection leaves"]
                * bool(floor)
            ),
            accuracy,
            f"speed          {state.train_images / max(state.train_seconds, 1e-9):,.0f} images/s in training, "
            f"{state.seconds:.1f} s in all",
            f"run directory  {run.path}" + " (a dry run: no row of results)" * bool(options.run.dry_run),
            f"curves         tensorboard --logdir {shlex.quote(str(run.path / 'logs'))}",
        ]
    )


def hparams(options: Options) -> dict[str, object]:
    """What TensorBoard compares runs by: the options that make the run what it is and are not as they always are."""
    flat = options.flat()
    always = ("arch", "set", "conv_type", "prune_rate", "optimizer", "lr", "batch_size", "epochs", "seed")
    told = {name for name, option in FIELDS.items() if option.metadata["maths"] and flat[name] != option.default}
    return {name: flat[name] for name in (*always, *sorted(told.difference(always)))}


def final_measures(state: TrainingState, tests: tuple[Metrics, Metrics] | None) -> dict[str, float]:
    """What stands beside the hparams in TensorBoard, under the tags of the curves that it ends."""
    last, best = (t.top1 for t in tests) if tests else (state.last["acc@1"], state.best["acc@1"])
    return {"test/acc@1": last, "test/best_acc@1": best}


def row(
    options: Options,
    model: nn.Module,
    state: TrainingState,
    tests: tuple[Metrics, Metrics] | None,
    run: Run,
    runtime: Runtime,
    trainer: str,
) -> dict[str, object]:
    """The run's row of results.csv (utils.records.results.COLUMNS)."""
    total, kept = parameter_counts(model)
    counts = layer_counts(model)
    density = sum(c.kept for c in counts) / sum(c.total for c in counts)
    last, best = (t.top1 for t in tests) if tests else (state.last["acc@1"], state.best["acc@1"])
    accuracies = {
        "Current Val Top 1": state.last["acc@1"],
        "Current Val Top 5": state.last["acc@5"],
        "Best Val Top 1": state.best["acc@1"],
        "Best Val Top 5": state.best["acc@5"],
        "Best Train Top 1": state.best_train["acc@1"],
        "Best Train Top 5": state.best_train["acc@5"],
        "Last Epoch Test Top 1": last,
        "Best Epoch Test Top 1": best,
    }
    constraint = options.constraint
    return {
        "Date Finished": time.strftime(DATE),
        "Base Config": options.run.config,
        **{name: f"{value:.2f}" for name, value in accuracies.items()},
        "Name": options.run.name,
        "Seed": options.run.seed,
        "Prune Rate": constraint.density,
        "Learning Rate": options.optim.lr,
        "Epochs": options.optim.epochs,
        "Weight Decay": options.optim.weight_decay,
        "Learn BN": constraint.learn_batchnorm,
        "Tune BN": constraint.tune_batchnorm,
        "Bias Only": constraint.bn_bias_only,
        "Run Directory": run.path,
        "Status": "done",
        "Arch": options.model.arch,
        "Set": options.data.set,
        "Conv Type": constraint.conv_type,
        "Trainer": trainer,
        "Kept": f"{density:.6g}",
        "Pruned": f"{1 - density:.6g}",
        "Best Epoch": state.best["epoch"],
        "Best Picked On": "validation" if tests else "test",
        "Params": total,
        "Kept Params": kept,
        "Precision": runtime.precision_name,
        "Device": runtime.device_name,
        "Images/s": f"{state.train_images / max(state.train_seconds, 1e-9):.1f}",
        "Seconds": f"{state.seconds:.1f}",
        "Commit": commit(),
        "Run ID": f"{run.id}-{options.optim.epochs}",  # another length is another result
    }
