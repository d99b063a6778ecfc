"""Rendezvous of the ranks, device conflicts, and the end of all ranks after one has failed."""

import threading
import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from utils.distributed import rendezvous, runtime
from utils.distributed.launcher_env import ProcessInfo
from utils.errors import RunFailed, UsageError


@pytest.fixture
def store():
    return dist.TCPStore("127.0.0.1", 0, is_master=True, timeout=timedelta(seconds=10))


def arrive(store, rank, attempt, *, seconds=20):
    """Start a thread that waits for the other ranks as `rank`. Return the thread and the list of its results."""
    client, results = dist.TCPStore("127.0.0.1", store.port, is_master=False), []
    process = ProcessInfo(rank, 2, attempt=attempt)

    def wait():
        try:
            results.append(rendezvous.wait_for_ranks(client, process, seconds, [attempt, "gloo", ""]))
        except RunFailed as error:
            results.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread, results


def test_ranks_of_one_start_find_each_other_despite_entries_of_an_earlier_start(store):
    names = []
    for start in range(2):
        first, results = arrive(store, 0, start)
        time.sleep(0.3)  # the old entry of rank 1 from the earlier start must not count as a new entry
        assert first.is_alive()
        second, others = arrive(store, 1, 0)
        first.join()
        second.join()
        assert results == others and results[0][1] == [[start, "gloo", ""], [0, "gloo", ""]]
        names.append(results[0][0])
    assert names[0] != names[1]


def test_a_restart_is_detected_by_a_restart_count_or_by_the_store(store):
    first, second = ProcessInfo(0, 2), ProcessInfo(1, 2)
    assert not rendezvous.is_restart(store, first, [[0], [0]]) and not rendezvous.is_restart(store, second, [[0], [0]])
    assert rendezvous.is_restart(store, first, [[0], [0]]) and not rendezvous.is_restart(store, second, [[0], [0]])
    assert rendezvous.is_restart(store, second, [[0], [1]])


def test_a_missing_rank_is_named_despite_an_entry_of_a_dead_process(store):
    for _ in range(2):
        (thread, results), _ = arrive(store, 0, 0, seconds=0.5), store.set("here/1", "long dead")
        thread.join()
        assert str(results[0]) == "within 0.5 s no process arrived as rank 1 of 2"


@pytest.mark.parametrize(
    ("members", "conflict"),
    [
        ([[0, "nccl", "a"], [1, "nccl", "b"]], ""),
        ([[0, "gloo", ""], [0, "gloo", ""]], ""),
        ([[0, "nccl", "a"], [0, "nccl", "b"], [0, "nccl", "a"]], "ranks 0 and 2 are both on GPU a"),
        ([[0, "nccl", "a"], [0, "gloo", ""]], "rank 0 uses nccl, rank 1 uses gloo"),
    ],
)
def test_ranks_with_conflicting_devices_are_refused(members, conflict):
    found = rendezvous.device_conflict(members)
    assert found.startswith(conflict) and bool(found) == bool(conflict)


@pytest.mark.parametrize(
    ("error", "is_loss"),
    [
        (
            dist.DistBackendError("NCCL error: remote process exited or there was a network error, ncclRemoteError"),
            True,
        ),
        (dist.DistBackendError("NCCL error, ncclInvalidUsage\nLast error:\nDuplicate GPU detected"), False),
        (dist.DistNetworkError("The client socket has been closed"), True),
        (RuntimeError("[gloo/transport/tcp/pair.cc:538] Connection closed by peer"), True),
        (RuntimeError("shapes do not match"), False),
    ],
)
def test_errors_of_a_lost_connection_are_recognised(error, is_loss):
    assert rendezvous.is_connection_loss(error) == is_loss


def test_an_nccl_error_is_reported_with_its_last_error(store):
    watcher = rendezvous.FailureWatcher(ProcessInfo(0, 2, port=store.port), "start")
    with pytest.raises(RunFailed, match=r"^Duplicate GPU detected : rank 1 \(rank 0 of 2 on "):
        watcher.report(dist.DistBackendError("ProcessGroupNCCL.cpp:1\nLast error:\nDuplicate GPU detected : rank 1\n"))


def test_only_a_process_that_outlasts_the_grace_period_is_ended(store, monkeypatch):
    ended = []
    monkeypatch.setattr(rendezvous.os, "_exit", ended.append)
    monkeypatch.setattr(rendezvous, "WATCH_SECONDS", 0.01)
    monkeypatch.setattr(rendezvous, "GRACE_SECONDS", 0.5)
    for in_time in (True, False):
        watcher = rendezvous.FailureWatcher(ProcessInfo(0, 2, port=store.port), f"start {in_time}")
        store.set(f"start {in_time}/failed", "1")
        watcher.start()
        time.sleep(0.2 if in_time else 1)
        watcher.close()
        time.sleep(0.5)
        assert bool(ended) is not in_time


@pytest.mark.parametrize("answers", [[RuntimeError, False], [True], [RuntimeError]], ids=["missed", "failed", "gone"])
def test_one_missed_answer_ends_no_process_and_a_lost_store_is_reported(store, monkeypatch, capfd, answers):
    ended = []
    monkeypatch.setattr(rendezvous.os, "_exit", ended.append)
    monkeypatch.setattr(rendezvous, "WATCH_SECONDS", 0.01)
    monkeypatch.setattr(rendezvous, "GRACE_SECONDS", 0.1)
    watcher = rendezvous.FailureWatcher(ProcessInfo(1, 2, port=store.port), "start")

    class Store:
        def check(self, _keys):
            answer = answers.pop(0) if len(answers) > 1 else answers[0]
            if answer is RuntimeError:
                raise RuntimeError("Broken pipe")
            return answer

    watcher._store = Store()
    last = answers[-1]
    watcher.start()
    time.sleep(0.5)
    watcher.close()
    assert bool(ended) is (last is not False)
    message = "failed: rank 1 of 2 could not reach the rendezvous store for 0.1 s\n"
    assert set(capfd.readouterr().err.splitlines(True)) == ({message} if last is RuntimeError else set())


@pytest.mark.parametrize(
    ("count", "gpus", "process", "expected"),
    [
        (8, None, ProcessInfo(3, 8, 3, 8), 3),
        (1, None, ProcessInfo(3, 8, 3, 8), 0),
        (8, (4, 5), ProcessInfo(1, 2, 1, 2), 5),
        (2, None, ProcessInfo(0, 4, 0, 4), "4 processes on this machine, but 2 GPUs"),
        (2, None, ProcessInfo(3, 4, 3, 4), "4 processes on this machine, but 2 GPUs"),
        (1, (0, 1), ProcessInfo(0, 2, 0, 2), "multigpu: 1, but this machine has 1 GPU"),
    ],
)
def test_each_process_gets_its_gpu_or_all_get_the_same_error(monkeypatch, count, gpus, process, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    if isinstance(expected, int):
        assert runtime._device("auto", gpus, process) == torch.device("cuda", expected)
    else:
        with pytest.raises(UsageError, match=expected):
            runtime._device("auto", gpus, process)
