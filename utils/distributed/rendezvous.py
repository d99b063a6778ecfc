"""The other processes of a run: finding them, hearing that one of them has failed, leaving with them."""

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
from utils.distributed.launcher_env import FIRST_GOES, ProcessInfo
from utils.distributed.runtime import Runtime
from utils.errors import RESUMABLE, RunFailed, SilentExit, Stopped, UsageError

ASK_EVERY = 0.05  # seconds between looks at who has come
LOOK_EVERY = 1.0  # seconds between looks at whether another process has failed
GRACE = 10.0  # seconds that this one then has to end by itself: it may hang in a collective call of a GPU
FIRST_WORD = 1.0  # seconds that rank 0 is ahead of the others in telling what all have to tell
COLLECTIVE = timedelta(minutes=30)  # a process that is so late to a collective call will not come


@contextmanager
def joined(runtime: Runtime, timeout: float) -> Iterator[bool]:
    """While it lasts this process is one of a group, and only rank 0 is heard. Alone it does nothing.

    Yields, on rank 0, whether the launcher has started the processes before. An error is told once, by the process that
    had it, with its rank; the others then leave within seconds. Raises RunFailed where the others do not come within
    `timeout` seconds, UsageError where their devices do not go together.
    """
    place = runtime.place
    if place.world == 1:
        yield False
        return
    board, again = _connect(runtime, timeout)
    board.watch()
    try:
        with _muted() if place.rank else nullcontext():
            yield again
    except Stopped as stopped:
        dist.barrier()  # a launcher may end the others at the first exit: the first process has saved by now
        dist.destroy_process_group()
        if place.rank:
            raise SilentExit(RESUMABLE) from stopped
        raise
    except SilentExit:
        time.sleep(FIRST_GOES)
        raise
    except Exception as error:
        board.told(error)
        raise
    finally:
        board.close()
    dist.destroy_process_group()


def _connect(runtime: Runtime, timeout: float) -> tuple["FailureWatcher", bool]:
    """Meet the others; whether they have met before. A timer ends what torch's timeouts do not: an interface that lets
    nothing through."""
    place, backend = runtime.place, runtime.backend
    say(f"rank {place.rank} of {place.world} on {platform.node()}, meeting at {place.address}:{place.port} ({backend})")
    os.environ.update(place.environment())
    where, limit = f"{place.address}:{place.port}", timedelta(seconds=timeout)
    timer = threading.Timer(timeout + 2, _give_up, [place, where, timeout])
    timer.daemon = True
    timer.start()
    try:
        store, _, _ = next(iter(dist.rendezvous("env://", place.rank, place.world, timeout=limit)))
        name, told = meet(store, place, timeout, [place.attempt, backend, runtime.gpu])
        if wrong := misfit(told):
            if place.rank:
                time.sleep(FIRST_GOES)
                raise SilentExit(2)
            raise UsageError(f"device: {wrong}")
        dist.init_process_group(
            backend,
            store=dist.PrefixStore(name, store),
            rank=place.rank,
            world_size=place.world,
            timeout=COLLECTIVE,
            device_id=runtime.device if runtime.gpu else None,
        )
        dist.barrier()  # connects them, so that what cannot be reached ends here
    except RuntimeError as error:
        if isinstance(error, RunFailed):
            raise
        raise RunFailed(f"cannot meet the others at {where} within {timeout:g} s: {_reason(error)}") from error
    finally:
        timer.cancel()
    return FailureWatcher(place, name), met_before(store, place, told)


def meet(store: dist.Store, place: ProcessInfo, timeout: float, about: Sequence[Any]) -> tuple[str, list[list[Any]]]:
    """Wait for all processes of this start. Returns a name which this start has alone, and what each tells `about`
    itself, by rank.

    torchrun keeps one store for all its starts, and machines may count them differently: what a dead process has left
    there is known by nobody's having answered to it. Raises RunFailed, naming those who do not come within `timeout`
    seconds.
    """
    here = answered = [f"here/{rank}" for rank in range(place.world)]
    store.set(here[place.rank], json.dumps([uuid.uuid4().hex, *about]))
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        if store.check(here):
            said = store.multi_get(here)
            name = hashlib.sha256(b"".join(said)).hexdigest()
            answered = [f"{name}/{rank}" for rank in range(place.world)]
            store.set(answered[place.rank], "")
            if store.check(answered):
                return name, [json.loads(one)[1:] for one in said]
        time.sleep(ASK_EVERY)
    missing = [str(rank) for rank, key in enumerate(answered) if not store.check([key])]
    raise RunFailed(f"within {timeout:g} s nobody came as rank {', '.join(missing)} of {place.world}")


def met_before(store: dist.Store, place: ProcessInfo, told: Sequence[Sequence[Any]]) -> bool:
    """Whether this is not the first start: by the count of any machine, or on rank 0 by what the store remembers, since
    no machine counts the starts that another one's coming or going has caused."""
    return (place.rank == 0 and store.add("met", 1) > 1) or any(attempt for attempt, *_ in told)


def misfit(told: Sequence[Sequence[Any]]) -> str:
    """What is wrong where two processes are on one GPU, or one computes where the others do not; else nothing.

    `told`: by rank, the starts counted, the backend, and the name of the GPU, empty on a CPU.
    """
    users: dict[str, int] = {}
    for rank, (_, backend, gpu) in enumerate(told):
        if backend != told[0][1]:
            return f"rank 0 came with {told[0][1]}, rank {rank} with {backend}; --device says cpu or cuda for all"
        if gpu and users.setdefault(gpu, rank) != rank:
            return f"ranks {users[gpu]} and {rank} are both on GPU {gpu}; each needs one of its own"
    return ""


def _give_up(place: ProcessInfo, where: str, timeout: float) -> None:
    os.write(
        2,
        f"failed: rank {place.rank} of {place.world} met the others at {where} but could not reach them within "
        f"{timeout:g} s; GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME names the network interface to use\n".encode(),
    )
    os._exit(1)


class FailureWatcher:
    """Where the process that fails first leaves word, for all to see."""

    def __init__(self, place: ProcessInfo, name: str) -> None:
        self._place = place
        self._store = dist.TCPStore(place.address, place.port, is_master=False, timeout=timedelta(seconds=GRACE))
        self._failed = f"{name}/failed"
        self._over = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def watch(self) -> None:
        """Look, in a thread of its own, whether another process has failed, and then end this one before long."""
        self._watcher.start()

    def _watch(self) -> None:
        while not self._over.wait(LOOK_EVERY):
            if self._word() is False or self._over.wait(GRACE):
                continue
            word = self._word()  # an answer that failed to come once is no reason to end
            if word is None:
                told = (
                    f"failed: rank {self._place.rank} of {self._place.world} has lost the process that keeps the store"
                )
                os.write(2, f"{told}, for {GRACE:g} s\n".encode())
            if word is not False:
                os._exit(1)

    def _word(self) -> bool | None:
        """Whether a process has left word of a failure; None where the one that keeps the store does not answer."""
        try:
            return bool(self._store.check([self._failed]))
        except RuntimeError:
            return None

    def told(self, error: Exception) -> None:
        """Leave word of `error`. Raises RunFailed in place of one that says no more than that another process is gone.

        Where another process was first, SilentExit.
        """
        if self._place.rank:
            time.sleep(FIRST_WORD)
        try:
            first = self._store.add(self._failed, 1) == 1
        except RuntimeError:
            first = False
        if not first:
            time.sleep(FIRST_GOES)
            raise SilentExit(2 if isinstance(error, UsageError) else 1) from error
        where = f"rank {self._place.rank} of {self._place.world} on {platform.node()}"
        if lost(error):
            raise RunFailed(f"another process is gone, and the connection to it ({where})") from error
        if isinstance(error, dist.DistError):
            raise RunFailed(f"{_reason(error)} ({where})") from error
        error.add_note(where)

    def close(self) -> None:
        """Look no more; a thread still within the store when the interpreter ends would abort the process."""
        self._over.set()
        self._watcher.join(2 * LOOK_EVERY)


def lost(error: Exception) -> bool:
    """Whether `error` says that another process is gone. NCCL says whatever has failed in errors of one type."""
    if isinstance(error, dist.DistBackendError):
        return "ncclRemoteError" in str(error) or "remote process exited" in str(error)
    return isinstance(error, dist.DistError) or (type(error) is RuntimeError and "gloo" in str(error).lower())


@contextmanager
def _muted() -> Iterator[None]:
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


def _reason(error: Exception) -> str:
    """The line that says most: of NCCL's it is the one that follows "Last error:"."""
    lines = str(error).rpartition("Last error:")[2].strip().splitlines()
    return lines[0] if lines else type(error).__name__
