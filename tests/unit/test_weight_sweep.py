"""The weight sweep: equal to networks with rebuilt weights, with one pass over the batches."""

import copy

import pytest
import torch
from torch import nn

import models
from models.constraints import constrain, constrained_layers, weight_layers
from models.initial import initialise
from tests.steps import OneBatch, make_method
from trainers.loop import evaluate
from trainers.methods.binary import Binary
from trainers.methods.weight_sweep import ScaledLayer, scaled, weight_sweep
from utils.distributed.runtime import Runtime

CPU = Runtime(torch.device("cpu"), torch.float32)
VALUES = [0.0, 0.1, 1.0, 1.7, 4.0]


class TwoBatches(OneBatch):
    """TwoBatches batches of different images."""

    def __init__(self, spec, samples=40):
        super().__init__(spec, samples)
        self.epochs = 0

    def __len__(self):
        return 2

    def epoch(self, epoch, start=0):
        self.epochs += 1
        for images, labels in super().epoch(epoch):
            yield images, labels
            yield images[1:].flip(1) * 2, labels[1:]


class ImageSpec:
    """Spec of a data set with images of this shape."""

    def __init__(self, in_shape, num_classes=5):
        self.in_shape, self.num_classes = in_shape, num_classes


def network(arch, in_shape, *, dense=(), ones=0.2, **options):
    """Return a network whose layers are binary except those with the indices `dense`, and its method."""
    torch.manual_seed(3)
    model = models.build(arch, num_classes=5, in_shape=in_shape, **options)
    initialise(model, "standard")
    names = [list(weight_layers(model))[i] for i in dense]
    constrain(model, "BinaryConv", initial_ones=ones, dense=tuple(names))
    method = make_method("binary")
    method.prepare(model)
    for layer in constrained_layers(model).values():
        nn.init.uniform_(layer.weight, 0, 0.5 / (1 - ones))  # the fraction `ones` of the weights exceeds one half
        if layer.bias is not None:
            nn.init.uniform_(layer.bias)
    return model, method


def rebuilt(model, on):
    """Return a plain network with weights and biases of 0 and `on` and with batch norms in training mode."""
    plain = copy.deepcopy(model)
    for layer in constrained_layers(plain).values():
        for parameter in (layer.weight, *([] if layer.bias is None else [layer.bias])):
            parameter.data = torch.where(parameter.abs() >= 0.5, on, 0.0)
        layer.forward = super(type(layer), layer).forward
    for module in plain.modules():
        module.train(isinstance(module, nn.modules.batchnorm._BatchNorm))
    return plain


class BatchStatisticsEvaluation(Binary):
    """A method that evaluates with batch norms in training mode."""

    def before_evaluation(self, model):
        for module in model.modules():
            module.train(isinstance(module, nn.modules.batchnorm._BatchNorm))


MLP = {"hidden": (30, 20)}
NETWORKS = {
    **{norm: ("CircuitMLP", (1, 6, 5), MLP | {"norm": norm}) for norm in ("batch_norm", "hard_invert", "soft_invert")},
    "bias": ("CircuitMLP", (1, 6, 5), MLP | {"bias": True}),
    "many ones": ("CircuitMLP", (1, 6, 5), MLP | {"ones": 0.7, "bias": True}),
    "few ones": ("CircuitMLP", (1, 6, 5), MLP | {"ones": 0.03}),
    "Conv2": ("Conv2", (3, 8, 8), {"width_mult": 0.125}),
    "LeNet5": ("LeNet5", (1, 20, 20), {}),
    "VGG_Small": ("VGG_Small", (1, 8, 8), {"width_mult": 0.0625, "ones": 0.05}),
    "first layer dense": ("CircuitMLP", (1, 6, 5), MLP | {"dense": (0,), "bias": True}),
    "last layer dense": ("Conv2", (1, 8, 8), {"dense": (-1,), "width_mult": 0.125}),
    "residual": ("cResNet20", (3, 8, 8), {"width_mult": 0.25, "ones": 0.05}),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_sweep_equals_evaluations_of_networks_with_rebuilt_weights(name):
    arch, in_shape, settings = NETWORKS[name]
    model, method = network(arch, in_shape, **settings)
    batches = TwoBatches(ImageSpec(in_shape))
    for row, on in zip(weight_sweep(model, batches, method, CPU, VALUES), VALUES, strict=True):
        expected = evaluate(rebuilt(model, on), batches, make_method(BatchStatisticsEvaluation), CPU)
        assert row["on"] == on
        assert row["loss"] == pytest.approx(expected.loss, rel=1e-5)
        assert row["acc@1"] == pytest.approx(expected.top1, abs=1e-9)
    assert len({row["loss"] for row in weight_sweep(model, batches, method, CPU, VALUES)}) > 1


def test_a_sweep_at_1_is_an_evaluation_and_leaves_the_network_unchanged():
    model, method = network("CircuitMLP", (1, 6, 5), **MLP)
    batches, state = TwoBatches(ImageSpec((1, 6, 5))), copy.deepcopy(model.state_dict())
    expected = evaluate(model, batches, method, CPU)
    (row,) = weight_sweep(model, batches, method, CPU, [1.0])
    assert (row["loss"], row["acc@1"]) == (expected.loss, expected.top1)
    assert weight_sweep(model, batches, method, CPU, [0.3]) and evaluate(model, batches, method, CPU) == expected
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert not any(isinstance(module, ScaledLayer) for module in model.modules())


def test_a_sweep_reads_the_batches_once_and_computes_the_first_layer_once_per_batch(monkeypatch):
    model, method = network("CircuitMLP", (1, 6, 5), **MLP)
    batches, calls = TwoBatches(ImageSpec((1, 6, 5))), []
    for name, layer in constrained_layers(model).items():
        linear = layer.constraint.linear
        monkeypatch.setattr(layer.constraint, "linear", lambda *a, f=linear, n=name: calls.append(n) or f(*a))
    weight_sweep(model, batches, method, CPU, VALUES)
    assert batches.epochs == 1
    first, *others = constrained_layers(model)
    assert calls.count(first) == 2
    assert [calls.count(name) for name in others] == [2 * len(VALUES)] * len(others)


class OutOfOrder(nn.Module):
    """Network that registers its second layer first. With `branches` torch.fx cannot trace the network."""

    def __init__(self, branches):
        super().__init__()
        self.second, self.first, self.branches = nn.Linear(20, 5), nn.Linear(30, 20), branches

    def forward(self, x):
        hidden = self.first(x.flatten(1)).relu()
        return self.second(hidden if not self.branches or hidden.sum() > -1 else -hidden)


@pytest.mark.parametrize("branches", [True, False])
def test_a_sweep_does_not_depend_on_the_order_of_registration(branches):
    torch.manual_seed(0)
    model, method = constrain(OutOfOrder(branches), "BinaryConv", initial_ones=0.3), make_method("binary")
    method.prepare(model)
    batches = TwoBatches(ImageSpec((1, 6, 5)))
    for row in weight_sweep(model, batches, method, CPU, VALUES):
        assert row["loss"] == pytest.approx(
            evaluate(rebuilt(model, row["on"]), batches, make_method(BatchStatisticsEvaluation), CPU).loss, 1e-5
        )


def test_the_layers_are_restored_when_a_pass_fails():
    model, _ = network("CircuitMLP", (1, 6, 5), **MLP)
    layers = constrained_layers(model)
    with pytest.raises(RuntimeError), scaled(model):
        model(torch.zeros(2, 1, 7, 7))
    assert model(torch.zeros(2, 1, 6, 5)).shape == (2, 5)
    assert constrained_layers(model) == layers
