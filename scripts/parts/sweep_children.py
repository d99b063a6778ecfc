"""The cells of a sweep as child processes: some at a time, stopped together, one line when each begins and ends."""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from scripts.parts.sweep_cells import Cell, accuracy, finished
from utils.console import say
from utils.errors import RunInUse, Stopped
from utils.files import try_lock

ASKING = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP)
# 130 and the negative ones: stopped before training began, with nothing to save.
STOPPED = (Stopped.exit_code, 128 + signal.SIGINT, -signal.SIGTERM, -signal.SIGINT, -signal.SIGUSR2, -signal.SIGHUP)
BAD_INPUT = 2  # exit code: a missing data set, for one
LOOK_SECONDS = 0.1


@dataclass
class Child:
    """A cell being run; `said` is where in the log its own output begins."""

    cell: Cell
    process: subprocess.Popen[bytes]
    said: int
    began: float


class Stop:
    """Requests to stop, handed on to the children as SIGTERM: they save. A second Ctrl-C goes as SIGINT: they leave.

    The children have process groups of their own: a terminal that is closed would end them unsaved, with SIGHUP.
    """

    def __init__(self) -> None:
        self.asked: list[int] = []
        self._handed_on = 0

    def listen(self) -> "Stop":
        for number in ASKING:
            if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
                signal.signal(number, self._ask)
        return self

    def _ask(self, number: int, _frame: FrameType | None) -> None:
        self.asked.append(number)

    @property
    def reason(self) -> str:
        """The name of the first signal."""
        return signal.Signals(self.asked[0]).name

    def hand_on(self, children: Sequence[Child]) -> None:
        """Give the children what was asked since the last call."""
        while self._handed_on < len(self.asked):
            at_once = self._handed_on > 0 and self.asked[self._handed_on] == signal.SIGINT
            if self._handed_on == 0:
                say(f"{self.reason}: saving what is being run; Ctrl-C once more leaves at once")
            for child in children:
                child.process.send_signal(signal.SIGINT if at_once else signal.SIGTERM)
            self._handed_on += 1


def run(cells: Sequence[Cell], jobs: int, stop: Stop, program: Path) -> list[tuple[Cell, str]]:
    """Run the cells, `jobs` at a time, until they have ended or `stop` is asked; those that failed, with the reason.

    A cell that another sweep runs, or has run meanwhile, is passed by.
    """
    queue, failed = list(cells), []
    children: list[Child] = []
    share = threads(min(jobs, max(len(queue), 1)))
    began, ended = time.monotonic(), 0
    try:
        while children or (queue and not stop.asked):
            if queue and not stop.asked and len(children) < jobs:
                if child := start(queue.pop(0), program, share):
                    children.append(child)
                continue
            time.sleep(LOOK_SECONDS)
            stop.hand_on(children)
            for child in [child for child in children if child.process.poll() is not None]:
                children.remove(child)
                ended += 1
                left = len(queue) + len(children)
                ahead = (time.monotonic() - began) / ended * left
                if reason := end(child, f"; {left} left, about {duration(ahead)}" if left else "", stop):
                    failed.append((child.cell, reason))
                if child.process.returncode == BAD_INPUT and queue:
                    say(f"{len(queue)} cells are not started: what is wrong here is likely to be wrong there")
                    queue.clear()
    finally:
        for child in children:
            child.process.terminate()
    return failed


def threads(jobs: int) -> dict[str, str]:
    """The environment that gives each of `jobs` processes its share of the CPU; two with all threads each thrash."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {"OMP_NUM_THREADS": str(max(1, count // jobs))} if jobs > 1 else {}


def start(cell: Cell, program: Path, share: dict[str, str]) -> Child | None:
    """Begin or resume the cell; None where another sweep is running it or has finished it.

    The lock is on the open log, which the child inherits: it lasts as long as the child, also when the sweep is killed.
    """
    cell.log.parent.mkdir(parents=True, exist_ok=True)
    log = try_lock(cell.log)
    if log is None:
        say(f"{cell.label}: passed by, another sweep is running it")
        return None
    with log:
        if finished([cell])[0]:
            say(f"{cell.label}: passed by, another sweep has finished it")
            return None
        command = [sys.executable, str(program), *cell.argv]
        log.write(f"$ {shlex.join(command)}\n")
        log.flush()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=share | os.environ,
            process_group=0,
        )
        say(f"{cell.label}: started, {cell.log}")
        return Child(cell, process, log.tell(), time.monotonic())


def end(child: Child, ahead: str, stop: Stop) -> str | None:
    """Say how the child ended; the reason where it failed. One that was stopped from outside stops the sweep."""
    cell, code, took = child.cell, child.process.returncode, duration(time.monotonic() - child.began)
    if code == RunInUse.exit_code:
        say(f"{cell.label}: passed by, another process is training it")
        return None
    if code in STOPPED:
        say(f"{cell.label}: stopped after {took}")
        if not stop.asked:
            stop.asked.append(signal.SIGTERM)
        return None
    row = finished([cell])[0] if code == 0 else None
    if row is not None:
        say(f"{cell.label}: {accuracy(row):.2f} % in {took}{ahead}")
        return None
    with cell.log.open("rb") as log:
        log.seek(child.said)
        words = log.read().decode(errors="replace").strip().splitlines()
    reason = words[-1] if words else "it said nothing"
    if code < 0:
        reason = f"killed by {signal.Signals(-code).name}; its last words: {reason}"
    elif code == 0:
        reason = f"it ended without a row in {cell.results}; its last words: {reason}"
    say(f"{cell.label}: failed after {took}: {reason}{ahead}")
    return f"{reason} ({cell.log})"


def duration(seconds: float) -> str:
    """ "45 s", "12 min", "3.4 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
