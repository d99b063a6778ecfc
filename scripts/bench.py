"""Compare the speed of training and evaluation with a reimplementation of BIPROP and with a dense network.

    python scripts/bench.py [--nets Conv2,Conv4] [--acts 1/32,1/1] [--repeat 7] [--threads N] [--out FILE.json]
    python scripts/bench.py --startup
    python scripts/bench.py --binary | --strengths | --parallel [--processes 2]

All contenders run in one process, in turn within every repeat, and the table has medians. The networks train on random
pixels in CIFAR-10's shape with half of the weights kept.

- ours: the training loop of this program at each precision, loading included. An evaluation has 16 batches here and 79
  on CIFAR-10, so fixed costs per evaluation weigh more than in a run.
- reference: scripts/benchmarks/reference.py in fp32, loading included, with this program's allocator settings.
- dense: the training loop of this program on the same network without masks, with every weight trained.
"""

import sys

if __name__ == "__main__":
    import start

    start.prepare(loads_torch=True)

import argparse
import itertools
import json
import time
from collections.abc import Sequence
from typing import Any

import torch

import models
from scripts.benchmarks import binary, networks, parallel, startup, strengths
from scripts.benchmarks.contenders import DENSITY, EVALUATED, OPTIMIZER, STEPS
from scripts.benchmarks.progress import progress
from utils.config.script_parser import Parser, command, count
from utils.console import say
from utils.distributed import runtime as runtimes
from utils.errors import UsageError
from utils.files import check_new, make_folder, write_text, writing
from utils.records.environment import environment
from utils.registry import lookup
from utils.timing import measure, summary

FP32_BENCHMARKS: dict[str, Any] = {"binary": binary, "strengths": strengths}  # option -> module


def _comma(text: str) -> list[str]:
    return text.split(",")


def parser() -> Parser:
    """Return the parser of the command line."""
    top = Parser(__doc__)
    nets, acts, both = list(networks.TARGETS), list(OPTIMIZER), list(networks.PRECISIONS)
    top.add_argument("--nets", type=_comma, default=nets, help=f"architectures; default: {','.join(nets)}")
    top.add_argument("--acts", type=_comma, default=acts, help="bits of weights/activations; default: 1/32,1/1")
    top.add_argument("--precision", type=_comma, default=both, help="formats of ours and dense; default: bf16,fp32")
    top.add_repeat(7)
    top.add_argument("--batch-size", type=count(10_000_000), default=128, help="images per step; default: 128")
    top.add_argument("--threads", type=count(1_024), help="CPU threads; default: torch's number")
    top.add_device("cpu")
    other = top.add_mutually_exclusive_group()
    other.add_argument("--startup", action="store_true", help="measure the start of the program instead")
    other.add_argument("--binary", action="store_true", help="measure BinaryConv (weights of 0 and 1) instead")
    other.add_argument("--strengths", action="store_true", help="measure SparseConv's co-activation counts instead")
    several = f"measure several processes against one on {parallel.NET} instead"
    other.add_argument("--parallel", action="store_true", help=several)
    processes = "number of processes for --parallel, with one thread each unless --threads; default: 2"
    top.add_argument("--processes", type=count(256), default=2, help=processes)
    top.add_out("runs/bench.json")
    return top


def checked(argv: Sequence[str]) -> argparse.Namespace:
    """Parse and check the command line. Raises UsageError before any measurement."""
    top = parser()
    options = top.parse_args(argv)
    if options.parallel:
        options.threads = options.threads or 1
        if options.batch_size % options.processes:
            top.error(f"--batch-size {options.batch_size} is not divisible by the {options.processes} processes")
    try:
        for precision in options.precision:
            lookup(dict.fromkeys(networks.PRECISIONS), precision, "--precision")
        for act in options.acts:
            lookup(OPTIMIZER, act, "--acts")
            for net in options.nets:
                lookup(models.ARCHS, networks.arch_of(net, act), "--nets")
        options.runtimes = {p: runtimes.choose(options.device, p, None, deterministic=False) for p in options.precision}
    except (ValueError, UsageError) as error:
        top.error(str(error))
    return options


def run(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Run the benchmark that the options select. Return its record for the JSON file and its table as text."""
    if options.startup:
        record = startup.bench(options.repeat)
        return {"startup": record}, startup.table(record)
    if options.parallel:
        o, device = options, options.runtimes[options.precision[0]].device.type
        job = parallel.Job(parallel.NET, o.batch_size, o.processes, o.precision, o.repeat, o.threads, device)
        record = parallel.bench(job)
        return {"parallel": record}, parallel.table(record)
    for name, module in FP32_BENCHMARKS.items():
        if getattr(options, name):
            runtime = runtimes.choose(options.device, "fp32", None, deterministic=False)
            samples = measure(module.samplers(runtime), options.repeat, progress(name))
            summaries = {contender: summary(values) for contender, values in samples.items()}
            record = {"summary": summaries, "samples": samples, **module.CONDITIONS}
            return {name: record}, module.table(summaries)
    rows = []
    for net, act in itertools.product(options.nets, options.acts):
        rows.append(networks.bench(net, act, options.runtimes, options.batch_size, options.repeat))
    return {"rows": rows}, networks.table(rows, options.precision)


def conditions(options: argparse.Namespace) -> dict[str, Any]:
    """Return the conditions of the measurement for the JSON file: date, versions, device, sizes."""
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        **environment(),
        "device": next(iter(options.runtimes.values())).device_name,
        "threads": torch.get_num_threads(),
        "batch_size": options.batch_size,
        "batches_per_sample": {"train": STEPS - 1, "eval": EVALUATED, "reference": 1},
        "density": DENSITY,
    }


@command
def main(argv: Sequence[str]) -> None:
    """Run a benchmark, print its table and write its record to the JSON file."""
    options = checked(argv)
    make_folder(options.out.parent, "--out: ")
    check_new(options.out, force=True, option="--out: ")
    if options.threads:
        torch.set_num_threads(options.threads)
    record, table = run(options)
    say(table)
    with writing(options.out):
        write_text(options.out, json.dumps(conditions(options) | record, indent=1) + "\n")
    say(f"every sample: {options.out}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
