"""Processes that prepare batches ahead of use, and the memory they share with the run.

torch's DataLoader sends every batch from a thread of the worker, which drops the batch where the shared memory or the
file descriptors run out, and the run waits for it for ever. Here all shared memory is taken before the processes start,
and a worker sends a few bytes from its own code: it answers, or it is dead and its pipe has ended, or it is slow.
"""

import multiprocessing
import multiprocessing.util
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor

from utils import out_of_memory, stop_signal
from utils.errors import RunFailed, StoppedWaiting
from utils.exit_codes import is_expected, one_line

# fork starts at once and shares the set's memory; where it is unsafe or absent, each worker reads a copy of its own
START_METHOD = "fork" if sys.platform == "linux" else "spawn"
# Sent to the whole process group, these ask the run to finish its step and save, for which it needs its workers.
FOR_THE_RUN = ("SIGINT", "SIGTERM", "SIGUSR2", "SIGHUP")
AHEAD = 2  # batches that each worker has in hand
LOOK_EVERY = 1.0  # seconds between looks at whether the other side is still there
PATIENCE = 5.0  # seconds that a batch may take to come after a signal has asked the run to stop
INSTEAD = "fewer --workers need less, --workers 0 none"


class Workers:
    """`count` processes that compute `make(key)`, uint8 of at most `shape`, for one key after another.

    Raises RunFailed where the memory or the processes cannot be had; those already started are ended.
    """

    def __init__(self, make: Callable[[Any], Tensor], shape: Sequence[int], count: int) -> None:
        self._pass = 0
        self._owed = [0] * count  # answers that each worker has not given yet
        self._slots = shared_memory((count, AHEAD, *shape))
        self.processes: list[Any] = []
        self._pipes: list[Connection] = []
        # Run at exit too, before multiprocessing sends SIGTERM, which the workers ignore, and waits for ever.
        self.close = multiprocessing.util.Finalize(self, end, [self.processes, self._pipes], exitpriority=10)
        context: Any = multiprocessing.get_context(START_METHOD)
        try:
            for slots in self._slots:
                ours, theirs = context.Pipe()
                self._pipes.append(ours)
                with theirs:  # open in the worker alone: its death ends the pipe
                    process = context.Process(target=serve, args=(theirs, make, slots), daemon=True)
                    process.start()
                self.processes.append(process)
        except OSError as error:
            self.close()
            started = f"{len(self.processes)} of {count} loader processes were started"
            raise RunFailed(f"only {started}: {error.strerror or error}; {INSTEAD}") from error
        except BaseException:
            self.close()
            raise

    def batches(self, keys: Sequence[Any]) -> Iterator[Tensor]:
        """Yield `make(key)` for each of `keys`, in their order. A batch is overwritten by the next one.

        Another call ends this one. Raises RunFailed for an error of `make` that one line tells and for a worker that
        died, RuntimeError for any other error of `make`, StoppedWaiting where a signal asks the run to stop and no
        batch comes.
        """
        self._pass += 1
        current = self._pass
        for worker, owed in enumerate(self._owed):  # of a pass that was broken off
            for _ in range(owed):
                self._answer(worker)
        count = len(self.processes)
        for number in range(min(count * AHEAD, len(keys))):
            self._ask(number, keys[number])
        for number in range(len(keys)):
            size, failure, details = self._answer(number % count)
            if details:
                raise RuntimeError(f"{failure} in a loader process:\n{details}")
            if failure:
                raise RunFailed(failure)
            yield self._slots[number % count, number // count % AHEAD, :size]
            if current != self._pass:
                return
            if number + count * AHEAD < len(keys):
                self._ask(number + count * AHEAD, keys[number + count * AHEAD])

    def _ask(self, number: int, key: Any) -> None:
        worker, slot = number % len(self.processes), number // len(self.processes) % AHEAD
        try:
            self._pipes[worker].send((slot, key))
        except OSError as error:
            raise self._died(worker) from error
        self._owed[worker] += 1

    def _answer(self, worker: int) -> tuple[int, str, str]:
        """(images, failure, its traceback) of the oldest batch that the worker has in hand."""
        pipe, since = self._pipes[worker], None
        try:
            while not pipe.poll(LOOK_EVERY):
                reason = stop_signal.stop_reason()
                since = since or (reason and time.monotonic())
                if since and time.monotonic() - since > PATIENCE:
                    raise StoppedWaiting(f"asked to stop by {reason} while a loader process prepares a batch")
            answer: tuple[int, str, str] = pipe.recv()
        except (EOFError, ConnectionError) as error:
            raise self._died(worker) from error
        self._owed[worker] -= 1
        return answer

    def _died(self, worker: int) -> RunFailed:
        self.processes[worker].join(LOOK_EVERY)
        code = self.processes[worker].exitcode
        if code is None:
            reason = "it closed its pipe"
        else:
            reason = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return RunFailed(f"a loader process ended too early: {reason}; memory may have run out; {INSTEAD}")


def shared_memory(shape: Sequence[int]) -> Tensor:
    """uint8 memory that processes started later share. Raises RunFailed where there is not enough."""
    try:
        return torch.empty(shape, dtype=torch.uint8).share_memory_()
    except (OSError, MemoryError, RuntimeError) as error:
        size, free = torch.Size(shape).numel(), ""
        reason = one_line(error).rpartition(">: ")[2]  # without the name of torch's file
        with suppress(OSError):
            place = os.statvfs("/dev/shm")
            free = f", of which {place.f_bavail * place.f_frsize / 2**20:,.1f} MiB are free"
        raise RunFailed(
            f"loader processes need {size / 2**20:,.1f} MiB of shared memory (/dev/shm){free}: {reason}; "
            f"a smaller batch_size and {INSTEAD}"
        ) from error


def end(processes: Sequence[Any], pipes: Sequence[Connection]) -> None:
    """Kill the workers: they hold nothing that could be left half-written."""
    for pipe in pipes:
        pipe.close()
    for process in processes:
        process.kill()
    for process in processes:
        process.join(LOOK_EVERY)


def serve(pipe: Connection, make: Callable[[Any], Tensor], slots: Tensor) -> None:
    """Work as a loader process until the run ends, however it ends."""
    torch.set_num_threads(1)
    for name in FOR_THE_RUN:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    run = os.getppid()
    with suppress(EOFError, ConnectionError):
        while True:
            while not pipe.poll(LOOK_EVERY):  # workers started later may hold the other end open
                if os.getppid() != run:
                    return
            slot, key = pipe.recv()
            pipe.send(answer(make, key, slots[slot]))


def answer(make: Callable[[Any], Tensor], key: Any, slot: Tensor) -> tuple[int, str, str]:
    """Put `make(key)` into `slot`. Return (images, failure, its traceback): plain types, which can always be sent."""
    try:
        made = make(key)
        slot[: len(made)] = made
    except Exception as error:
        details = "" if is_expected(error) else traceback.format_exc()
        more = f" (in a loader process); {INSTEAD}" if out_of_memory.is_out_of_memory(error) else ""
        return 0, one_line(error) + more, details
    return len(made), "", ""
