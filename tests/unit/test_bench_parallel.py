"""bench.py --parallel: the work of each process, the bytes sent, and the efficiencies. No time is asserted."""

import json
import os
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist

import models
from models.constraints import constrain, weight_layers
from scripts import bench
from scripts.benchmarks import parallel
from scripts.benchmarks.contenders import STEPS
from scripts.benchmarks.parallel import DENSE, WAYS, Job, bytes_per_step, efficiencies, synchronised
from trainers.optimizers import freeze_weights
from utils.distributed.launcher_env import ProcessInfo
from utils.distributed.runtime import Runtime
from utils.timing import summary

CPU = Runtime(torch.device("cpu"), torch.float32)
FIRST_OF_TWO = replace(CPU, process=ProcessInfo(0, 2))
SMALL = "Wide_VGG_Small_132"
JOB = Job(SMALL, 4, 2, ("fp32",), 1)


@pytest.fixture
def group():
    """A process group of one process, which sends the same as the first process of two."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_an_efficiency_is_relative_to_n_times_the_work_of_one_process():
    seconds = {"alone": 8.0, "alone, B/N": 2.5, "apart": 10.0, "apart, B/N": 4.0, "strong": 5.0, "weak": 16.0}
    found = efficiencies({f"ours/bf16/{name}": [s, 2 * s] for name, s in seconds.items()}, processes=4)
    assert found["ours/bf16/strong"] == [0.4, 0.4] and found["ours/bf16/weak"] == [0.5, 0.5]
    factors = {name.removeprefix("ours/bf16/"): values[0] for name, values in found.items() if ":" in name}
    assert factors == {
        "strong: unshrunk": 0.8,
        "strong: machine": 0.625,
        "strong: together": 0.8,
        "weak: machine": 0.8,
        "weak: together": 0.625,
    }


def test_efficiencies_compare_samples_of_the_same_repeat():
    samples = {"ours/fp32/alone": [1.0, 4.0], "ours/fp32/strong": [0.5, 4.0], "ours/fp32/strong, bf16 sent": [1.0, 2.0]}
    found = efficiencies({**samples, "ours/fp32/selection": [9.0, 9.0]}, processes=2)
    assert found == {"ours/fp32/strong": [1.0, 0.5], "ours/fp32/strong, bf16 sent": [0.5, 1.0]}


def test_sent_bytes_are_per_step_and_by_kind():
    step = [("float32", 40), ("float32", 8), ("int32", 12)]
    assert bytes_per_step([*step, ("float64", 48)] * STEPS) == {"gradients": [40, 8], "used": 12}
    assert bytes_per_step([("bfloat16", 20)] * STEPS) == {"gradients": [20], "used": 0}


def scores_of(net):
    model = models.build(net, num_classes=10, in_shape=(3, 32, 32))
    return [layer.weight.numel() for layer in weight_layers(model).values()]


@pytest.mark.parametrize(("who", "size"), [("ours", 4), ("dense", 4), ("ours, bf16 sent", 2)])
def test_only_the_gradients_of_the_scores_are_sent(group, who, size):
    scores = scores_of(SMALL)
    found = parallel.sent_by(JOB, FIRST_OF_TWO, who)
    assert sum(found["gradients"]) == size * sum(scores) and found["trained"] == sum(scores)
    assert found["used"] == 4 * len(scores)


def test_gradients_of_trained_batch_norms_are_sent(group, monkeypatch):
    def with_norms(net, *, dense):
        model = models.build(net, num_classes=10, in_shape=(3, 32, 32), bn_type="LearnedBatchNorm")
        freeze_weights(constrain(model, "SubnetConv", density=0.5), learn_batchnorm=True)
        return model

    monkeypatch.setattr(parallel, "network", with_norms)
    model, scores = with_norms(SMALL, dense=False), scores_of(SMALL)
    norms = [p.numel() for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d) for p in m.parameters()]
    found = parallel.sent_by(JOB, FIRST_OF_TWO, "ours")
    assert norms and sum(found["gradients"]) == 4 * (sum(scores) + sum(norms))
    assert found["used"] == 4 * (len(scores) + len(norms))


@pytest.mark.parametrize(
    ("way", "images", "share"),
    [("alone", 4, 4), ("alone, B/N", 2, 2), ("apart", 4, 4), ("apart, B/N", 2, 2), ("strong", 4, 2), ("weak", 8, 4)],
)
def test_each_way_gives_a_process_its_share_of_the_batch(way, images, share):
    loop = parallel.assembled(JOB, FIRST_OF_TWO, WAYS[way], dense=False)
    _, labels = next(iter(loop.train.epoch(1)))
    assert (loop.train.batch_size, len(labels)) == (images, share)
    assert loop.runtime.alone != WAYS[way].together


def test_compression_reaches_the_replicas(monkeypatch):
    seen = []
    monkeypatch.setattr(parallel, "parts", lambda *args, compression, **other: seen.append(compression))
    for way in WAYS.values():
        parallel.assembled(JOB, FIRST_OF_TWO, way, dense=False)
    assert seen == ["none"] * 6 + ["bf16"] * 2 and "bf16" in list(WAYS)[-1]


@pytest.mark.parametrize("rank", [0, 1])
def test_rank_1_waits_during_samples_of_one_process(monkeypatch, rank):
    monkeypatch.setattr(parallel, "assembled", lambda *args, **options: "a loop")
    monkeypatch.setattr(parallel, "our_samplers", lambda loop: (loop, None))
    monkeypatch.setattr(parallel, "synchronised", lambda here, sampler: sampler)
    found = parallel.samplers(replace(JOB, precisions=("fp32", "bf16")), replace(CPU, process=ProcessInfo(rank, 2)))
    assert len(found) == 2 * (len(WAYS) + len(DENSE)) + 1
    working = {name for name, work in found.items() if work}
    firsts = {name for name in found if "alone" in name or "selection" in name}
    assert working == set(found) - (firsts if rank else set()) and len(firsts) == 7


class TwoProcesses:
    """A runtime of two processes. The other process contributes `theirs` to sums."""

    device = torch.device("cpu")

    def __init__(self, theirs):
        self.theirs, self.calls = theirs, []

    def total(self, values):
        self.calls.append(len(values))
        return values if len(values) == 1 else values + torch.tensor(self.theirs, dtype=values.dtype)


@pytest.mark.parametrize(
    ("mine", "theirs", "mean"), [(2.0, [4.0, 1.0, 0.0], 3.0), (None, [4.0, 1.0, 0.0], 4.0), (2.0, [0.0] * 3, 2.0)]
)
def test_a_sample_starts_together_and_is_the_mean_over_working_processes(monkeypatch, mine, theirs, mean):
    monkeypatch.setattr(parallel, "seconds_without_core", lambda: 0.0)
    here = TwoProcesses(theirs)
    work = None if mine is None else lambda: here.calls.append("work") or mine
    assert synchronised(here, work)() == mean
    assert here.calls == ([1, "work", 3] if work else [1, 3])


@pytest.mark.parametrize(("share", "tries"), [(0.14, 2), (0.16, 3)])
def test_a_disturbed_sample_is_repeated_by_all_processes(monkeypatch, share, tries):
    clock, waited = [0.0], [0.0]
    monkeypatch.setattr(parallel.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(parallel, "seconds_without_core", lambda: waited[0])
    here, seconds = TwoProcesses([7.0, 1.0, 1.0]), iter([5.0, 3.0, 1.0])  # the other process is disturbed first

    def work():
        clock[0] += 100
        if (second := next(seconds)) == 3.0:
            here.theirs = [7.0, 1.0, 0.0]
            waited[0] += 100 * share
        return second

    assert synchronised(here, work)() == (10.0 if tries == 2 else 8.0) / 2 and len(here.calls) == 2 * tries


def test_the_last_repeat_is_kept_even_if_disturbed(monkeypatch):
    monkeypatch.setattr(parallel, "TRIES", 4)
    here = TwoProcesses([1.0, 1.0, 1.0])
    assert synchronised(here, lambda: 3.0)() == 2.0 and len(here.calls) == 8


def test_waiting_times_of_all_threads_are_summed(tmp_path, monkeypatch):
    for thread, waited in (("7", 1_500_000_000), ("8", 250_000_000)):
        (tmp_path / thread).mkdir()
        (tmp_path / thread / "schedstat").write_text(f"9 {waited} 3\n")
    (tmp_path / "9" / "schedstat").mkdir(parents=True)  # unreadable, like that of a thread that has ended
    monkeypatch.setattr(parallel, "Path", lambda _: tmp_path)
    assert parallel.seconds_without_core() == 1.75


@pytest.mark.parametrize(
    ("number", "threads", "own"), [(0, 1, {3}), (1, 1, {5}), (1, 2, {6, 7}), (4, 1, None), (1, 3, None)]
)
def test_each_process_is_pinned_to_its_own_cores_if_there_are_enough(monkeypatch, number, threads, own):
    pinned = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {7, 3, 6, 5}, raising=False)
    monkeypatch.setattr(os, "sched_setaffinity", lambda _, cores: pinned.append(set(cores)), raising=False)
    parallel.pin(number, threads)
    assert pinned == ([] if own is None else [own])


@pytest.mark.parametrize(("options", "fault"), [("--processes 3", "128 is not divisible"), ("--processes 0", ">= 1")])
def test_a_number_of_processes_that_does_not_divide_the_batch_is_refused(monkeypatch, options, fault, capsys):
    monkeypatch.setattr(parallel, "bench", lambda job: pytest.fail("it was measured"))
    assert bench.main(["--parallel", *options.split()]) == 2
    assert fault in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_measure_and_the_record_has_every_sample(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(parallel, "NET", SMALL)
    out = tmp_path / "bench.json"
    argv = ["--parallel", "--batch-size", "4", "--precision", "fp32", "--repeat", "2", "--out", str(out)]
    threads = torch.get_num_threads()
    assert bench.main(argv) == 0
    torch.set_num_threads(threads)
    record = json.loads(out.read_text())
    found = record["parallel"]
    assert (found["net"], found["batch"], found["processes"], record["threads"]) == (SMALL, 4, 2, 1)
    names = {f"ours/fp32/{way}" for way in [*WAYS, "selection"]} | {f"dense/fp32/{way}" for way in DENSE}
    assert {name: len(values) for name, values in found["samples"].items()} == dict.fromkeys(names, 2)
    assert found["summary"].keys() == names and min(map(min, found["samples"].values())) > 0
    again = summary(efficiencies(found["samples"], 2)["ours/fp32/strong"])
    assert found["efficiency"]["ours/fp32/strong"] == again
    assert sum(found["sent"]["ours"]["gradients"]) == 4 * sum(scores_of(SMALL))
    output = capsys.readouterr().out
    assert f"{sum(scores_of(SMALL)):,} trained" in output and "target for two processes: 0.9" in output
    assert "efficiency, median of 2" in output and f"{again['median']:.3f} (IQR {again['iqr']:.3f})" in output
