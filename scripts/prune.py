"""Prune a trained network at many levels and test it at each; or write the really smaller network.

    python scripts/prune.py RUN [--method weight unit] [--percent 0 25 50 60 70 80 90 95 97 99] [--out DIR]
    python scripts/prune.py RUN --method unit --percent 50 --compact OUT.pt

RUN: the directory of a run, or one of its checkpoints. Nothing in it is changed. Levels give pruning.csv, a PNG and an
interactive page in DIR (default: RUN/pruning) and a table here. models.compact.load_compact(OUT.pt) gives the network.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # run as a file: the project is one level up, and the tuning comes before numpy and torch
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from utils import process_setup, stop_signal

    stop_signal.exit_on_interrupt()
    process_setup.tune()

import argparse
import copy
from collections.abc import Sequence
from itertools import islice

import torch
from torch import nn

from models.pruning import compact, criteria
from scripts.parts import prune_report as report
from scripts.parts.prune_levels import METHODS, Pruner, Trained, add_times, difference, has_norms, opened, pruned, row
from trainers.build import network_options
from utils import exit_codes
from utils.config.script_parser import Parser, count, limited, new_path, old_path
from utils.console import say
from utils.distributed import runtime as runtimes
from utils.errors import RunFailed, UsageError
from utils.files import check_new, check_regular, writable, write_atomic, writing

PERCENT = [0.0, 25.0, 50.0, 60.0, 70.0, 80.0, 90.0, 95.0, 97.0, 99.0]
PERCENTS, SOME = limited(float, ">= 0 and <= 100"), count(1_000_000, least=0)
CLOSE = 1e-6  # logits of the smaller network and of the one with zeros, in float64: float32 rounds large logits more
COMPARED = 8  # batches of the test set on which they are compared


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = Parser(__doc__)
    top.add_argument("run", metavar="RUN", type=old_path)
    top.add_argument("--method", nargs="+", choices=METHODS, default=list(METHODS), help="default: weight unit")
    top.add_argument(
        "--percent", nargs="+", type=PERCENTS, default=PERCENT, help="percent removed of each hidden layer"
    )
    top.add_argument("--scope", choices=criteria.SCOPES, default="layer", help="global: percent of all layers together")
    top.add_argument(
        "--criterion", choices=criteria.CRITERIA, help="default: magnitude for weights, l2 (the norm) for units"
    )
    top.add_argument("--recalibrate-bn", type=SOME, default=0, metavar="N", help="batch-norm statistics of N batches")
    top.add_argument("--finetune", type=SOME, default=0, metavar="E", help="train E epochs more by the run's recipe")
    top.add_argument("--data", type=new_path, metavar="DIR", help="folder of the data sets; default: the run's")
    top.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    top.add_argument("--seed", type=count(2**63 - 1, least=0), default=0, help="of criterion random")
    top.add_argument("--repeat", type=count(10_000), default=21, help="timings of each network, default 21")
    top.add_argument("--out", type=new_path, metavar="DIR", help="default: RUN/pruning")
    top.add_argument("--compact", type=new_path, metavar="OUT", help="write the smaller network of one percent")
    top.add_argument("--force", action="store_true", help="replace what is there")
    return top


def checked(argv: Sequence[str]) -> argparse.Namespace:
    """The options. Raises UsageError for what cannot be, before anything is read."""
    asked = parser().parse_args(argv)
    asked.method, asked.percent = list(dict.fromkeys(asked.method)), sorted(set(asked.percent))
    if asked.compact is None:
        return asked
    if asked.method != ["unit"] or len(asked.percent) != 1:
        raise UsageError("--compact: it writes one network: give --method unit and one --percent, such as 50")
    if asked.out is not None:
        raise UsageError("--out: with --compact nothing but its own file is written; leave out one of the two")
    check_new(asked.compact, force=asked.force, option="--compact: ")
    return asked


def pruners(asked: argparse.Namespace, trained: Trained) -> list[Pruner]:
    """Those asked for. Raises UsageError where the network cannot be pruned so."""
    if asked.recalibrate_bn and not has_norms(trained.model):
        raise UsageError("--recalibrate-bn: this network has no batch norm with running statistics")
    torch.manual_seed(asked.seed)
    try:
        return [METHODS[name](trained, asked.criterion) for name in asked.method]
    except ValueError as error:
        raise UsageError(f"{asked.run}: {error}") from error


def level(asked: argparse.Namespace, trained: Trained, pruner: Pruner, percent: float) -> tuple[nn.Module, nn.Module]:
    """(network with zeros, what remains of it) at one percentage."""
    model, kept = pruned(
        trained, pruner, percent, scope=asked.scope, epochs=asked.finetune, bn_batches=asked.recalibrate_bn
    )
    return model, model if pruner.cut is None else pruner.cut(model, kept)


def levels(asked: argparse.Namespace, trained: Trained) -> None:
    """Every method at every percentage: a line each as they come, then the table and the files."""
    folder = asked.out or trained.path / "pruning"
    if not writable(str(folder)):
        raise UsageError(f"--out: {folder} cannot be written; it must be a folder one can write")
    if (folder / "pruning.csv").exists() and not asked.force:
        raise UsageError(f"{folder / 'pruning.csv'} is there already; --force replaces it, --out DIR writes elsewhere")
    for file in report.files(folder):
        check_regular(file, "--out: ")
    wanted = pruners(asked, trained)
    rows, networks = [row(trained, report.BEFORE, 0.0, trained.model, trained.model)], [trained.model]
    for pruner in wanted:
        for percent in asked.percent:
            model, remains = level(asked, trained, pruner, percent)
            rows.append(row(trained, pruner.name, percent, model, remains))
            networks.append(remains if pruner.cut else trained.model)  # a matrix with zeros takes as long as without
            say(f"{pruner.name}s, {percent:g} % removed: accuracy {rows[-1].accuracy:.2f} %")
    add_times(rows, networks, trained, asked.repeat)
    say(report.table(rows))
    config = trained.options.run.config
    title = f"{trained.options.model.arch} on {trained.options.data.set}, pruned after training"
    with writing(folder):
        written = report.write(folder, rows, title, config)
    say("written: " + ", ".join(map(str, written)))


def write_compact(asked: argparse.Namespace, trained: Trained) -> None:
    """The network without the zero units, compared with the one with them, timed, and written."""
    if any(module._forward_pre_hooks for module in trained.model.modules()):
        raise UsageError(
            "--compact: the layers of this network round their inputs (fixed point): no file can hold that"
        )
    (pruner,), (percent,) = pruners(asked, trained), asked.percent
    model, remains = level(asked, trained, pruner, percent)
    options = network_options(trained.options, trained.image_set.spec)
    facts = {"percent": percent, "options": trained.options.flat()}
    stored = compact.pack_network(remains, options, facts)
    back = compact.unpack_network(stored)
    trained.runtime.put(back)
    images = [images for images, _ in islice(trained.test.epoch(0), COMPARED)]
    noise = torch.randn_like(images[0])  # of which units that are dead on the test set see something
    doubles = [batch.double() for batch in (*images, noise)]
    exact = difference(copy.deepcopy(model).double(), copy.deepcopy(back).double(), doubles)
    if not exact <= CLOSE:
        raise RunFailed(f"the smaller network's logits differ by {exact:.2g} from those with zeros: nothing is written")
    before, zeros = trained.model, row(trained, "zeros", percent, model, model)
    rows = [row(trained, report.BEFORE, 0.0, before, before), zeros, row(trained, "compact", percent, back, back)]
    add_times(rows, [before, model, back], trained, asked.repeat)
    say(report.table(rows))
    say(
        f"largest difference of the logits with zeros and without: {difference(model, back, images):.2g} in float32, "
        f"{exact:.2g} in float64, on {sum(map(len, images)):,} images"
    )
    with writing(asked.compact):
        write_atomic(asked.compact, lambda file: torch.save(stored, file))
    say(f"written: {asked.compact} ({asked.compact.stat().st_size:,} bytes)")


def work(argv: Sequence[str]) -> None:
    """Prune. Raises UsageError for bad input, RunFailed where training on diverges or a file cannot be written."""
    asked = checked(argv)
    trained = opened(str(asked.run), asked.data, runtimes.choose(asked.device, "fp32", None, deterministic=False))
    (levels if asked.compact is None else write_compact)(asked, trained)


def main(argv: Sequence[str]) -> int:
    """Returns the exit code: 0, 2 for bad input, 1 for a failure."""
    return exit_codes.run_program(lambda: work(argv), interrupted=exit_codes.INTERRUPTED)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
