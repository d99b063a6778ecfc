"""The benchmark: its reference equals our computation, and its report has every sample. No time is asserted."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import models
from data import SETS, Split
from data.device_batches import DeviceBatches
from models.activations import BinarySign
from models.constraints import constrain
from models.constraints.subnet import SubnetWeight, kept_count
from models.initial import initialise
from scripts import bench
from scripts.benchmarks import contenders, networks, startup
from scripts.benchmarks import reference as reference
from trainers.loop import Callbacks, train_one_epoch
from trainers.optimizers import freeze_weights, make_optimizer, parameter_groups
from trainers.training_state import TrainingState
from utils import timing
from utils.distributed.runtime import Runtime

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
FLOAT32 = Runtime(CPU, torch.float32)


def random_layer(shape, density, seed=0):
    """Return a weight, our constraint and the reference's layer with the same float32 numbers."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=generator)
    ours = SubnetWeight(weight, density=density, generator=generator)
    return weight, ours, reference.ReferenceConv(weight.clone(), ours.scores.detach().clone(), density)


def small_network(arch, density=0.5):
    """Return a network of an eighth of the width, in float64.

    Its layers have even sizes, so both divisors of α are equal, and in float64 no rounding flips a sign.
    """
    generator = torch.Generator().manual_seed(1)
    model = models.build(arch, num_classes=10, in_shape=(3, 32, 32), bn_type="NonAffineBatchNorm", width_mult=0.125)
    initialise(model, "kaiming_normal", generator=generator)
    freeze_weights(constrain(model, "SubnetConv", density=density, generator=generator))
    return model.double()


def random_batches(count, size=4):
    generator = torch.Generator().manual_seed(2)
    for _ in range(count):
        images = torch.randn(size, 3, 32, 32, dtype=torch.float64, generator=generator)
        yield images, torch.randint(10, (size,), generator=generator)


@pytest.mark.parametrize(
    ("shape", "density"), [((64, 3, 3, 3), 0.3), ((20, 128, 1, 1), 0.8), ((10, 100, 1, 1), 0.9), ((8, 4, 3, 3), 0.5)]
)
def test_reference_weight_equals_ours_except_for_the_divisor(shape, density):
    weight, ours, theirs = random_layer(shape, density)
    divisor, kept = int(density * weight.numel()), kept_count(weight.numel(), density)
    expected = theirs.effective_weight().detach() * divisor / kept
    torch.testing.assert_close(ours(weight).detach(), expected, rtol=1e-6, atol=1e-6)
    assert int(expected.count_nonzero()) == kept


def test_kept_count_can_exceed_the_divisor_of_the_reference_by_one():
    assert [kept_count(n, k) - int(k * n) for n, k in ((1728, 0.3), (2560, 0.8), (1000, 0.9), (288, 0.5))] == [
        1,
        1,
        1,
        0,
    ]


@pytest.mark.parametrize("density", [0.2, 0.5, 1.0])
def test_reference_score_gradient_equals_ours(density):
    weight, ours, theirs = random_layer((16, 8, 3, 3), density)
    grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(3))
    ours(weight).backward(grad)
    theirs.effective_weight().backward(grad)
    torch.testing.assert_close(ours.scores.grad, theirs.scores.grad, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(theirs.scores.grad, grad * weight * theirs.scores.detach().sign(), rtol=1e-6, atol=1e-6)


def test_reference_activation_equals_ours():
    x = torch.tensor([-2.0, -1.0, -0.5, 0.0, 0.25, 1.0, 3.0])
    results = []
    for function in (BinarySign, reference.Binarize):
        leaf = x.clone().requires_grad_()
        out = function.apply(leaf)
        out.backward(torch.arange(1.0, 8.0))
        results.append((out.detach(), leaf.grad))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("arch", "optimizer"), [("Conv4Wide", "sgd"), ("Conv4Wide", "adam"), ("Wide_VGG_Small_132", "sgd")]
)
def test_training_steps_of_the_reference_equal_ours(arch, optimizer):
    model = small_network(arch)
    copied = reference.convert(model)
    theirs = reference.make_optimizer(optimizer, copied, 0.1)
    step = reference.ReferenceStep(copied, theirs, random_batches(3), random_batches(1), CPU)
    ours = make_optimizer(optimizer, parameter_groups(model, weight_decay=1e-4), lr=0.1, momentum=0.9)
    before = {name: value.clone() for name, value in model.named_parameters()}
    for images, labels in random_batches(3):
        loss = F.cross_entropy(model.train()(images), labels)
        ours.zero_grad()
        loss.backward()
        ours.step()
        assert step.train()[0] == pytest.approx(loss.item(), rel=1e-9)
    for (name, value), other in zip(model.named_parameters(), copied.parameters(), strict=True):
        torch.testing.assert_close(value, other.view(value.shape), rtol=1e-8, atol=1e-9)
        assert torch.equal(value, before[name]) != name.endswith("scores")
    images, labels = next(random_batches(1))
    with torch.no_grad():
        assert step.evaluate()[0] == pytest.approx(F.cross_entropy(model.eval()(images), labels).item(), rel=1e-8)


def test_reference_with_binary_activations_has_equal_logits():
    # Only the forward pass: sums of ±1 tie in max-pools and at the mean of a batch norm, where rounding decides.
    model = small_network("Wide_VGG_Small")
    copied = reference.convert(model)
    images, _ = next(random_batches(1))
    torch.testing.assert_close(model.train()(images), copied.train()(images), rtol=1e-9, atol=1e-9)


def test_reference_detects_anomalies_only_in_training():
    model = reference.convert(small_network("Conv4Wide"))
    seen = []
    model.register_forward_hook(lambda *_: seen.append(torch.is_anomaly_enabled()))
    optimizer = reference.make_optimizer("sgd", model, 0.1)
    step = reference.ReferenceStep(model, optimizer, random_batches(1), random_batches(1), CPU)
    step.train()
    step.evaluate()
    assert seen == [True, False]
    assert not torch.is_anomaly_enabled()


def test_reference_evaluates_on_the_same_pixels_as_ours():
    split = contenders.random_split(6)
    theirs = next(reference.image_by_image(split, SETS["CIFAR10"], 6, train=False))
    ours = next(iter(DeviceBatches(split, SETS["CIFAR10"], device="cpu", batch_size=6, seed=0, train=False).epoch(0)))
    torch.testing.assert_close(theirs[0], ours[0].contiguous(), rtol=1e-5, atol=1e-5)
    assert torch.equal(theirs[1], ours[1]) and theirs[0].is_contiguous()


def test_reference_trains_on_shifted_and_flipped_images():
    image = np.zeros((1, 32, 32, 3), np.uint8)
    image[0, 16, 10] = 255
    loader = reference.image_by_image(Split(image, np.array([7])), SETS["CIFAR10"], 1, train=True)
    places = set()
    for _ in range(60):
        images, labels = next(loader)
        row, column = divmod(int(images[0, 0].argmax()), 32)
        places.add((row, column))
        assert labels.tolist() == [7]
        assert abs(row - 16) <= 4
        assert abs(column - 10) <= 4 or abs(column - 21) <= 4
    assert {column > 15 for _, column in places} == {False, True} and len(places) > 20


def test_our_contender_runs_the_training_loop_without_output(monkeypatch, capsys):
    monkeypatch.setattr(contenders, "EVALUATED", 2)
    model = contenders.network("Wide_VGG_Small_132", dense=False)
    assembled = contenders.parts(model, "sgd", FLOAT32, 2, dense=False)
    train, test = contenders.our_samplers(assembled)
    assert train() > 0 and test() > 0
    again = contenders.parts(contenders.network("Wide_VGG_Small_132", dense=False), "sgd", FLOAT32, 2, dense=False)
    train_one_epoch(again, TrainingState(epoch=1), "the same", Callbacks())
    for ours, theirs in zip(model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert capsys.readouterr() == ("", "")


def test_the_dense_contender_trains_every_weight():
    model = contenders.network("Wide_VGG_Small_132", dense=True)
    assembled = contenders.parts(model, "adam", FLOAT32, 2, dense=True)
    trained = {id(p) for group in assembled.optimizer.param_groups for p in group["params"]}
    assert trained == {id(p) for p in model.parameters()}


def test_contenders_take_turns_after_one_round_of_warm_up():
    calls = []
    works = {name: lambda name=name: calls.append(name) or 0.5 for name in "abc"}
    samples = timing.measure(works, 3)
    assert "".join(calls) == "abc" + "abc" + "bca" + "cab"
    assert samples == {name: [0.5, 0.5, 0.5] for name in "abc"}


def test_timed_returns_seconds_per_batch(monkeypatch):
    clock = iter([10.0, 14.0])
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
    order = []
    assert timing.timed(lambda: order.append("work"), 8, lambda: order.append("wait"))() == 0.5
    assert order == ["wait", "work", "wait"]


def test_the_first_step_of_a_sample_is_not_timed(monkeypatch):
    clock = iter([0.0, 100.0, 101.0, 102.0, 106.0])
    monkeypatch.setattr(contenders.TimedBatches, "_now", lambda self: next(clock))
    model = contenders.network("Wide_VGG_Small_132", dense=False)
    train, _ = contenders.our_samplers(contenders.parts(model, "sgd", FLOAT32, 2, dense=False))
    assert contenders.STEPS == 4
    assert train() == 2.0


def test_summary_has_quartiles_and_ratios_are_of_medians():
    assert timing.summary([4.0, 1.0, 2.0, 3.0, 5.0]) == {"n": 5, "median": 3.0, "min": 1.0, "iqr": 2.0}
    assert timing.summary([4.0]) == {"n": 1, "median": 4.0, "min": 4.0, "iqr": 0.0}
    medians = {"reference/fp32/train": 8.0, "reference/fp32/eval": 6.0, "ours/bf16/train": 2.0, "ours/bf16/eval": 1.0}
    medians |= {"dense/bf16/train": 1.6}
    found = networks.ratios(medians, ["bf16"])
    assert found == {"train/bf16": 4.0, "train/bf16/over_dense": 1.25, "eval/bf16": 6.0}


def test_the_table_shows_targets_next_to_their_ratios():
    row = {"net": "Conv4", "act": "1/32", "targets": networks.targets("Conv4", "1/32")}
    row["summary"] = {f"{who}/fp32/train": {"median": 0.2, "iqr": 0.01} for who in ("reference", "ours")}
    row["ratios"] = {"train/fp32": 3.0, "eval/fp32": 9.5, "train/fp32/over_dense": 1.05}
    head, line = networks.table([row], ["fp32"]).splitlines()
    assert line.split() == ["Conv4", "1/32", "200.0±10.0", "200.0±10.0", "3.00", "[2.5]", "9.50", "1.05", "[1.1]"]
    assert len(head) == len(line)
    assert networks.targets("Conv4", "1/32")["train/fp32"] == 2.5
    assert networks.targets("Conv4", "1/1") == networks.targets("Conv6", "1/32") == {}


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--nets", "Conv3"], "Conv2"),
        (["--acts", "1/2"], "1/32"),
        (["--precision", "fp16"], "bf16"),
        (["--repeat", "0"], ">= 1"),
        (["--threads", "-1"], ">= 1"),
        (["--out", "/proc/new/bench.json"], "--out: cannot make /proc/new"),
        (["--out", "/proc/bench.json"], "--out: /proc cannot be written to"),
    ],
)
def test_bad_input_is_reported_before_anything_is_measured(argv, said, capsys):
    assert bench.main(argv) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and said in err


def test_the_report_has_every_sample(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(contenders, "STEPS", 2)
    monkeypatch.setattr(contenders, "EVALUATED", 1)
    out = tmp_path / "new" / "bench.json"
    argv = ["--nets", "Wide_VGG_Small", "--acts", "1/32", "--batch-size", "2", "--repeat", "3", "--out", str(out)]
    assert bench.main(argv) == 0
    lines = ["warm-up of 8 functions", *(f"round {i} of 3" for i in (1, 2, 3))]
    printed = capsys.readouterr()
    assert printed.err.splitlines() == [f"Wide_VGG_Small 1/32: {line}" for line in lines]
    report = json.loads(out.read_text())
    (row,) = report["rows"]
    both = {f"{who}/{what}" for who in ("reference/fp32", "ours/bf16", "ours/fp32") for what in ("train", "eval")}
    assert set(row["samples"]) == set(row["summary"]) == both | {"dense/bf16/train", "dense/fp32/train"}
    assert all(len(values) == 3 and min(values) > 0 for values in row["samples"].values())
    assert {"command", "date", "device", "threads", "torch", "commit"} <= set(report)
    assert "Wide_VGG_Small" in printed.out


def test_the_script_runs_as_a_file(tmp_path):
    command = (
        "scripts/bench.py --nets Wide_VGG_Small_132 --acts 1/32 --precision fp32 --batch-size 2 --repeat 1 --threads 1"
    )
    done = subprocess.run(
        [sys.executable, *command.split(), "--out", str(tmp_path / "bench.json")],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "Wide_VGG_Small_132" in done.stdout
    assert json.loads((tmp_path / "bench.json").read_text())["rows"][0]["ratios"]["train/fp32"] > 0


@pytest.mark.parametrize("code", [startup.FIRST_BATCH, startup.WHOLE_PROGRAM], ids=["parts", "program"])
def test_the_start_imports_no_slow_library_before_the_first_batch(code, tmp_path):
    late = ["tensorboard", "torchvision", "PIL", "matplotlib", "torch._dynamo"]
    tell = f"print([m for m in {late} if m in sys.modules], flush=True); os._exit(0)"
    done = subprocess.run(
        [sys.executable, "-c", code.replace("os._exit(0)", tell), str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_startup_report_has_every_sample(monkeypatch, capsys, tmp_path):
    for name in ("IMPORT_TORCH", "FIRST_BATCH", "WHOLE_PROGRAM"):
        monkeypatch.setattr(startup, name, "pass")
    out = tmp_path / "start.json"
    assert bench.main(["--startup", "--repeat", "2", "--out", str(out)]) == 0
    found = json.loads(out.read_text())["startup"]
    assert [len(values) for values in found["samples"].values()] == [2, 2, 2]
    assert found["over_import_torch"]["import torch"] == 1
    assert "first batch" in capsys.readouterr().out
