"""The process group of a run: rendezvous of the ranks, detection of failed ranks, and the exit of all ranks."""

import hashlib
import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist

from utils.console import say
from utils.distributed.launcher_env import SILENT_EXIT_DELAY, ProcessInfo
from utils.distributed.runtime import Runtime
from utils.errors import RunFailed, SilentExit, Stopped, UsageError, exit_code

POLL_SECONDS = 0.05  # between checks of which ranks have arrived
WATCH_SECONDS = 1.0  # between checks of whether another rank has failed
GRACE_SECONDS = 10.0  # for a rank to end by itself after another failed; it may hang in a collective call on a GPU
FIRST_RANK_LEAD = 1.0  # seconds by which rank 0 precedes the others in reporting an error that all ranks have
COLLECTIVE_TIMEOUT = timedelta(minutes=30)  # a rank that is later than this to a collective call has hung


@contextmanager
def process_group(runtime: Runtime, timeout: float) -> Iterator[bool]:
    """Connect all ranks in torch's process group while the `with` block runs.

    Only rank 0 prints in this block. Yields True if the launcher has restarted the ranks. Only rank 0 always knows. A
    single process connects to nothing. If a rank raises an error, that rank alone reports the error with its rank
    number, and all ranks end within seconds.

    Raises RunFailed if not all ranks arrive within `timeout` seconds, UsageError if the ranks' devices conflict.
    """
    process = runtime.process
    if process.world == 1:
        yield False
        return
    watcher, restarted = _connect(runtime, timeout)
    watcher.start()
    try:
        with _muted() if process.rank else nullcontext():
            yield restarted
    except Stopped as stopped:
        dist.barrier()  # a launcher may kill the other ranks at the first exit: rank 0 must have saved by then
        dist.destroy_process_group()
        if process.rank:
            raise SilentExit(stopped.exit_code) from stopped
        raise
    except SilentExit:
        time.sleep(SILENT_EXIT_DELAY)
        raise
    except Exception as error:
        watcher.report(error)
        raise
    finally:
        watcher.close()
    dist.destroy_process_group()


def _connect(runtime: Runtime, timeout: float) -> tuple["FailureWatcher", bool]:
    """Wait for all ranks and initialise torch's process group.

    Return (watcher for failures of other ranks, True if the ranks were restarted). torch's own timeouts do not cover a
    network interface that drops all packets. A timer does.
    """
    process, backend = runtime.process, runtime.backend
    where = f"{process.address}:{process.port}"
    say(f"rank {process.rank} of {process.world} on {platform.node()}, rendezvous at {where} ({backend})")
    os.environ.update(process.environment())
    limit = timedelta(seconds=timeout)
    timer = threading.Timer(timeout + 2, _exit_unreachable, [process, where, timeout])
    timer.daemon = True
    timer.start()
    try:
        store, _, _ = next(iter(dist.rendezvous("env://", process.rank, process.world, timeout=limit)))
        start, all_metadata = wait_for_ranks(store, process, timeout, [process.attempt, backend, runtime.gpu])
        if conflict := device_conflict(all_metadata):
            if process.rank:
                time.sleep(SILENT_EXIT_DELAY)
                raise SilentExit(UsageError.exit_code)
            raise UsageError(f"device: {conflict}")
        dist.init_process_group(
            backend,
            store=dist.PrefixStore(start, store),
            rank=process.rank,
            world_size=process.world,
            timeout=COLLECTIVE_TIMEOUT,
            device_id=runtime.device if runtime.gpu else None,
        )
        dist.barrier()  # opens the connections, so that unreachable ranks fail here
    except RuntimeError as error:
        if isinstance(error, RunFailed):
            raise
        raise RunFailed(f"the rendezvous at {where} failed within {timeout:g} s: {_reason(error)}") from error
    finally:
        timer.cancel()
    return FailureWatcher(process, start), is_restart(store, process, all_metadata)


def wait_for_ranks(
    store: dist.Store, process: ProcessInfo, timeout: float, metadata: Sequence[Any]
) -> tuple[str, list[list[Any]]]:
    """Wait until all ranks have arrived at the rendezvous, and return their metadata.

    Each rank passes its own `metadata`. Return (unique ID of this launch, list of the metadata of all ranks).

    torchrun keeps one store over all restarts, so the store may hold entries of processes that have died. Machines may
    count restarts differently, so a restart count does not identify these entries. A launch is therefore complete when
    every rank has confirmed the same set of entries.

    Raises RunFailed, which names the missing ranks, after `timeout` seconds.
    """
    arrived = answered = [f"here/{rank}" for rank in range(process.world)]
    store.set(arrived[process.rank], json.dumps([uuid.uuid4().hex, *metadata]))
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        if store.check(arrived):
            entries = store.multi_get(arrived)
            start = hashlib.sha256(b"".join(entries)).hexdigest()
            answered = [f"{start}/{rank}" for rank in range(process.world)]
            store.set(answered[process.rank], "")
            if store.check(answered):
                return start, [json.loads(entry)[1:] for entry in entries]
        time.sleep(POLL_SECONDS)
    missing = [str(rank) for rank, key in enumerate(answered) if not store.check([key])]
    raise RunFailed(f"within {timeout:g} s no process arrived as rank {', '.join(missing)} of {process.world}")


def is_restart(store: dist.Store, process: ProcessInfo, all_metadata: Sequence[Sequence[Any]]) -> bool:
    """Return True if the launcher has restarted the ranks.

    `all_metadata` has the number of restarts of each rank. A machine does not count restarts that the arrival or loss
    of another machine causes. Rank 0 therefore also counts all starts in the store.
    """
    return (process.rank == 0 and store.add("starts", 1) > 1) or any(attempt for attempt, *_ in all_metadata)


def device_conflict(all_metadata: Sequence[Sequence[Any]]) -> str:
    """Return an error message if the devices of two ranks conflict, else "".

    Two ranks conflict if they are on the same GPU or use different backends.

    all_metadata: per rank the number of restarts, the backend of torch.distributed, and the UUID of the GPU, or "" on
    a CPU.
    """
    users: dict[str, int] = {}
    for rank, (_, backend, gpu) in enumerate(all_metadata):
        if backend != all_metadata[0][1]:
            return f"rank 0 uses {all_metadata[0][1]}, rank {rank} uses {backend}; --device cpu or cuda sets it for all"
        if gpu and users.setdefault(gpu, rank) != rank:
            return f"ranks {users[gpu]} and {rank} are both on GPU {gpu}; each needs one of its own"
    return ""


def _exit_unreachable(process: ProcessInfo, address: str, timeout: float) -> None:
    """Exit at once with a message that the other ranks could not be reached.

    address: host and port of the rendezvous. timeout: time limit in seconds, for the message.
    """
    os.write(
        2,
        f"failed: rank {process.rank} of {process.world} found the other ranks at {address} but could not reach them "
        f"within {timeout:g} s; GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME names the network interface to use\n".encode(),
    )
    os._exit(1)


class FailureWatcher:
    """Thread that ends this process after another rank has failed.

    A failed rank records its failure in the rendezvous store. `start` is the ID of this launch of the ranks, from
    `wait_for_ranks`.
    """

    def __init__(self, process: ProcessInfo, start: str) -> None:
        self._process = process
        timeout = timedelta(seconds=GRACE_SECONDS)
        self._store = dist.TCPStore(process.address, process.port, is_master=False, timeout=timeout)
        self._failed = f"{start}/failed"
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def start(self) -> None:
        """Start the thread of this watcher."""
        self._thread.start()

    def _watch(self) -> None:
        while not self._closed.wait(WATCH_SECONDS):
            if self._has_failed() is False or self._closed.wait(GRACE_SECONDS):
                continue
            failed = self._has_failed()  # ask again: a single unanswered request is no reason to exit
            if failed is None:
                rank = f"rank {self._process.rank} of {self._process.world}"
                message = f"failed: {rank} could not reach the rendezvous store for {GRACE_SECONDS:g} s\n"
                os.write(2, message.encode())
            if failed is not False:
                os._exit(1)

    def _has_failed(self) -> bool | None:
        """Return True if a rank has failed, or None if the rendezvous store does not answer.

        A failed rank has a record in the store.
        """
        try:
            return bool(self._store.check([self._failed]))
        except RuntimeError:
            return None

    def report(self, error: Exception) -> None:
        """Record in the rendezvous store that this rank has failed.

        The rank is added to `error` as a note. Raises SilentExit if another rank has already recorded a failure. Raises
        RunFailed if `error` comes from a collective call, because the cause is then on another rank.
        """
        if self._process.rank:
            time.sleep(FIRST_RANK_LEAD)
        try:
            first = self._store.add(self._failed, 1) == 1
        except RuntimeError:
            first = False
        if not first:
            time.sleep(SILENT_EXIT_DELAY)
            raise SilentExit(exit_code(error)) from error
        where = f"rank {self._process.rank} of {self._process.world} on {platform.node()}"
        if is_connection_loss(error):
            raise RunFailed(f"the connection to another process was lost ({where})") from error
        if isinstance(error, dist.DistError):
            raise RunFailed(f"{_reason(error)} ({where})") from error
        error.add_note(where)

    def close(self) -> None:
        """Stop the thread of this watcher.

        A thread that still calls the store when the interpreter exits would abort the process.
        """
        self._closed.set()
        self._thread.join(2 * WATCH_SECONDS)


def is_connection_loss(error: Exception) -> bool:
    """Return True if `error` means that the connection to another process is lost."""
    # NCCL raises the same type for every failure, and gloo a bare RuntimeError.
    if isinstance(error, dist.DistBackendError):
        return "ncclRemoteError" in str(error) or "remote process exited" in str(error)
    return isinstance(error, dist.DistError) or (type(error) is RuntimeError and "gloo" in str(error).lower())


@contextmanager
def _muted() -> Iterator[None]:
    """Discard standard output and standard error during the `with` block."""
    with Path(os.devnull).open("w", encoding="utf-8") as null, redirect_stdout(null), redirect_stderr(null):
        yield


def _reason(error: Exception) -> str:
    """Return the line of an error's message that states the reason.

    The reason is in the first line, or in NCCL's messages in the line after "Last error:".
    """
    lines = str(error).rpartition("Last error:")[2].strip().splitlines()
    return lines[0] if lines else type(error).__name__
