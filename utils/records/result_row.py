"""The columns of results.csv, each with the function that computes its value from a finished run."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from args import Options
from utils.records.environment import commit

DATE_FORMAT = "%m-%d-%y_%H:%M:%S"


@dataclass(frozen=True)
class FinishedRun:
    """Data of a finished run, from which its row of results.csv is computed.

    last, best: loss, acc@1 and acc@5 (%) of the last and of the best epoch. `best` also has the epoch's number.
    best_train: the same on the training images, of the epoch with the best training accuracy.
    test_accuracies: top-1 accuracy (%) on the test set after the last epoch and after the best epoch.
    picked_on: the split on which the best epoch was chosen.
    density: share of the constrained layers' weights that is kept.
    """

    options: Options
    path: Path
    run_id: str
    trainer: str
    precision: str
    device: str
    parameters: int
    kept_parameters: int
    density: float
    last: Mapping[str, float]
    best: Mapping[str, float]
    best_train: Mapping[str, float]
    test_accuracies: tuple[float, float]
    picked_on: str
    images_per_second: float
    seconds: float


VALUES: dict[str, Callable[[FinishedRun], object]] = {
    # The columns up to Run Directory, and their order, are BIPROP's.
    "Date Finished": lambda _: time.strftime(DATE_FORMAT),
    "Base Config": lambda run: run.options.run.config,
    "Current Val Top 1": lambda run: f"{run.last['acc@1']:.2f}",
    "Current Val Top 5": lambda run: f"{run.last['acc@5']:.2f}",
    "Best Val Top 1": lambda run: f"{run.best['acc@1']:.2f}",
    "Best Val Top 5": lambda run: f"{run.best['acc@5']:.2f}",
    "Best Train Top 1": lambda run: f"{run.best_train['acc@1']:.2f}",
    "Best Train Top 5": lambda run: f"{run.best_train['acc@5']:.2f}",
    "Name": lambda run: run.options.run.name,
    "Seed": lambda run: run.options.run.seed,
    "Prune Rate": lambda run: run.options.constraint.density,
    "Learning Rate": lambda run: run.options.optim.lr,
    "Epochs": lambda run: run.options.optim.epochs,
    "Weight Decay": lambda run: run.options.optim.weight_decay,
    "Learn BN": lambda run: run.options.constraint.learn_batchnorm,
    "Tune BN": lambda run: run.options.constraint.tune_batchnorm,
    "Bias Only": lambda run: run.options.constraint.bn_bias_only,
    "Run Directory": lambda run: run.path,
    "Status": lambda _: "done",
    "Arch": lambda run: run.options.model.arch,
    "Set": lambda run: run.options.data.set,
    "Conv Type": lambda run: run.options.constraint.conv_type,
    "Trainer": lambda run: run.trainer,
    "Kept": lambda run: f"{run.density:.6g}",
    "Pruned": lambda run: f"{1 - run.density:.6g}",
    "Last Epoch Test Top 1": lambda run: f"{run.test_accuracies[0]:.2f}",
    "Best Epoch Test Top 1": lambda run: f"{run.test_accuracies[1]:.2f}",
    "Best Epoch": lambda run: run.best["epoch"],
    "Best Picked On": lambda run: run.picked_on,
    "Params": lambda run: run.parameters,
    "Kept Params": lambda run: run.kept_parameters,
    "Precision": lambda run: run.precision,
    "Device": lambda run: run.device,
    "Images/s": lambda run: f"{run.images_per_second:.1f}",
    "Seconds": lambda run: f"{run.seconds:.1f}",
    "Commit": lambda _: commit(),
    "Run ID": lambda run: f"{run.run_id}-{run.options.optim.epochs}",  # training for more epochs adds a row
}


def run_id(row: Mapping[str, str]) -> str:
    """Return the id of the run that a row of results.csv belongs to."""
    return row["Run ID"].rpartition("-")[0]


def result_row(run: FinishedRun) -> dict[str, object]:
    """Return the row of results.csv for a finished run, by column name."""
    return {name: value(run) for name, value in VALUES.items()}
