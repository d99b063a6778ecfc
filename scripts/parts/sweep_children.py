"""Child processes of a sweep, one per cell: several run at a time, and all are stopped together."""

import os
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from subprocess import DEVNULL, STDOUT, Popen
from types import FrameType

from scripts.parts.sweep_cells import Cell, accuracy, finished
from utils.console import say
from utils.errors import RunInUse, Stopped, UsageError
from utils.files import try_lock
from utils.processor import usable_cores
from utils.stop_signal import INTERRUPT_EXIT_CODE

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP)
# INTERRUPT_EXIT_CODE and the negative codes: a signal ended the child before training began, with nothing to save.
STOPPED = (Stopped.exit_code, INTERRUPT_EXIT_CODE, -signal.SIGTERM, -signal.SIGINT, -signal.SIGUSR2, -signal.SIGHUP)
POLL_SECONDS = 0.1


@dataclass
class Child:
    """Running cell of a sweep, started at `started` (seconds). Its output in the log begins at `log_start` (bytes)."""

    cell: Cell
    process: Popen[bytes]
    log_start: int
    started: float


class Stop:
    """Stop signals that the sweep receives and forwards to its running cells.

    The first request is forwarded as SIGTERM, on which a child saves; a second Ctrl-C as SIGINT, on which it exits at
    once. The children have process groups of their own, because a terminal that closes would end them with SIGHUP
    before they save.
    """

    def __init__(self) -> None:
        self.requests: list[int] = []
        self._forwarded = 0

    def listen(self) -> "Stop":
        """Handle STOP_SIGNALS, except those that this process ignores, as SIGHUP under nohup. Return self."""
        for number in STOP_SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._request)
        return self

    def _request(self, number: int, _frame: FrameType | None) -> None:
        self.requests.append(number)

    @property
    def reason(self) -> str:
        """The name of the first signal."""
        return signal.Signals(self.requests[0]).name

    def forward(self, children: Sequence[Child]) -> None:
        """Send the running cells the stop requests received since the last call."""
        while self._forwarded < len(self.requests):
            at_once = self._forwarded > 0 and self.requests[self._forwarded] == signal.SIGINT
            if self._forwarded == 0:
                say(f"{self.reason}: the running cells save and stop; a second Ctrl-C exits at once")
            for child in children:
                child.process.send_signal(signal.SIGINT if at_once else signal.SIGTERM)
            self._forwarded += 1


def run(cells: Sequence[Cell], jobs: int, stop: Stop, program: Path) -> list[tuple[Cell, str]]:
    """Run the cells as child processes, `jobs` at a time, until all have ended or `stop` has a request.

    Returns the failed cells with the reasons. A cell that another sweep runs, or has just finished, is skipped.
    """
    queue, failed = list(cells), []
    children: list[Child] = []
    environment = threads(min(jobs, max(len(queue), 1)))
    started, ended = time.monotonic(), 0
    try:
        while children or (queue and not stop.requests):
            if queue and not stop.requests and len(children) < jobs:
                if child := start(queue.pop(0), program, environment):
                    children.append(child)
                continue
            time.sleep(POLL_SECONDS)
            stop.forward(children)
            for child in [child for child in children if child.process.poll() is not None]:
                children.remove(child)
                ended += 1
                left = len(queue) + len(children)
                remaining = (time.monotonic() - started) / ended * left
                if reason := end(child, f"; {left} left, about {duration(remaining)}" if left else "", stop):
                    failed.append((child.cell, reason))
                if child.process.returncode == UsageError.exit_code and queue:  # such as a missing data set
                    say(f"{len(queue)} cells are not started, because they are likely to fail for the same reason")
                    queue.clear()
    finally:
        for child in children:
            child.process.terminate()
    return failed


def threads(jobs: int) -> dict[str, str]:
    """Return environment variables that give each of `jobs` processes an equal share of the CPU's threads.

    Several processes with all threads each slow each other down.
    """
    return {"OMP_NUM_THREADS": str(max(1, usable_cores() // jobs))} if jobs > 1 else {}


def start(cell: Cell, program: Path, environment: dict[str, str]) -> Child | None:
    """Start or resume a cell as a child process. Return None if another sweep is running or has finished the cell.

    The child inherits the open, locked log, so the lock lasts as long as the child, even if the sweep is killed.
    """
    cell.log.parent.mkdir(parents=True, exist_ok=True)
    log = try_lock(cell.log)
    if log is None:
        say(f"{cell.label}: skipped, another sweep is running it")
        return None
    with log:
        if finished([cell])[0]:
            say(f"{cell.label}: skipped, another sweep has finished it")
            return None
        command = [sys.executable, str(program), *cell.argv]
        log.write(f"$ {shlex.join(command)}\n")
        log.flush()
        env = environment | os.environ
        process = Popen(command, stdin=DEVNULL, stdout=log, stderr=STDOUT, env=env, process_group=0)
        say(f"{cell.label}: started, {cell.log}")
        return Child(cell, process, log.tell(), time.monotonic())


def end(child: Child, remaining: str, stop: Stop) -> str | None:
    """Print the result of a child process that has ended. Return the reason if it failed, else None.

    remaining: Text to append to the printed line.
    stop: Receives a SIGTERM if a signal from elsewhere stopped the child, so that the whole sweep stops.
    """
    cell, code, took = child.cell, child.process.returncode, duration(time.monotonic() - child.started)
    if code == RunInUse.exit_code:
        say(f"{cell.label}: skipped, another process is training it")
        return None
    if code in STOPPED:
        say(f"{cell.label}: stopped after {took}")
        if not stop.requests:
            stop.requests.append(signal.SIGTERM)
        return None
    row = finished([cell])[0] if code == 0 else None
    if row is not None:
        say(f"{cell.label}: {accuracy(row):.2f} % in {took}{remaining}")
        return None
    reason = _failure(child)
    say(f"{cell.label}: failed after {took}: {reason}{remaining}")
    return f"{reason} ({cell.log})"


def _failure(child: Child) -> str:
    """Return the reason of a child's failure: its last line of output, with the signal or the missing row."""
    with child.cell.log.open("rb") as log:
        log.seek(child.log_start)
        lines = log.read().decode(errors="replace").strip().splitlines()
    last, code = lines[-1] if lines else "no output", child.process.returncode
    if code < 0:
        return f"killed by {signal.Signals(-code).name}; last line of its output: {last}"
    if code == 0:
        return f"ended without a row in {child.cell.results}; last line of its output: {last}"
    return last


def duration(seconds: float) -> str:
    """Format a duration as "45 s", "12 min" or "3.4 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
