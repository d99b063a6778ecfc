"""Worker processes yield batches in order or raise a one-line error, and leave no process behind."""

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
from utils.errors import RunFailed, StoppedWaiting
from utils.stop_signal import StopRequest

WAIT = 60  # seconds after which a test fails instead of hanging the suite


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(workers, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(workers, "STOP_GRACE_SECONDS", 0.2)

    def fail(*_):
        raise TimeoutError(f"no end within {WAIT} s")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(WAIT)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def images_of(key):
    """Return one to three images whose pixels are the key."""
    return torch.full((1 + key % 3, 2), key, dtype=torch.uint8)


def start_workers(prepare=images_of, count=2):
    return Workers(prepare, (3, 2), count)


def pixels(batches):
    return [batch.flatten().tolist() for batch in batches]


def children(processes):
    return [process for process in multiprocessing.active_children() if process in processes]


def assert_end(processes):
    end = time.monotonic() + WAIT
    while children(processes) and time.monotonic() < end:
        time.sleep(0.01)
    assert not children(processes)


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("keys", [0, 1, 7, 30])
def test_batches_arrive_in_the_order_of_the_keys(count, keys):
    pool = start_workers(count=count)
    for first in (0, 100):
        asked = range(first, first + keys)
        assert pixels(pool.batches(asked)) == [images_of(key).flatten().tolist() for key in asked]


def test_a_new_iterator_is_complete_and_ends_the_previous_one():
    pool = start_workers(count=3)
    first = pool.batches(range(50))
    next(first)
    assert pixels(pool.batches(range(100, 110))) == [images_of(key).flatten().tolist() for key in range(100, 110)]
    assert list(first) == []


class UnpicklableError(Exception):
    """Error that cannot be pickled."""

    def __init__(self, of):
        super().__init__(of)
        self.lock = threading.Lock()


FAILURES = [
    (RunFailed("a.png: cannot be decoded: no"), RunFailed, "^a.png: cannot be decoded: no$"),
    (MemoryError(), RunFailed, "^out of memory .in a loader process.; reduce --workers; --workers 0 starts no .*$"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1048576 bytes."), RunFailed,
     "^out of memory: 1.0 MiB more were not free .in a loader process.; reduce --workers"),
    (OSError(errno.EMFILE, "Too many open files"), RunFailed, "Too many open files$"),
    (UnpicklableError("odd"), RuntimeError, "odd in a loader process:\nTraceback"),
]  # fmt: skip


@pytest.mark.parametrize(("failure", "kind", "message"), FAILURES, ids=[type(f).__name__ for f, *_ in FAILURES])
def test_an_error_in_a_worker_is_raised_at_its_batch(failure, kind, message):
    def prepare(key):
        if key == 3:
            raise failure
        return images_of(key)

    batches = start_workers(prepare).batches(range(9))
    assert pixels(next(batches) for _ in range(3)) == [images_of(key).flatten().tolist() for key in range(3)]
    with pytest.raises(kind, match=message) as caught:
        next(batches)
    assert type(caught.value) is kind


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_copy_of_the_owner_does_not_end_the_workers():
    pool = start_workers()
    child = os.fork()
    if child == 0:
        pool.close()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert len(pixels(pool.batches(range(5)))) == 5


def test_error_for_a_dead_worker_names_its_signal_or_exit_code():
    def kill(_key):
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(
        RunFailed, match=r"^a loader process ended too early: killed by SIGKILL; memory may .*workers 0"
    ):
        pixels(start_workers(kill).batches(range(9)))
    with pytest.raises(RunFailed, match=r"^a loader process ended too early: exit code 3; "):
        pixels(start_workers(lambda _key: os._exit(3)).batches(range(9)))


def test_a_slow_or_suspended_worker_is_waited_for():
    pool = start_workers(count=1)
    batches = pool.batches(range(9))
    next(batches)
    os.kill(pool.processes[0].pid, signal.SIGSTOP)
    threading.Timer(1, os.kill, [pool.processes[0].pid, signal.SIGCONT]).start()
    assert len(pixels(batches)) == 8


def test_a_stop_signal_ends_the_wait_for_a_suspended_worker():
    handlers = {name: signal.getsignal(name) for name in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP)}
    pool = start_workers(count=1)
    batches = pool.batches(range(9))
    next(batches)
    os.kill(pool.processes[0].pid, signal.SIGSTOP)
    StopRequest().listen()
    threading.Timer(0.5, os.kill, [os.getpid(), signal.SIGUSR2]).start()
    try:
        with pytest.raises(StoppedWaiting, match=r"^asked to stop by SIGUSR2 while a loader process prepares a batch$"):
            pixels(batches)
    finally:
        for name, handler in handlers.items():
            signal.signal(name, handler)
    pool.close()
    assert not children(pool.processes)


def test_a_run_stopped_while_waiting_in_evaluation_can_be_resumed(program, config, tmp_path, monkeypatch):
    def waits(*_):
        raise StoppedWaiting("asked to stop by SIGTERM while a loader process prepares a batch")

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
def test_workers_already_started_end_if_another_cannot_start(monkeypatch, before):
    process = type(multiprocessing.get_context("fork").Process())
    begun, start = [], process.start

    def limited(self):
        if len(begun) == before:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        start(self)
        begun.append(self)

    monkeypatch.setattr(process, "start", limited)
    with pytest.raises(RunFailed, match=f"^only {before} of 8 loader processes were started: Resource .*--workers 0"):
        start_workers(count=8)
    assert len(begun) == before
    assert_end(begun)


def test_error_for_missing_shared_memory_is_one_line(monkeypatch):
    def full(_self):
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    with pytest.raises(
        RunFailed, match=r"MiB of shared memory \(/dev/shm\).*: No space left .*--workers 0 starts no process$"
    ) as caught:
        start_workers()
    assert "\n" not in str(caught.value) and "torch_1" not in str(caught.value)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux")
def test_deleted_workers_leave_no_descriptors_and_no_processes(monkeypatch):
    def descriptors():
        return len(list(Path("/proc/self/fd").iterdir()))

    gc.collect()  # closes descriptors that other tests left open
    before = descriptors()
    pool = start_workers(count=4)
    processes = pool.processes
    pixels(pool.batches(range(100)))
    del pool
    assert_end(processes)
    del processes[:]
    assert descriptors() <= before  # fewer descriptors if other objects were collected meanwhile
