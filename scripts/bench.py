"""How fast a training step and an evaluation are, beside a step that works as BIPROP's does and beside the dense one.

    python scripts/bench.py [--nets Conv2,Conv4] [--acts 1/32,1/1] [--repeat 7] [--threads N] [--out FILE.json]
    python scripts/bench.py --startup
    python scripts/bench.py --binary | --strengths | --parallel [--processes 2]

One process, the contenders in turn within every repeat, medians. CIFAR-10 shapes, random pixels, half the weights kept.
- ours: `trainers.loop` on the project's own parts, at each precision, loading included. An evaluation is EVALUATED
  batches; CIFAR-10's is 79, so what is done once an evaluation weighs more here than in a run.
- reference: `scripts/benchmarks/reference.py`, fp32, loading included. It has the benefit of our allocator settings.
- dense: our step of the same network, every weight free and trained, with the same optimizer.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # run as a file: the project is one level up, and the tuning comes before numpy and torch
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from utils import process_setup

    process_setup.tune()

import argparse
import itertools
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import torch

import models
from scripts import bench_parallel
from scripts.benchmarks import binary, strengths
from scripts.benchmarks.contenders import DENSITY, EVALUATED, OPTIMIZER, STEPS, Work, contenders, measure, timed
from utils import console, exit_codes
from utils.config.script_parser import Parser, count, new_path
from utils.console import say
from utils.distributed import runtime as runtimes
from utils.distributed.runtime import Runtime
from utils.errors import UsageError
from utils.files import check_new, write_text
from utils.records.environment import environment
from utils.registry import lookup

# Reference over ours for (training bf16, training fp32, evaluation), and ours over dense; for MPT-1/32, 2 cores with
# avx512_bf16.
TARGETS = {
    "Conv2": (7, 4, 20, 1.12),
    "Conv4": (4.5, 2.5, 9, 1.10),
    "Conv8": (3.8, 2.4, 8, 1.10),
    "VGG_Small": (3.3, 1.8, 5, 1.05),
}
STARTUP_TARGET = 1.3
SINGLE: dict[str, Any] = {"binary": binary, "strengths": strengths}  # option -> module with works and table


def summary(values: Sequence[float]) -> dict[str, float]:
    """Median, minimum and interquartile range of the samples of one contender."""
    quarters = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return {"n": len(values), "median": quarters[1], "min": min(values), "iqr": quarters[2] - quarters[0]}


def ratios(medians: dict[str, float], precisions: Sequence[str]) -> dict[str, float]:
    """How many times the reference's median ours is, and how many times ours the dense one's."""
    found = {}
    for precision in precisions:
        for what in ("train", "eval"):
            found[f"{what}/{precision}"] = medians[f"reference/fp32/{what}"] / medians[f"ours/{precision}/{what}"]
        found[f"train/{precision}/over_dense"] = (
            medians[f"ours/{precision}/train"] / medians[f"dense/{precision}/train"]
        )
    return found


def bench_net(net: str, act: str, here: dict[str, Runtime], batch: int, repeat: int) -> dict[str, Any]:
    """One row of the report: every sample, its summary, the ratios, the targets."""
    arch = f"{net}_BinAct" if act == "1/1" else net
    samples = measure(contenders(arch, act, here, batch), repeat)
    short = {name: summary(values) for name, values in samples.items()}
    found = ratios({name: s["median"] for name, s in short.items()}, list(here))
    row = {"net": net, "act": act, "arch": arch, "targets": targets(net, act)}
    return {**row, "ratios": found, "summary": short, "samples": samples}


def targets(net: str, act: str) -> dict[str, float]:
    """Target ratios by name; empty where it sets none."""
    if act != "1/32" or net not in TARGETS:
        return {}
    bf16, fp32, evaluation, dense = TARGETS[net]
    over_dense = {f"train/{precision}/over_dense": dense for precision in ("bf16", "fp32")}
    return {"train/bf16": bf16, "train/fp32": fp32, "eval/bf16": evaluation, **over_dense}


def table(rows: Sequence[dict[str, Any]], precisions: Sequence[str]) -> str:
    """The rows for a person: ms a batch as median±IQR, ratios with [target]."""
    names = ["reference/fp32/train", *(f"ours/{p}/train" for p in precisions)]
    kinds = [f"{what}/{p}" for what in ("train", "eval") for p in precisions]
    kinds += [f"train/{p}/over_dense" for p in precisions]
    head = ["net", "kind", *(f"{name.removesuffix('/train')} ms" for name in names)]
    head += [kind if "over" in kind else f"{kind} gain" for kind in kinds]
    lines = [head]
    for row in rows:
        line = [row["net"], row["act"]]
        line += [f"{1e3 * s['median']:.1f}±{1e3 * s['iqr']:.1f}" for s in (row["summary"][name] for name in names)]
        wanted = row["targets"]
        line += [f"{row['ratios'][kind]:.2f}" + (f" [{wanted[kind]:g}]" if kind in wanted else "") for kind in kinds]
        lines.append(line)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(f"{cell:>{w}}" for cell, w in zip(line, widths, strict=True)) for line in lines)


# A fresh interpreter up to the first batch of the bundled digits; os._exit leaves the clean-up out of every variant.
IMPORT_TORCH = "import os, torch; os._exit(0)"
FIRST_BATCH = """
import os, sys
import args
options = args.parse(["--config", "configs/quickstart.yml", "--seed", "0"])
from utils import process
process.tune()
from trainers import experiment
from utils import runtime
here = runtime.choose("cpu", "auto", None, deterministic=False)
parts = experiment.assemble(options, here, *experiment.build(options), experiment.load_set(options))
next(iter(parts.train.epoch(0)))
os._exit(0)
"""
# The program itself, with its run directory and initial checkpoint, stopped where the first batch reaches the loop.
WHOLE_PROGRAM = """
import os, sys
import main
from utils import process
process.tune()
from data.batches import DeviceBatches
whole_epoch = DeviceBatches.epoch
def first(self, *position):
    next(iter(whole_epoch(self, *position)))
    os._exit(0)
DeviceBatches.epoch = first
sys.exit(main.main(["--config", "configs/quickstart.yml", "--device", "cpu", "--log-dir", sys.argv[1]]) or 1)
"""


def bench_startup(repeat: int) -> dict[str, Any]:
    """Seconds from the start of Python to the end of `import torch`, to a first batch, and to main.py's first batch."""
    codes = {"import torch": IMPORT_TORCH, "first batch": FIRST_BATCH, "main.py to first batch": WHOLE_PROGRAM}
    with tempfile.TemporaryDirectory() as scratch:
        samples = measure({name: _start(code, scratch) for name, code in codes.items()}, repeat)
    short = {name: summary(values) for name, values in samples.items()}
    over = {name: s["median"] / short["import torch"]["median"] for name, s in short.items()}
    return {"samples": samples, "summary": short, "over_import_torch": over, "target": STARTUP_TARGET}


def _start(code: str, scratch: str) -> Work:
    root, command = Path(__file__).resolve().parents[1], [sys.executable, "-c", code, scratch]
    return timed(lambda: subprocess.run(command, cwd=root, check=True, capture_output=True))


def startup_table(found: dict[str, Any]) -> str:
    """One line a variant: seconds and how many times `import torch`."""
    lines = []
    for name, s in found["summary"].items():
        seconds = f"{s['median']:.2f} s (min {s['min']:.2f}, IQR {s['iqr']:.2f})"
        lines.append(f"{name:>24}  {seconds}  {found['over_import_torch'][name]:.2f}x")
    return "\n".join([*lines, f"target for the first batch: {found['target']:g}x"])


def bench_several(options: argparse.Namespace) -> dict[str, Any]:
    """Several processes beside one; prints the table."""
    o = options
    job = bench_parallel.Job(
        bench_parallel.NET,
        o.batch_size,
        o.processes,
        o.precision,
        o.repeat,
        o.threads,
        o.here[o.precision[0]].device.type,
    )
    found = bench_parallel.bench(job)
    short, shares = ({n: summary(v) for n, v in found[kind].items()} for kind in ("samples", "efficiency"))
    say(bench_parallel.table(found, short, shares))
    return {**found, "efficiency": shares, "summary": short, "samples": found["samples"]}


def _comma(text: str) -> list[str]:
    return text.split(",")


def parser() -> Parser:
    """The command line."""
    top = Parser((__doc__ or "").splitlines()[0])
    top.add_argument("--nets", type=_comma, default=list(TARGETS), help=f"default {','.join(TARGETS)}")
    top.add_argument(
        "--acts", type=_comma, default=list(OPTIMIZER), help="default 1/32,1/1; 1/1: binary activations too"
    )
    top.add_argument("--precision", type=_comma, default=["bf16", "fp32"], help="ours, default bf16,fp32")
    top.add_argument("--repeat", type=count(10_000), default=7, help="samples of each contender, default 7")
    top.add_argument("--batch-size", type=count(10_000_000), default=128)
    top.add_argument("--threads", type=count(1_024), help="default: torch's own choice")
    top.add_argument("--device", default="cpu", choices=["auto", "cpu", "cuda"])
    other = top.add_mutually_exclusive_group()
    other.add_argument("--startup", action="store_true", help="measure instead how long a start takes")
    other.add_argument("--binary", action="store_true", help="measure instead the network of zeros and ones")
    other.add_argument("--strengths", action="store_true", help="measure instead what connections' strengths cost")
    other.add_argument(
        "--parallel", action="store_true", help=f"measure instead several processes on {bench_parallel.NET}, beside one"
    )
    top.add_argument(
        "--processes",
        type=count(256),
        default=2,
        help="of --parallel, with one thread each, default 2",
    )
    top.add_argument("--out", type=new_path, default=Path("runs/bench.json"), help="default runs/bench.json")
    return top


def checked(argv: Sequence[str]) -> argparse.Namespace:
    """The options. Raises UsageError for what cannot be, before anything is measured."""
    top = parser()
    options = top.parse_args(argv)
    if options.parallel:
        options.threads = options.threads or 1
        if options.batch_size % options.processes:
            top.error(f"--batch-size {options.batch_size} does not divide among {options.processes} processes")
    try:
        for precision in options.precision:
            lookup({"bf16": None, "fp32": None}, precision, "--precision")
        for act in options.acts:
            lookup(OPTIMIZER, act, "--acts")
            for net in options.nets:
                lookup(models.ARCHS, f"{net}_BinAct" if act == "1/1" else net, "--nets")
        options.here = {p: runtimes.choose(options.device, p, None, deterministic=False) for p in options.precision}
    except (ValueError, UsageError) as error:
        top.error(str(error))
    return options


def main(argv: Sequence[str]) -> int:
    """Measure, print the table, write the JSON. Returns the exit code."""
    return exit_codes.run_program(lambda: work(argv), interrupted=exit_codes.INTERRUPTED)


def work(argv: Sequence[str]) -> None:
    """What `main` does, failures as exceptions."""
    options = checked(argv)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    check_new(options.out, force=True, option="--out: ")
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.startup:
        measured: dict[str, Any] = {"startup": bench_startup(options.repeat)}
        say(startup_table(measured["startup"]))
    elif options.parallel:
        measured = {"parallel": bench_several(options)}
    elif chosen := [name for name in SINGLE if getattr(options, name)]:
        (name,) = chosen
        here = runtimes.choose(options.device, "fp32", None, deterministic=False)
        samples = measure(SINGLE[name].works(here), options.repeat)
        short = {who: summary(values) for who, values in samples.items()}
        measured = {name: {"summary": short, "samples": samples, **SINGLE[name].FACTS}}
        say(SINGLE[name].table(short))
    else:
        rows = []
        for net, act in itertools.product(options.nets, options.acts):
            rows.append(bench_net(net, act, options.here, options.batch_size, options.repeat))
            console.write("stderr", f"measured {net} {act}")
        measured = {"rows": rows}
        say(table(rows, options.precision))
    write_text(options.out, json.dumps(conditions(options) | measured, indent=1) + "\n")
    say(f"every sample: {options.out}")


def conditions(options: argparse.Namespace) -> dict[str, Any]:
    """What the numbers depend on: when, what, where."""
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        **environment(),
        "device": next(iter(options.here.values())).device_name,
        "threads": torch.get_num_threads(),
        "batch_size": options.batch_size,
        "batches_per_sample": {"train": STEPS - 1, "eval": EVALUATED, "reference": 1},
        "density": DENSITY,
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
