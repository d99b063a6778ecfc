"""Prune a trained network at several levels and test it at each one, or write one smaller network.

    python scripts/prune.py RUN [--method weight unit] [--percent 0 25 50 60 70 80 90 95 97 99] [--out DIR]
    python scripts/prune.py RUN --method unit --percent 50 --compact OUT.pt

RUN is the directory of a run (its newest checkpoint) or a checkpoint. The command does not change the run.

The first form prints a table and writes pruning.csv, pruning.png and the interactive page pruning.html to DIR. The
default is the folder `pruning` in the run directory, or beside a checkpoint that is in no run directory.

The second form removes the pruned units from the network and writes it to OUT.pt;
models.compact.load_compact(OUT.pt) returns it.
"""

import sys

if __name__ == "__main__":
    import start

    start.prepare(loads_torch=True)

import argparse
import copy
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import torch
from torch import nn

from models.pruning import compact, criteria
from scripts.parts import prune_levels as levels
from scripts.parts import prune_report as report
from scripts.parts.prune_levels import METHODS, Pruner, Trained
from trainers.build import network_options
from utils.config.script_parser import Parser, command, count, limited, new_path
from utils.console import say
from utils.distributed import runtime as runtimes
from utils.errors import RunFailed, UsageError
from utils.files import check_new, check_regular, writable, write_atomic, writing
from utils.run_paths import locate
from utils.torch_compat import has_forward_pre_hooks

PERCENT = [0.0, 25.0, 50.0, 60.0, 70.0, 80.0, 90.0, 95.0, 97.0, 99.0]
TOLERANCE = 1e-6  # largest difference in float64 between logits of the compact and of the zeroed network
COMPARED_BATCHES = 8  # of the test set, on which the two networks are compared


def parser() -> Parser:
    """Return the parser of the command line."""
    top, some = Parser(__doc__), count(1_000_000, least=0)
    top.add_run()
    what = "remove single weights or whole units, such as channels; default: both"
    top.add_argument("--method", nargs="+", choices=METHODS, default=list(METHODS), help=what)
    percent = limited(float, ">= 0 and <= 100")
    top.add_argument("--percent", nargs="+", type=percent, default=PERCENT, help="percent to remove per hidden layer")
    top.add_argument("--scope", choices=criteria.SCOPES, default="layer", help="global: all hidden layers together")
    criterion = "the lowest are removed; default: magnitude for weights, l2 (the norm) for units"
    top.add_argument("--criterion", choices=criteria.CRITERIA, help=criterion)
    top.add_argument(
        "--recalibrate-bn", type=some, default=0, metavar="N", help="recompute batch-norm statistics on N batches"
    )
    top.add_argument("--finetune", type=some, default=0, metavar="E", help="train for E epochs after pruning")
    top.add_argument("--data", type=new_path, metavar="DIR", help="folder of the data sets; default: the run's")
    top.add_device("auto")
    top.add_argument("--seed", type=count(2**63 - 1, least=0), default=0, help="seed of --criterion random")
    top.add_repeat(21)
    top.add_argument("--out", type=new_path, metavar="DIR", help="folder of the report; default: pruning, in the run")
    top.add_argument("--compact", type=new_path, metavar="OUT", help="write the network without the pruned units")
    top.add_force()
    return top


def checked(argv: Sequence[str]) -> argparse.Namespace:
    """Parse and check the command line, before any file is read. Raises UsageError if options are wrong."""
    options = parser().parse_args(argv)
    options.method, options.percent = list(dict.fromkeys(options.method)), sorted(set(options.percent))
    if options.compact is None:
        return options
    if options.method != ["unit"] or len(options.percent) != 1:
        raise UsageError("--compact: it writes one network; pass --method unit and one --percent, such as 50")
    if options.out is not None:
        raise UsageError("--out: it contradicts --compact, which writes only its own file; leave out one of the two")
    check_new(options.compact, force=options.force, option="--compact: ")
    return options


def pruners(options: argparse.Namespace, trained: Trained) -> list[Pruner]:
    """Return one pruner per requested method. Raises UsageError if a method cannot prune this network."""
    if options.recalibrate_bn and not levels.has_norms(trained.model):
        raise UsageError("--recalibrate-bn: this network has no batch norm with running statistics")
    torch.manual_seed(options.seed)
    try:
        return [METHODS[name](trained, options.criterion) for name in options.method]
    except ValueError as error:
        raise UsageError(f"{options.run}: {error}") from error


def prune_at(
    options: argparse.Namespace, trained: Trained, pruner: Pruner, percent: float
) -> tuple[nn.Module, nn.Module]:
    """Prune copies of the trained network. Return one with pruned weights set to zero and one without the pruned units.

    If the method prunes single weights, both are the network with zeros.
    """
    model, kept = levels.pruned(
        trained, pruner, percent, scope=options.scope, epochs=options.finetune, bn_batches=options.recalibrate_bn
    )
    return model, model if pruner.cut is None else pruner.cut(model, kept)


def report_folder(options: argparse.Namespace) -> Path:
    """Return the folder of the report. Raises UsageError if the report cannot be written there."""
    run, _ = locate(options.run)
    folder: Path = options.out or (options.run.parent if run is None else run.path) / "pruning"
    if not writable(folder):
        raise UsageError(f"--out: {folder} cannot be written; pass a folder with write permission")
    files = report.files(folder)
    if files[0].exists() and not options.force:
        raise UsageError(f"{files[0]} exists already; --force replaces it, --out DIR writes elsewhere")
    for file in files:
        check_regular(file, "--out: ")
    return folder


def prune_at_levels(options: argparse.Namespace, trained: Trained, folder: Path) -> None:
    """Prune by every method at every percentage, print a table of the networks and write the report to `folder`."""
    wanted = pruners(options, trained)
    rows, networks = [levels.row(trained, report.UNPRUNED, 0.0, trained.model, trained.model)], [trained.model]
    for pruner in wanted:
        for percent in options.percent:
            model, smaller = prune_at(options, trained, pruner, percent)
            rows.append(levels.row(trained, pruner.name, percent, model, smaller))
            networks.append(smaller if pruner.cut else trained.model)  # zeros in a dense matrix save no time
            say(f"{pruner.name}s, {percent:g} % removed: accuracy {rows[-1].accuracy:.2f} %")
    levels.add_times(rows, networks, trained, options.repeat)
    say(report.table(rows))
    title = f"{trained.options.model.arch} on {trained.options.data.set}, pruned after training"
    with writing(folder):
        written = report.write(folder, rows, title, trained.options.run.config)
    say("written: " + ", ".join(map(str, written)))


def write_compact(options: argparse.Namespace, trained: Trained) -> None:
    """Write the network without the pruned units, if its logits equal the logits of the network with zeros.

    Raises RunFailed if the logits differ by more than TOLERANCE.
    """
    if has_forward_pre_hooks(trained.model):
        raise UsageError(
            "--compact: the layers of this network round their inputs (fixed point), which the file format cannot store"
        )
    (pruner,), (percent,) = pruners(options, trained), options.percent
    model, smaller = prune_at(options, trained, pruner, percent)
    build = network_options(trained.options, trained.image_set.spec)
    stored = compact.pack_network(smaller, build, {"percent": percent, "options": trained.options.flat()})
    rebuilt = compact.unpack_network(stored)
    trained.runtime.put(rebuilt)
    images = [images for images, _ in islice(trained.test.epoch(0), COMPARED_BATCHES)]
    noise = torch.randn_like(images[0])  # activates units that are inactive on the test set
    doubles = [batch.double() for batch in (*images, noise)]
    # In float64, because float32 rounds large logits by more than TOLERANCE.
    exact = levels.largest_difference(copy.deepcopy(model).double(), copy.deepcopy(rebuilt).double(), doubles)
    if not exact <= TOLERANCE:
        raise RunFailed(
            f"nothing is written: the logits of the smaller network and of the network with its pruned units set to 0 "
            f"differ by {exact:.2g}, at most {TOLERANCE:g} allowed"
        )
    before, zeros = trained.model, levels.row(trained, "zeros", percent, model, model)
    compacted = levels.row(trained, "compact", percent, rebuilt, rebuilt)
    rows = [levels.row(trained, report.UNPRUNED, 0.0, before, before), zeros, compacted]
    levels.add_times(rows, [before, model, rebuilt], trained, options.repeat)
    say(report.table(rows))
    single = levels.largest_difference(model, rebuilt, images)
    say(
        f"largest difference between the logits with pruned units removed and set to 0: {single:.2g} in float32, "
        f"{exact:.2g} in float64, on {sum(map(len, images)):,} images"
    )
    with writing(options.compact):
        write_atomic(options.compact, lambda file: torch.save(stored, file))
    say(f"written: {options.compact} ({options.compact.stat().st_size:,} bytes)")


@command
def main(argv: Sequence[str]) -> None:
    """Prune a trained network at several levels, or write one smaller network.

    Return 0, 2 for bad input, 1 if the fine-tuning diverges or a file cannot be written.
    """
    options = checked(argv)
    folder = None if options.compact else report_folder(options)
    runtime = runtimes.choose(options.device, "fp32", None, deterministic=False)
    trained = levels.opened(str(options.run), options.data, runtime)
    if folder is None:
        write_compact(options, trained)
    else:
        prune_at_levels(options, trained, folder)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
