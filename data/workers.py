"""Worker processes that prepare batches ahead of use, and the shared memory in which they pass the batches on.

torch's DataLoader sends each batch from a thread of the worker. If shared memory or file descriptors run out, that
thread drops the batch, and the main process waits forever. Here the main process allocates all shared memory before it
starts the workers, and a worker sends only a few bytes per batch. The main process notices the death of a worker,
because it closes the worker's pipe.
"""

import atexit
import multiprocessing
import os
import signal
import sys
import time
import traceback
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from torch import Tensor

from utils import out_of_memory, stop_signal
from utils.errors import RunFailed, StoppedWaiting
from utils.exit_codes import is_expected, one_line

# fork is quick and shares the memory of the data set. Where fork is unsafe or absent, each worker gets a copy.
START_METHOD = "fork" if sys.platform == "linux" else "spawn"
# A terminal or scheduler sends these to the whole process group. The main process then finishes its step and saves a
# checkpoint, for which it still needs its workers.
IGNORED_SIGNALS = ("SIGINT", "SIGTERM", "SIGUSR2", "SIGHUP")
BATCHES_AHEAD = 2  # requested from each worker at a time
POLL_SECONDS = 1.0  # between checks whether the other process is still alive
STOP_GRACE_SECONDS = 5.0  # time for a batch to arrive after a signal has asked the run to stop
ADVICE = "reduce --workers; --workers 0 starts no process"
Answer = tuple[int, str, str]  # (number of images, error message, traceback): types that can always be pickled


class Workers:
    """Pool of worker processes that prepare batches ahead of use.

    prepare: function from a key to a batch, a uint8 tensor of `shape`, whose first size may be smaller.
    count: number of processes.
    Raises RunFailed, after ending the processes already started, if memory or processes cannot be allocated.
    The processes end when the object is deleted or closed, when the program exits, and when the main process dies.
    """

    def __init__(self, prepare: Callable[[Any], Tensor], shape: Sequence[int], count: int) -> None:
        self._pass = 0
        self._pending = [0] * count  # requests that each worker has not answered yet
        self._buffers = allocate_shared((count, BATCHES_AHEAD, *shape))
        self.processes: list[BaseProcess] = []
        self._pipes: list[Connection] = []
        self.close = weakref.finalize(self, kill_workers, self.processes, self._pipes, os.getpid())
        # atexit runs handlers in reverse order, so this one precedes multiprocessing's own handler, which sends SIGTERM
        # and then joins the processes. The workers ignore SIGTERM, so that join would never end.
        atexit.register(self.close)
        context: Any = multiprocessing.get_context(START_METHOD)
        try:
            for buffers in self._buffers:
                ours, theirs = context.Pipe()
                self._pipes.append(ours)
                with theirs:  # open in the worker alone, so that its death closes the pipe
                    process = context.Process(target=run_worker, args=(theirs, prepare, buffers), daemon=True)
                    process.start()
                self.processes.append(process)
        except OSError as error:
            self.close()
            started = f"{len(self.processes)} of {count} loader processes were started"
            raise RunFailed(f"only {started}: {error.strerror or error}; {ADVICE}") from error
        except BaseException:
            self.close()
            raise

    def batches(self, keys: Sequence[Any]) -> Iterator[Tensor]:
        """Yield one batch per key, in order, prepared ahead of use by the worker processes.

        A worker calls `prepare(key)`. A batch is a view of shared memory, which is overwritten when the next batch is
        requested.

        A new call ends the iterator of the previous call. Raises RunFailed if a worker died or `prepare` failed for an
        expected reason, and RuntimeError with the worker's traceback for any other error of `prepare`. Raises
        StoppedWaiting if a signal asks the run to stop and no batch arrives.
        """
        self._pass += 1
        current = self._pass
        for worker, pending in enumerate(self._pending):  # of an earlier call that was not iterated to its end
            for _ in range(pending):
                self._receive(worker)
        count = len(self.processes)
        for number in range(min(count * BATCHES_AHEAD, len(keys))):
            self._request(number, keys[number])
        for number in range(len(keys)):
            size, failure, details = self._receive(number % count)
            if details:
                raise RuntimeError(f"{failure} in a loader process:\n{details}")
            if failure:
                raise RunFailed(failure)
            yield self._buffers[number % count, number // count % BATCHES_AHEAD, :size]
            if current != self._pass:
                return
            if number + count * BATCHES_AHEAD < len(keys):
                self._request(number + count * BATCHES_AHEAD, keys[number + count * BATCHES_AHEAD])

    def _request(self, number: int, key: Any) -> None:
        """Send a worker process the request for one batch.

        The worker calls `prepare(key)`. `number` is the position of the batch (from 0). The position determines the
        worker and which of its buffers in shared memory gets the batch.
        """
        worker, buffer = number % len(self.processes), number // len(self.processes) % BATCHES_AHEAD
        try:
            self._pipes[worker].send((buffer, key))
        except OSError as error:
            raise self._death_error(worker) from error
        self._pending[worker] += 1

    def _receive(self, worker: int) -> Answer:
        """Wait for a worker's answer to its oldest open request, and return the answer."""
        pipe, since = self._pipes[worker], None
        try:
            while not pipe.poll(POLL_SECONDS):
                reason = stop_signal.stop_reason()
                since = since or (reason and time.monotonic())
                if since and time.monotonic() - since > STOP_GRACE_SECONDS:
                    raise StoppedWaiting(f"asked to stop by {reason} while a loader process prepares a batch")
            answer: Answer = pipe.recv()
        except (EOFError, ConnectionError) as error:
            raise self._death_error(worker) from error
        self._pending[worker] -= 1
        return answer

    def _death_error(self, worker: int) -> RunFailed:
        """Return an error that states how a worker process ended."""
        self.processes[worker].join(POLL_SECONDS)
        code = self.processes[worker].exitcode
        if code is None:
            reason = "it closed its pipe"
        else:
            reason = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return RunFailed(f"a loader process ended too early: {reason}; memory may have run out; {ADVICE}")


def allocate_shared(shape: Sequence[int]) -> Tensor:
    """Allocate a uint8 tensor in shared memory. Raises RunFailed on a shortage.

    Processes that are started later share the memory.
    """
    try:
        memory: Any = torch.empty(shape, dtype=torch.uint8)  # Any: torch does not annotate share_memory_
        shared: Tensor = memory.share_memory_()
        return shared
    except (OSError, MemoryError, RuntimeError) as error:
        size, free = torch.Size(shape).numel(), ""
        reason = one_line(error).rpartition(">: ")[2]  # without the name of torch's file
        with suppress(OSError):
            filesystem = os.statvfs("/dev/shm")
            free = f", of which {filesystem.f_bavail * filesystem.f_frsize / 2**20:,.1f} MiB are free"
        raise RunFailed(
            f"loader processes need {size / 2**20:,.1f} MiB of shared memory (/dev/shm){free}: {reason}; "
            f"reduce batch_size or {ADVICE}"
        ) from error


def kill_workers(processes: Sequence[BaseProcess], pipes: Sequence[Connection], owner: int) -> None:
    """Kill the worker processes and close the pipes to them.

    `owner` is the pid of the process that started the workers. In any other process, nothing is done. Workers write no
    files, so no file is left half-written.
    """
    if os.getpid() != owner:  # a forked worker inherits the finalizers of its parent
        return
    for pipe in pipes:
        pipe.close()
    for process in processes:
        process.kill()
    for process in processes:
        process.join(POLL_SECONDS)


def run_worker(pipe: Connection, prepare: Callable[[Any], Tensor], buffers: Tensor) -> None:
    """Prepare requested batches in a worker process, until the main process closes the pipe or dies.

    Requests come from `pipe`, and each batch is written into one of `buffers`. A request is (index of the buffer, key),
    and `prepare(key)` returns the batch.
    """
    torch.set_num_threads(1)
    for name in IGNORED_SIGNALS:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    parent = os.getppid()
    with suppress(EOFError, ConnectionError):
        while True:
            while not pipe.poll(POLL_SECONDS):  # workers started later inherit the other end and keep it open
                if os.getppid() != parent:
                    return
            buffer, key = pipe.recv()
            pipe.send(answer_request(prepare, key, buffers[buffer]))


def answer_request(prepare: Callable[[Any], Tensor], key: Any, buffer: Tensor) -> Answer:
    """Prepare one batch in a worker process, and return the answer to the main process.

    The images `prepare(key)` are written into `buffer`, which is shared memory. The answer is (number of images, "",
    ""), or (0, error message, traceback) if `prepare` fails. An expected error has no traceback.
    """
    try:
        images = prepare(key)
        buffer[: len(images)] = images
    except Exception as error:
        details = "" if is_expected(error) else traceback.format_exc()
        advice = f" (in a loader process); {ADVICE}" if out_of_memory.is_out_of_memory(error) else ""
        return 0, one_line(error) + advice, details
    return len(images), "", ""
