"""Loader processes: every batch comes in its order, or one line says why it does not; no process is left behind."""

import errno
import gc
import json
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch

from data import workers
from data.workers import Workers
from utils.errors import NothingCame, RunFailed
from utils.stop_signal import StopRequest

WAIT = 60  # seconds after which a test fails instead of hanging the suite


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(workers, "LOOK_EVERY", 0.05)
    monkeypatch.setattr(workers, "PATIENCE", 0.2)

    def fail(*_):
        raise TimeoutError(f"no end within {WAIT} s")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(WAIT)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def numbers(key):
    """One to three images that hold the key."""
    return torch.full((1 + key % 3, 2), key, dtype=torch.uint8)


def started(make=numbers, count=2):
    return Workers(make, (3, 2), count)


def seen(batches):
    return [batch.flatten().tolist() for batch in batches]


def children(made):
    return [process for process in multiprocessing.active_children() if process in made]


def ended(processes):
    end = time.monotonic() + WAIT
    while children(processes) and time.monotonic() < end:
        time.sleep(0.01)
    assert not children(processes)


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("keys", [0, 1, 7, 30])
def test_batches_come_in_the_order_of_the_keys(count, keys):
    made = started(count=count)
    for first in (0, 100):
        asked = range(first, first + keys)
        assert seen(made.batches(asked)) == [numbers(key).flatten().tolist() for key in asked]


def test_a_pass_that_is_broken_off_leaves_the_next_one_whole_and_ends():
    made = started(count=3)
    first = made.batches(range(50))
    next(first)
    assert seen(made.batches(range(100, 110))) == [numbers(key).flatten().tolist() for key in range(100, 110)]
    assert list(first) == []


class Stubborn(Exception):
    """An error that cannot be pickled."""

    def __init__(self, of):
        super().__init__(of)
        self.lock = threading.Lock()


FAILURES = [
    (RunFailed("a.png: cannot be decoded: no"), RunFailed, "^a.png: cannot be decoded: no$"),
    (MemoryError(), RunFailed, "^out of memory .in a loader process.; fewer --workers need less, --workers 0 none$"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1048576 bytes."), RunFailed,
     "^out of memory: 1.0 MiB more were not free .in a loader process.; fewer --workers"),
    (OSError(errno.EMFILE, "Too many open files"), RunFailed, "Too many open files$"),
    (Stubborn("odd"), RuntimeError, "odd in a loader process:\nTraceback"),
]  # fmt: skip


@pytest.mark.parametrize(("failure", "kind", "told"), FAILURES, ids=[type(f).__name__ for f, *_ in FAILURES])
def test_what_goes_wrong_in_a_worker_arrives_in_its_turn(failure, kind, told):
    def make(key):
        if key == 3:
            raise failure
        return numbers(key)

    batches = started(make).batches(range(9))
    assert seen(next(batches) for _ in range(3)) == [numbers(key).flatten().tolist() for key in range(3)]
    with pytest.raises(kind, match=told) as caught:
        next(batches)
    assert type(caught.value) is kind


def test_a_worker_that_dies_is_told_by_its_signal_or_code():
    def kill(_key):
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(
        RunFailed, match=r"^a loader process ended too early: killed by SIGKILL; memory may .*workers 0"
    ):
        seen(started(kill).batches(range(9)))
    with pytest.raises(RunFailed, match=r"^a loader process ended too early: exit code 3; "):
        seen(started(lambda _key: os._exit(3)).batches(range(9)))


def test_a_slow_or_stopped_worker_is_waited_for():
    made = started(count=1)
    batches = made.batches(range(9))
    next(batches)
    os.kill(made.processes[0].pid, signal.SIGSTOP)
    threading.Timer(1, os.kill, [made.processes[0].pid, signal.SIGCONT]).start()
    assert len(seen(batches)) == 8


def test_a_signal_is_honoured_while_a_stopped_worker_is_waited_for():
    handlers = {name: signal.getsignal(name) for name in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP)}
    made = started(count=1)
    batches = made.batches(range(9))
    next(batches)
    os.kill(made.processes[0].pid, signal.SIGSTOP)
    StopRequest().listen()
    threading.Timer(0.5, os.kill, [os.getpid(), signal.SIGUSR2]).start()
    try:
        with pytest.raises(NothingCame, match=r"^asked to stop by SIGUSR2 while a loader process prepares a batch$"):
            seen(batches)
    finally:
        for name, handler in handlers.items():
            signal.signal(name, handler)
    made.close()
    assert not children(made.processes)


def test_a_signal_in_an_evaluation_without_batches_leaves_the_last_checkpoint(program, config, tmp_path, monkeypatch):
    def waits(*_):
        raise NothingCame("asked to stop by SIGTERM while a loader process prepares a batch")

    monkeypatch.setattr("trainers.loop.evaluate", waits)
    code, _, err = program("--config", config())
    run = tmp_path / "runs/ticket/prune-rate=0.5/ticket"
    assert code == 75 and err.startswith("asked to stop by SIGTERM while ")
    assert "; resume with: python main.py --resume " in err and err.count("\n") == 1
    assert json.loads((run / "status.json").read_text())["status"] == "stopped"
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert program("--resume", run)[0] == 0


@pytest.mark.parametrize("before", [0, 3])
def test_workers_that_were_started_before_one_could_not_be_are_ended(monkeypatch, before):
    process = type(multiprocessing.get_context("fork").Process())
    begun, start = [], process.start

    def limited(self):
        if len(begun) == before:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        start(self)
        begun.append(self)

    monkeypatch.setattr(process, "start", limited)
    with pytest.raises(RunFailed, match=f"^only {before} of 8 loader processes were started: Resource .*--workers 0"):
        started(count=8)
    assert len(begun) == before
    ended(begun)


def test_shared_memory_that_cannot_be_had_is_told_before_a_process_is_started(monkeypatch):
    def full(_self):
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    with pytest.raises(
        RunFailed, match=r"MiB of shared memory \(/dev/shm\).*: No space left .*--workers 0 none$"
    ) as told:
        started()
    assert "\n" not in str(told.value) and "torch_1" not in str(told.value)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux")
def test_neither_descriptors_nor_processes_are_left(monkeypatch):
    def descriptors():
        return len(list(Path("/proc/self/fd").iterdir()))

    gc.collect()  # what other tests left open
    before = descriptors()
    made = started(count=4)
    processes = made.processes
    seen(made.batches(range(100)))
    del made
    ended(processes)
    del processes[:]
    assert descriptors() <= before  # fewer where something else was collected meanwhile
