"""How processes meet, what they refuse, how one that has failed is told from one that is gone."""

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


def come(store, rank, attempt, *, seconds=20):
    """A thread that meets the others as `rank`, and the list that its outcome goes to."""
    client, found = dist.TCPStore("127.0.0.1", store.port, is_master=False), []

    def meet():
        try:
            found.append(rendezvous.meet(client, ProcessInfo(rank, 2, attempt=attempt), seconds, [attempt, "gloo", ""]))
        except RunFailed as error:
            found.append(error)

    thread = threading.Thread(target=meet)
    thread.start()
    return thread, found


def test_those_of_one_start_meet_whatever_an_earlier_one_has_left(store):
    names = []
    for start in range(2):
        first, found = come(store, 0, start)
        time.sleep(0.3)  # what rank 1 of the earlier start has left is there to be taken for the one who comes
        assert first.is_alive()
        second, other = come(store, 1, 0)
        first.join()
        second.join()
        assert found == other and found[0][1] == [[start, "gloo", ""], [0, "gloo", ""]]
        names.append(found[0][0])
    assert names[0] != names[1]


def test_a_start_is_not_the_first_by_any_machines_count_or_by_the_store(store):
    first, second = ProcessInfo(0, 2), ProcessInfo(1, 2)
    assert not rendezvous.met_before(store, first, [[0], [0]]) and not rendezvous.met_before(store, second, [[0], [0]])
    assert rendezvous.met_before(store, first, [[0], [0]]) and not rendezvous.met_before(store, second, [[0], [0]])
    assert rendezvous.met_before(store, second, [[0], [1]])


def test_who_does_not_come_is_named_though_one_before_has_come(store):
    for _ in range(2):
        (thread, found), _ = come(store, 0, 0, seconds=0.5), store.set("here/1", "long dead")
        thread.join()
        assert str(found[0]) == "within 0.5 s nobody came as rank 1 of 2"


@pytest.mark.parametrize(
    ("told", "wrong"),
    [
        ([[0, "nccl", "a"], [1, "nccl", "b"]], ""),
        ([[0, "gloo", ""], [0, "gloo", ""]], ""),
        ([[0, "nccl", "a"], [0, "nccl", "b"], [0, "nccl", "a"]], "ranks 0 and 2 are both on GPU a"),
        ([[0, "nccl", "a"], [0, "gloo", ""]], "rank 0 came with nccl, rank 1 with gloo"),
    ],
)
def test_processes_that_do_not_fit_are_told_why(told, wrong):
    assert rendezvous.misfit(told).startswith(wrong) and bool(rendezvous.misfit(told)) == bool(wrong)


@pytest.mark.parametrize(
    ("error", "gone"),
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
def test_an_error_is_of_another_process_that_is_gone_or_its_own(error, gone):
    assert rendezvous.lost(error) == gone


def test_what_nccl_could_not_do_is_said_in_its_own_words(store):
    board = rendezvous.FailureWatcher(ProcessInfo(0, 2, port=store.port), "start")
    with pytest.raises(RunFailed, match=r"^Duplicate GPU detected : rank 1 \(rank 0 of 2 on "):
        board.told(dist.DistBackendError("ProcessGroupNCCL.cpp:1\nLast error:\nDuplicate GPU detected : rank 1\n"))


def test_a_process_that_ends_in_time_is_left_to_end(store, monkeypatch):
    ended = []
    monkeypatch.setattr(rendezvous.os, "_exit", ended.append)
    monkeypatch.setattr(rendezvous, "LOOK_EVERY", 0.01)
    monkeypatch.setattr(rendezvous, "GRACE", 0.5)
    for in_time in (True, False):
        board = rendezvous.FailureWatcher(ProcessInfo(0, 2, port=store.port), f"start {in_time}")
        store.set(f"start {in_time}/failed", "1")
        board.watch()
        time.sleep(0.2 if in_time else 1)
        board.close()
        time.sleep(0.5)
        assert bool(ended) is not in_time


@pytest.mark.parametrize("answers", [[RuntimeError, False], [True], [RuntimeError]], ids=["once", "word", "gone"])
def test_a_store_that_does_not_answer_once_ends_nobody_and_one_that_is_gone_is_told(store, monkeypatch, capfd, answers):
    ended = []
    monkeypatch.setattr(rendezvous.os, "_exit", ended.append)
    monkeypatch.setattr(rendezvous, "LOOK_EVERY", 0.01)
    monkeypatch.setattr(rendezvous, "GRACE", 0.1)
    board = rendezvous.FailureWatcher(ProcessInfo(1, 2, port=store.port), "start")

    class Store:
        def check(self, _keys):
            answer = answers.pop(0) if len(answers) > 1 else answers[0]
            if answer is RuntimeError:
                raise RuntimeError("Broken pipe")
            return answer

    board._store = Store()
    last = answers[-1]
    board.watch()
    time.sleep(0.5)
    board.close()
    assert bool(ended) is (last is not False)
    told = "failed: rank 1 of 2 has lost the process that keeps the store, for 0.1 s\n"
    assert set(capfd.readouterr().err.splitlines(True)) == ({told} if last is RuntimeError else set())


@pytest.mark.parametrize(
    ("there", "gpus", "place", "found"),
    [
        (8, None, ProcessInfo(3, 8, 3, 8), 3),
        (1, None, ProcessInfo(3, 8, 3, 8), 0),
        (8, (4, 5), ProcessInfo(1, 2, 1, 2), 5),
        (2, None, ProcessInfo(0, 4, 0, 4), "4 processes on this machine, but 2 GPUs"),
        (2, None, ProcessInfo(3, 4, 3, 4), "4 processes on this machine, but 2 GPUs"),
        (1, (0, 1), ProcessInfo(0, 2, 0, 2), "multigpu: 1, but this machine has 1 GPU"),
    ],
)
def test_a_gpu_for_each_process_or_the_same_error_on_all(monkeypatch, there, gpus, place, found):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: there)
    if isinstance(found, int):
        assert runtime._device("auto", gpus, place) == torch.device("cuda", found)
    else:
        with pytest.raises(UsageError, match=found):
            runtime._device("auto", gpus, place)
