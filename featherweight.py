"""Python API of Featherweight: train networks with constrained weights, open them and predict.

    import featherweight as fw

    run = fw.train("configs/quickstart.yml", prune_rate=0.2, seed=3)
    print(run.test(), run.metrics, fw.runs("runs"))

    run = fw.load(run.path)  # in another program: fw.load("runs/quickstart/prune-rate=0.2/quickstart")
    labels, probabilities = run.predict("digit.png")
    print(f"{labels[0]} {100 * probabilities.max():.1f} %")

Importing this module imports neither torch nor numpy. Errors are exceptions: `UsageError` for wrong input, `RunFailed`
if a run cannot continue, `RunInUse` if another process trains it, `Stopped` after Ctrl-C or another signal.
"""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils import console, plugin_files, stop_signal
from utils.errors import RunFailed, RunInUse, Stopped, UsageError
from utils.tables import Rows

if TYPE_CHECKING:
    import torch

    from args import Options
    from data import ImageSet
    from models import build
    from models.constraints.apply import constrain
    from models.constraints.attachment import bake
    from models.constraints.base import Constraint
    from trainers.methods.base import Method
    from trainers.trained_run import Prediction, TrainedRun
    from utils.config.plugins import (
        register_arch,
        register_constraint,
        register_recorder,
        register_set,
        register_trainer,
    )
    from utils.records.recorder import Recorder

__all__ = [
    "Constraint",
    "Method",
    "Prediction",
    "Recorder",
    "Rows",
    "RunFailed",
    "RunInUse",
    "Stopped",
    "TrainedRun",
    "UsageError",
    "bake",
    "build",
    "constrain",
    "load",
    "register_arch",
    "register_constraint",
    "register_recorder",
    "register_set",
    "register_trainer",
    "runs",
    "train",
]

_IMPORTED_LATE = {  # name -> module; most of them import torch
    "Constraint": "models.constraints.base",
    "Method": "trainers.methods.base",
    "Prediction": "trainers.trained_run",
    "Recorder": "utils.records.recorder",
    "TrainedRun": "trainers.trained_run",
    "bake": "models.constraints.attachment",
    "build": "models",
    "constrain": "models.constraints.apply",
    **dict.fromkeys(
        ("register_arch", "register_constraint", "register_recorder", "register_set", "register_trainer"),
        "utils.config.plugins",
    ),
}


def __getattr__(name: str) -> Any:
    if name in _IMPORTED_LATE:
        return getattr(import_module(_IMPORTED_LATE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


def load(
    path: str | Path,
    *,
    best: bool = False,
    device: "str | torch.device" = "cpu",
    plugins: Sequence[str | Path] = (),
    **changes: Any,
) -> "TrainedRun":
    """Open a trained network.

    path: a run directory (its newest checkpoint is loaded), a checkpoint, or a checkpoint of BIPROP.
    best: load the best checkpoint of the run directory instead of the newest one.
    device: "cpu", "cuda", "cuda:1", … or "auto", which is a GPU if there is one.
    plugins: files or modules of the plug-ins that the run used. They are executed, unless this process has loaded them.
    changes: options by name that replace those of the run or of the file, such as data="DIR". A file of BIPROP needs
        its data set, such as set="CIFAR10".

    No code in a file is executed, and no plug-in that is not named. The data set is not needed. The states of
    the random number generators are restored.

    Raises UsageError if there is no such network, the file is damaged, or the options do not fit the network.
    """
    from trainers.trained_run import open_run

    plugin_files.load(map(str, plugins))
    return open_run(path, best=best, device=device, changes=changes)


def train(
    config: str | Path | None = None,
    *,
    data: "tuple[Any, Any] | str | Path | None" = None,
    verbose: bool = True,
    **options: Any,
) -> "TrainedRun":
    """Train a network, as `python main.py` does, and open it.

    config: a YAML file of options. Without it, pass at least `arch` and `set`, or `resume`.
    data: the folder of the data sets, or a pair (train, test) of map-style torch Datasets with items (image, label). An
        image is a PIL image, a uint8 array or tensor (H, W) or (H, W, C), or a float tensor (C, H, W) with values in
        [0, 1]. A label is an int from 0 on.
    verbose: print progress and results. If False, nothing is printed.
    options: options by name, which override the file, such as prune_rate=0.2. `python main.py --help` lists them.

    With a pair of Datasets, the set of the run is in_memory. Mean and standard deviation of the pixels are measured
    over the training images, and the class names are those of `train.classes`. set="CIFAR10" in the call uses the mean,
    standard deviation, augmentation and class names of CIFAR-10 instead. `data.user_datasets.read_datasets` explains
    which images are held in memory. Resuming such a run needs the same `data` and `set`.

    The run is stored like any other. Training seeds the random number generators of Python, numpy and torch, whose
    states are restored at the end, as are signal handlers and settings of torch. Threads must not train at the same
    time. Ctrl-C stops the run after it has saved a checkpoint, except in threads, where Python handles no signals.

    Raises UsageError with one line per problem, RunFailed if the run cannot continue, RunInUse if another process
    trains it, and Stopped, with the directory as its attribute `run`, after Ctrl-C or another signal;
    train(resume=PATH) then continues the run. Before the first batch, Ctrl-C raises KeyboardInterrupt.
    """
    from args import from_call

    pair = None if data is None or isinstance(data, str | Path) else _checked_pair(data)
    if pair is None and data is not None:
        options["data"] = data
    with console.quiet(not verbose):
        parsed = from_call(config, options if pair is None else {"set": "in_memory", **options})
        _check_trainable(parsed)
        for line in parsed.warnings:
            console.warn(line)
        result = _trained(parsed, pair)
    if isinstance(result, Stopped):
        plugins = [text.partition(plugin_files.MARK)[0] for text in parsed.run.plugins]
        resumed = f"resume={result.run!r}" + (f", plugins={plugins}" if plugins else "") + (", data=…" if pair else "")
        raise Stopped(f"{result.reason}; resume with: featherweight.train({resumed})", run=result.run)
    return result


def _checked_pair(data: Any) -> tuple[Any, Any]:
    """Return the Datasets (train, test). Raises UsageError for anything else than a pair."""
    if not isinstance(data, tuple | list) or len(data) != 2:
        raise UsageError(f"data: a {type(data).__name__} given; a folder or a pair of Datasets (train, test) expected")
    return data[0], data[1]


def _check_trainable(options: "Options") -> None:
    """Raise UsageError for options that make sense on the command line only."""
    if options.run.check:
        raise UsageError("check: it trains nothing; leave it out, or run python main.py --check")
    if options.run.evaluate:
        raise UsageError("evaluate: it trains nothing; use featherweight.load(PATH).test()")
    if len(options.run.multigpu or ()) > 1:
        raise UsageError("multigpu: a call trains on one GPU; python main.py trains on several")


def _trained(options: "Options", pair: tuple[Any, Any] | None) -> "TrainedRun | Stopped":
    """Train a network and open it. If a signal stops the run, return the exception."""
    from data.registry import IN_MEMORY
    from trainers import experiment
    from utils.distributed import runtime
    from utils.random_state import preserved_generators
    from utils.torch_compat import restored_torch_settings

    with preserved_generators(), restored_torch_settings(), stop_signal.restored_handlers():
        here = runtime.from_options(options)
        image_set = None if pair is None else _image_set(options, pair)
        if pair is not None:
            options = options.replace(set=IN_MEMORY)
        try:
            path = experiment.train(options, here, image_set)
        except Stopped as stopped:
            return stopped.with_traceback(None)  # in a notebook the traceback would keep the data set alive
    return load(path, device=here.device)


def _image_set(options: "Options", pair: tuple[Any, Any]) -> "ImageSet":
    """Read a pair of Datasets as the options say."""
    from data import divided
    from data.user_datasets import read_datasets

    d = options.data
    image_set = read_datasets(*pair, described_as=d.set, image_size=d.image_size, pixels=d.pixels, workers=d.workers)
    return divided(image_set, val_split=d.val_split, low_data=d.low_data)


def runs(folder: str | Path = "runs") -> Rows:
    """Return all runs below a folder as a table, a list of dicts.

    A row has path, status, epoch, epochs, arch, set, conv_type, prune_rate, seed, kept, accuracy and best_accuracy, see
    `utils.records.overview.overview`. `.to_pandas()` returns a DataFrame. A run that cannot be read is left out with a
    warning. Raises UsageError if there is no such folder.
    """
    from utils.paths import expanded
    from utils.records.overview import all_runs

    return all_runs(Path(expanded(str(folder), existing=True)))
