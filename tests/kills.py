"""Kill runs at random, resume them, and compare all stored files with those of an uninterrupted run.

    python tests/kills.py --kills 100 --seed 0

Each kill is a separate run of one of the trainers in `CASES`. SIGKILL, SIGTERM, SIGUSR2 or SIGINT ends the run at a
random time, or SIGKILL ends it at a random write, which reaches moments too short for a timer. Then --resume auto
continues the run until the end. The table counts, by trainer, the runs whose checkpoints, metrics, tables, results
row and event files equal those of an uninterrupted run. The exit code is 1 if a run differs.
"""

import os
import sys
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # set before torch is imported
if __name__ == "__main__":  # The project is one level up if this file runs as a script.
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import csv
import json
import random
import signal
import tempfile
import time
from typing import Any

import torch
import yaml

import main
from tests import events

CLOCKS = ("train/images_per_second", "train/elapsed_seconds", "Date Finished", "Images/s", "Seconds", "Run ID")
CLOCKS += ("Commit",)  # the commit of the project may change while this program runs
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)
WRITES = {"os.rename", "os.truncate", "os.remove", "os.mkdir"}
COMMON = {"set": "digits", "epochs": 4, "batch_size": 128, "seed": 1, "precision": "fp32", "print_freq": 1}
COMMON |= {"save_minutes": 0.001, "save_every": 3, "lr_policy": "cosine_lr"}
CASES: dict[str, dict[str, object]] = {
    "prune_score": {"arch": "FC", "conv_type": "SubnetConv", "freeze_weights": True, "prune_rate": 0.5},
    "shift": {"arch": "FC", "conv_type": "ShiftQ", "histograms": True, "lr": 0.01},
    "binary": {
        "arch": "CircuitMLP",
        "conv_type": "BinaryConv",
        "hidden": [64, 64],
        "norm": "batch_norm",
        "activation": "relu",
        "sweep_on": "0:2:0.5",
        "sweep_every": 2,
        "random_mag": 1.0,
        "histograms": True,
    },
    "sparse": {
        "arch": "FC",
        "conv_type": "SparseConv",
        "prune_rate": 0.2,
        "progress_interval": 5,
        "update_interval": 1,
    },
    "dense": {"arch": "FC", "val_split": 0.2, "optimizer": "adam", "lr": 0.001},
}


def start(folder: Path, *argv: str, writes: int = 0) -> int:
    """Fork a process that runs main.py in `folder`, and return its pid.

    writes: the number of the write at which SIGKILL ends the process; 0 for none.

    The process counts its writes in the file `writes`, and its output goes to the file `output`.
    """
    if pid := os.fork():
        return pid
    os.chdir(folder)
    for number in (1, 2):
        os.dup2(os.open("output", os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    count = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event in WRITES or (event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            count += 1
            if count == writes:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    code = 1
    try:
        code = main.main(argv)
        Path("writes").write_text(str(count))
    finally:
        sys.stdout.flush()
        os._exit(code)


def exit_code_of(pid: int) -> int:
    """Wait for the process `pid` and return its exit code."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def finished_run(folder: Path) -> Path | None:
    """Return the directory of the finished run in `folder`, or None."""
    records = folder.glob("runs/**/status.json")
    return next((path.parent for path in records if json.loads(path.read_text())["status"] == "done"), None)


def stored(run: Path, folder: Path) -> dict[str, Any]:
    """Return the content of all files of a finished run, without times and the sizes of the event files."""
    content: dict[str, Any] = {
        path.name: table(path) for path in [*run.glob("*.csv"), *folder.glob("runs/results.csv")]
    }
    for path in (run / "checkpoints").glob("*.pt"):
        checkpoint = torch.load(path, weights_only=True)
        checkpoint.pop("events", None)
        checkpoint["options"].pop("resume")
        del checkpoint["state"]["seconds"], checkpoint["state"]["train_seconds"]
        content[path.name] = checkpoint
    return content | {f"events, {tag}": points for tag, points in events.shown(run / "logs").items()}


def table(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file without the columns that hold times."""
    with path.open(newline="") as file:
        return [{name: value for name, value in row.items() if name not in CLOCKS} for row in csv.DictReader(file)]


def same(a: Any, b: Any) -> bool:
    """Return True if nested containers of tensors and plain values are equal to the bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def differences(run: Path, folder: Path, whole: dict[str, Any]) -> list[str]:
    """Return the names of all content that differs from `whole`, the content of the uninterrupted run."""
    content = stored(run, folder)
    names = sorted(content.keys() | whole.keys())
    shared = content.keys() & whole.keys()
    differing = [name for name in names if name not in shared or not same(content[name], whole[name])]
    if events.hparams_sessions(run / "logs") != 1:
        differing.append("the end of the run is written twice")
    return differing


class Case:
    """A trainer with the content, duration in seconds and number of writes of its uninterrupted run."""

    def __init__(self, name: str, home: Path) -> None:
        self.home = home / name
        folder = self.home / "whole"
        folder.mkdir(parents=True)
        self.config = self.home / f"{name}.yml"
        self.config.write_text(yaml.safe_dump(COMMON | CASES[name]))
        began = time.monotonic()
        code = exit_code_of(start(folder, "--config", str(self.config), "--resume", "auto"))
        self.seconds = time.monotonic() - began
        run = finished_run(folder)
        assert code == 0 and run is not None, (folder / "output").read_text()
        self.whole, self.writes = stored(run, folder), int((folder / "writes").read_text())

    def kill(self, number: int, moments: random.Random) -> tuple[str, list[str]]:
        """Kill one run and resume it until it is finished. Return (how it was killed, names of differing content)."""
        folder = self.home / str(number)
        folder.mkdir()
        argv = ("--config", str(self.config), "--resume", "auto")
        if moments.random() < 0.5:
            write = moments.randint(1, self.writes)
            exit_code_of(start(folder, *argv, writes=write))
            how = f"SIGKILL at write {write} of {self.writes}"
        else:
            sent, moment = moments.choice(SIGNALS), moments.uniform(0, 1.1 * self.seconds)
            pid = start(folder, *argv)
            time.sleep(moment)
            os.kill(pid, sent)
            exit_code_of(pid)
            how = f"{sent.name} after {moment:.3f} s"
        for _ in range(3):
            if run := finished_run(folder):
                return how, differences(run, folder, self.whole)
            exit_code_of(start(folder, *argv))
        return how, [f"not done: {(folder / 'said').read_text()}"]


def kill_all(kills: int, seed: int, home: Path) -> dict[str, list[tuple[str, list[str]]]]:
    """Return {trainer: [(how a run was killed, names of differing content), ...]}."""
    import matplotlib.figure  # noqa: F401 imported here once, not in every child process
    import torch.utils.tensorboard  # noqa: F401

    from trainers import experiment  # noqa: F401

    moments = random.Random(seed)
    cases = {name: Case(name, home) for name in CASES}
    found: dict[str, list[tuple[str, list[str]]]] = {name: [] for name in CASES}
    for number in range(kills):
        name = [*CASES][number % len(CASES)]
        found[name].append(cases[name].kill(number, moments))
    return found


def report(found: dict[str, list[tuple[str, list[str]]]]) -> int:
    """Print the table and a line per run that differs, and return the number of these runs."""
    print(f"{'trainer':<12} {'kills':>6} {'equal':>6}")
    for name, runs in found.items():
        print(f"{name:<12} {len(runs):>6} {sum(not differ for _, differ in runs):>6}")
    bad = [(name, how, differ) for name, runs in found.items() for how, differ in runs if differ]
    for name, how, differ in bad:
        print(f"{name}, {how}: {'; '.join(differ)}")
    return len(bad)


def work() -> int:
    """Read the command line, kill runs, report, and return the exit code."""
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("--kills", type=int, default=100)
    top.add_argument("--seed", type=int, default=0)
    asked = top.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as home:
        bad = report(kill_all(asked.kills, asked.seed, Path(home)))
    print(f"{asked.kills} kills in {time.monotonic() - began:.0f} s")
    return min(bad, 1)


if __name__ == "__main__":
    sys.exit(work())
