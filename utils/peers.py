"""The other processes of a run: finding them, hearing that one of them has failed, leaving with them."""

import os
import platform
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from args import UsageError
from utils.checkpoints import RunFailed
from utils.ending import Quiet
from utils.progress import say
from utils.ranks import Place
from utils.signals import RESUMABLE, Stopped

LOOK_EVERY = 1.0  # seconds between looks at whether another process has failed
GRACE = 10.0  # seconds that this one then has to end by itself: it may hang in a collective call of a GPU
FIRST_WORD = 1.0  # seconds that rank 0 is ahead of the others in telling what all have to tell
FIRST_GOES = 3.0  # seconds that the others then wait: a launcher takes the first end for the cause, and ends all
COLLECTIVE = timedelta(minutes=30)  # a process that is so late to a collective call will not come


@contextmanager
def joined(place: Place, backend: str, timeout: float) -> Iterator[None]:
    """While it lasts this process is one of a group, and only rank 0 is heard. Alone it does nothing.

    An error is told once, by the process that had it, which says its rank first; the others then leave within seconds.
    Raises RunFailed where the others do not come within `timeout` seconds.
    """
    if place.world == 1:
        yield
        return
    board = _connect(place, backend, timeout)
    board.watch()
    try:
        with _muted() if place.rank else nullcontext():
            yield
    except Stopped as stopped:
        dist.barrier()  # a launcher may end the others at the first exit: the first process has saved by now
        if place.rank:
            raise Quiet(RESUMABLE) from stopped
        raise
    except Quiet:
        time.sleep(FIRST_GOES)
        raise
    except Exception as error:
        board.told(error)
        raise
    finally:
        board.close()
    dist.destroy_process_group()


def _connect(place: Place, backend: str, timeout: float) -> "Board":
    """Meet the others. A timer ends what torch's timeouts do not: an interface that lets nothing through."""
    say(f"rank {place.rank} of {place.world} on {platform.node()}, meeting at {place.address}:{place.port} ({backend})")
    os.environ.update(place.environment())
    where, limit = f"{place.address}:{place.port}", timedelta(seconds=timeout)
    timer = threading.Timer(timeout + 2, _give_up, [place, where, timeout])
    timer.daemon = True
    timer.start()
    try:
        store, _, _ = next(iter(dist.rendezvous("env://", place.rank, place.world, timeout=limit)))
        store.set(f"here/{place.attempt}/{place.rank}", "")
        _wait_for_all(store, place, timeout)
        dist.init_process_group(backend, store=store, rank=place.rank, world_size=place.world, timeout=COLLECTIVE)
    except RuntimeError as error:
        if isinstance(error, RunFailed):
            raise
        raise RunFailed(f"cannot meet the others at {where} within {timeout:g} s: {_first_line(error)}") from error
    finally:
        timer.cancel()
    return Board(place)


def _wait_for_all(store: dist.Store, place: Place, timeout: float) -> None:
    keys = {rank: f"here/{place.attempt}/{rank}" for rank in range(place.world)}
    try:
        store.wait(list(keys.values()), timedelta(seconds=timeout))
    except RuntimeError as error:
        missing = [str(rank) for rank, key in keys.items() if not store.check([key])]
        raise RunFailed(f"within {timeout:g} s nobody came as rank {', '.join(missing)} of {place.world}") from error


def _give_up(place: Place, where: str, timeout: float) -> None:
    os.write(
        2,
        f"failed: rank {place.rank} of {place.world} met the others at {where} but could not reach them within "
        f"{timeout:g} s; GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME names the network interface to use\n".encode(),
    )
    os._exit(1)


class Board:
    """Where the process that fails first leaves word, for all to see."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._store = dist.TCPStore(place.address, place.port, is_master=False, timeout=timedelta(seconds=GRACE))
        self._failed = f"failed/{place.attempt}"
        self._over = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def watch(self) -> None:
        """Look, in a thread of its own, whether another process has failed, and then end this one before long."""
        self._watcher.start()

    def _watch(self) -> None:
        while not self._over.wait(LOOK_EVERY):
            if self._word():
                time.sleep(GRACE)
                os._exit(1)

    def _word(self) -> bool:
        """Whether a process has left word of a failure, or the one that keeps the store is gone."""
        try:
            return bool(self._store.check([self._failed]))
        except RuntimeError:
            return True

    def told(self, error: Exception) -> None:
        """Leave word of `error`. Raises RunFailed in place of one that says no more than that another process is gone.

        Where another process was first, Quiet.
        """
        if self._place.rank:
            time.sleep(FIRST_WORD)
        try:
            first = self._store.add(self._failed, 1) == 1
        except RuntimeError:
            first = False
        if not first:
            time.sleep(FIRST_GOES)
            raise Quiet(2 if isinstance(error, UsageError) else 1) from error
        where = f"rank {self._place.rank} of {self._place.world} on {platform.node()}"
        if lost(error):
            raise RunFailed(f"another process is gone, and the connection to it ({where})") from error
        error.add_note(where)

    def close(self) -> None:
        """Look no more; a thread still within the store when the interpreter ends would abort the process."""
        self._over.set()
        self._watcher.join(2 * LOOK_EVERY)


def lost(error: Exception) -> bool:
    """Whether `error` says that another process is gone."""
    return isinstance(error, dist.DistError) or (type(error) is RuntimeError and "gloo" in str(error).lower())


@contextmanager
def _muted() -> Iterator[None]:
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
