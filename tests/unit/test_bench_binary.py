"""The benchmark of the binary network: a step of the published code equals ours. No time is asserted."""

import json

import pytest
import torch

from models.constraints import weight_layers
from scripts import bench
from scripts.benchmarks import binary
from scripts.benchmarks.binary import Source, SourceStep, loop_parts
from trainers.loop import Callbacks, train_one_epoch
from trainers.training_state import TrainingState
from utils.distributed.runtime import Runtime

FLOAT32 = Runtime(torch.device("cpu"), torch.float32)


class ListedBatches:
    """The batches of a training loop as a list in float64."""

    def __init__(self, batches):
        self.samples, self.all = batches.samples, [(x.double(), labels) for x, labels in batches.epoch(0)]

    def __len__(self):
        return len(self.all)

    def epoch(self, epoch, start=0):
        yield from self.all[start:]


def test_training_steps_of_the_published_code_equal_ours(monkeypatch):
    monkeypatch.setattr(binary, "ONES", (0.05, 0.08, 0.08, 0.2))
    monkeypatch.setattr(binary, "RATE", 1.0)  # large enough that binary weights flip in these steps
    parts = loop_parts("BinaryConv", 30, 16, FLOAT32)
    parts.model.double()
    parts.train, source = ListedBatches(parts.train), SourceStep(30, torch.device("cpu"))
    source.model.double()
    for group in (*parts.optimizer.param_groups, *source.optimizer.param_groups):
        group["eps"] = 0.01  # with Adam's default, rounding errors of zero gradients become steps
    ours = list(weight_layers(parts.model).values())
    with torch.no_grad():
        for weight, layer in zip(source.weights, ours, strict=False):
            weight.copy_(layer.weight)
    before = [layer.weight.detach().clone() for layer in ours]
    assert train_one_epoch(parts, TrainingState(), "here", Callbacks()) and len(parts.train) > 2
    for images, labels in parts.train.epoch(0):
        source(images.flatten(1), labels)
    for layer, weight, old in zip(ours, source.weights, before, strict=False):
        torch.testing.assert_close(layer.weight, weight, rtol=0, atol=1e-4)
        assert ((layer.weight >= 0.5) != (old >= 0.5)).any()
    norms = [parts.model.linear[i] for i in (2, 5, 8, 11)]
    for norm, theirs in zip(norms, source.model.norms, strict=False):
        torch.testing.assert_close(norm.state_dict(), theirs.state_dict(), rtol=1e-4, atol=1e-4)


def test_the_published_code_has_an_unused_layer_and_norm():
    model = Source(6)
    model(torch.rand(4, 784)).sum().backward()
    unused = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert unused == {"layers.4.weight", "norms.4.weight", "norms.4.bias"}


def test_the_weights_have_the_stated_fraction_of_ones():
    parts = loop_parts("BinaryConv", 500, 2, FLOAT32)
    for layer, share in zip(weight_layers(parts.model).values(), binary.ONES, strict=True):
        assert layer.constraint.count_kept(layer.weight) / layer.weight.numel() == pytest.approx(share, rel=0.4)


def test_the_report_has_every_sample_and_the_ratios_to_our_times(monkeypatch, tmp_path, capsys):
    small = binary.samplers(FLOAT32, width=8, batch=4)
    assert all(work() > 0 for work in small.values())
    seconds = {"source": 0.6, "ours": 0.1, "dense": 0.2, "ours, bf16": 0.05}
    works = {name: lambda s=s: s for name, s in seconds.items()}
    monkeypatch.setattr(binary, "samplers", lambda _runtime: works)
    assert bench.main(["--binary", "--repeat", "3", "--out", str(tmp_path / "b.json")]) == 0
    output = capsys.readouterr().out
    assert "source  600 ms per step" in output and "6.00x ours" in output
    assert "target for the source: 5x; to ours in bf16 the ratio is 12.00x" in output
    stored = json.loads((tmp_path / "b.json").read_text())["binary"]
    assert stored["samples"] == {name: [s] * 3 for name, s in seconds.items()}
    assert stored["summary"]["source"]["n"] == 3 and len(stored["ones"]) == 4
