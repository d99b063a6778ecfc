"""`bench.py --startup`: the time from the start of Python to the first batch, relative to `import torch`."""

import subprocess
import sys
import tempfile
from typing import Any

from scripts import ROOT
from scripts.benchmarks.progress import progress
from utils.timing import Sampler, measure, summary, timed

TARGET = 1.3

# Each variant is a fresh interpreter. os._exit excludes the clean-up from its time.
IMPORT_TORCH = "import os, torch; os._exit(0)"
# The steps of main.py up to the first batch of the bundled digits.
FIRST_BATCH = """
import os, sys
import args
options = args.parse(["--config", "configs/quickstart.yml", "--seed", "0"])
from utils import process_setup
process_setup.tune()
from trainers import build, experiment
from utils.distributed import runtime
here = runtime.choose("cpu", "auto", None, deterministic=False)
parts = build.assemble(options, here, *build.build(options), build.load_set(options))
next(iter(parts.train.epoch(0)))
os._exit(0)
"""
# main.py itself, with its run directory and initial checkpoint. The replaced method ends it at the first batch.
WHOLE_PROGRAM = """
import os, sys
import main
from utils import process_setup
process_setup.tune()
from data.device_batches import DeviceBatches
original_epoch = DeviceBatches.epoch
def first_batch(self, *position):
    next(iter(original_epoch(self, *position)))
    os._exit(0)
DeviceBatches.epoch = first_batch
sys.exit(main.main(["--config", "configs/quickstart.yml", "--device", "cpu", "--log-dir", sys.argv[1]]) or 1)
"""


def bench(repeat: int) -> dict[str, Any]:
    """Measure the seconds from the start of Python to the end of `import torch`, and to the first training batch."""
    codes = {"import torch": IMPORT_TORCH, "first batch": FIRST_BATCH, "main.py to first batch": WHOLE_PROGRAM}
    with tempfile.TemporaryDirectory() as scratch:
        samples = measure({name: _sampler(code, scratch) for name, code in codes.items()}, repeat, progress("start"))
    summaries = {name: summary(values) for name, values in samples.items()}
    ratios = {name: s["median"] / summaries["import torch"]["median"] for name, s in summaries.items()}
    return {"samples": samples, "summary": summaries, "over_import_torch": ratios, "target": TARGET}


def _sampler(code: str, scratch: str) -> Sampler:
    command = [sys.executable, "-c", code, scratch]
    return timed(lambda: subprocess.run(command, cwd=ROOT, check=True, capture_output=True))


def table(record: dict[str, Any]) -> str:
    """Return one line per variant: its seconds, and their ratio to the seconds of `import torch`."""
    lines = []
    for name, s in record["summary"].items():
        seconds = f"{s['median']:.2f} s (min {s['min']:.2f}, IQR {s['iqr']:.2f})"
        lines.append(f"{name:>24}  {seconds}  {record['over_import_torch'][name]:.2f}x")
    return "\n".join([*lines, f"target for the first batch: {record['target']:g}x"])
