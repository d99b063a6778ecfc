"""LeNets, MLPs and CircuitMLP: layers, sizes, normalisations, initial weights, pixel scales, evaluation batches."""

import math

import pytest
import torch
from torch import nn

import data
import models
from data import Split
from data.device_batches import DeviceBatches
from models.initial import initialise
from models.layers import HardInvert, SoftInvert
from trainers.optimizers import make_optimizer

MNIST, CIFAR = (1, 28, 28), (3, 32, 32)


def build(arch, in_shape=MNIST, **options):
    return models.build(arch, num_classes=10, in_shape=in_shape, **options)


def kinds(net):
    return [type(m).__name__ for m in net.modules() if not list(m.children())]


def parameters(net):
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize(
    ("arch", "in_shape", "flat", "count"),
    [  # counts: conv (k·k·in + 1)·out, linear (in + 1)·out
        ("LeNet5", CIFAR, 400, 76 * 6 + 151 * 16 + 401 * 120 + 121 * 84 + 85 * 10),
        ("LeNet5_Caffe", MNIST, 800, 26 * 20 + 501 * 50 + 801 * 500 + 501 * 10),
        ("MNISTNet", MNIST, 9216, 10 * 32 + 289 * 64 + 9217 * 128 + 129 * 10),
    ],
)
def test_networks_have_their_published_sizes(arch, in_shape, flat, count):
    net = build(arch, in_shape)
    first = next(m for m in net.linear if isinstance(m, nn.Linear))
    assert (first.in_features, parameters(net)) == (flat, count)
    assert net(torch.zeros(2, *in_shape)).shape == (2, 10)


def test_mnistnet_drops_channels_after_convolutions_and_units_after_the_linear_layer():
    net = build("MNISTNet")
    assert kinds(net) == [
        "Conv2d",
        "ReLU",
        "Conv2d",
        "ReLU",
        "MaxPool2d",
        "Dropout2d",
        "Linear",
        "ReLU",
        "Dropout",
        "Linear",
    ]
    assert (net.convs[-1].p, net.linear[2].p) == (0.25, 0.5)


@pytest.mark.parametrize("side", [15, 7, 2])
def test_an_image_smaller_than_the_convolutions_need_is_refused(side):
    assert build("LeNet5", (1, 16, 16))(torch.zeros(1, 1, 16, 16)).shape == (1, 10)
    with pytest.raises(ValueError, match=f"arch LeNet5: a {side}x40 image is too small: its 5x5 convolutions"):
        build("LeNet5", (1, side, 40))


def test_circuit_mlp_has_a_norm_after_every_activation_including_the_last():
    net = build("CircuitMLP", hidden=(7, 5))
    assert kinds(net) == ["Linear", "Tanh", "BatchNorm1d"] * 3
    assert [m.out_features for m in net.linear if isinstance(m, nn.Linear)] == [7, 5, 10]
    with torch.device("meta"):
        whole = build("CircuitMLP")
    weights = 784 * 4000 + 2 * 4000**2 + 4000 * 10
    assert parameters(whole) == weights + 2 * (3 * 4000 + 10)  # no unused layer, no bias


def test_dropout_follows_hidden_layers_only():
    assert kinds(build("MLP", hidden=(7, 5), dropout=0.2)) == ["Linear", "ReLU", "Dropout"] * 2 + ["Linear"]
    assert kinds(build("CircuitMLP", hidden=(7,), norm="none", dropout=0.2)) == [
        "Linear",
        "Tanh",
        "Dropout",
        "Linear",
        "Tanh",
    ]


def test_inverters_compute_their_formulas_and_soft_invert_clamps_v():
    x = torch.tensor([-1.0, 0.25, 1.0])
    assert HardInvert()(x).tolist() == [2, 0.75, 0]
    soft = SoftInvert()
    assert 0 <= soft.v <= 1
    with torch.no_grad():
        soft.v.fill_(0.25)
    torch.testing.assert_close(soft(x), x * 0.75 + (1 - x) * 0.25)
    soft(x).sum().backward()
    torch.testing.assert_close(soft.v.grad, (1 - 2 * x).sum())
    for outside, clamped in ((-3.0, 0.0), (1.5, 1.0)):
        with torch.no_grad():
            soft.v.fill_(outside)
        torch.testing.assert_close(soft(x), x * (1 - clamped) + (1 - x) * clamped)
        assert soft.v == clamped
    assert len({SoftInvert().v.item() for _ in range(4)}) == 4


def test_batch_norms_use_the_given_epsilon_and_momentum():
    net = build("CircuitMLP", hidden=(7,), bn_type="NonAffineBatchNorm")
    initialise(net, "xavier_uniform", bn_eps=1e-4, bn_momentum=0.15)
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm1d)]
    assert len(norms) == 2 and {(m.eps, m.momentum) for m in norms} == {(1e-4, 0.15)}


def test_xavier_uniform_has_glorots_bound_and_deviation():
    net = build("MLP", hidden=(200,))
    initialise(net, "xavier_uniform", generator=torch.Generator().manual_seed(0))
    weight, bound = net.linear[0].weight, math.sqrt(6 / (784 + 200))
    assert 0.999 * bound < weight.abs().max() <= bound
    assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.01)


@pytest.mark.parametrize("name", ["adam", "adamw", "radam", "adadelta", "sgd"])
def test_every_optimizer_with_an_epsilon_uses_the_given_one(name):
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "weight_decay": 0.0}]
    usual, own = make_optimizer(name, groups, lr=0.1).defaults, make_optimizer(name, groups, lr=0.1, eps=1e-4).defaults
    assert own.get("eps") == (None if name == "sgd" else 1e-4)
    assert {key: value for key, value in own.items() if key != "eps"} == {k: v for k, v in usual.items() if k != "eps"}


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [
        ("standard", [(v / 255 - 0.1307) / 0.3081 for v in (0, 127, 128, 255)]),
        ("unit", [0, 127 / 255, 128 / 255, 1]),
        ("signed", [-1, 2 * 127 / 255 - 1, 2 * 128 / 255 - 1, 1]),
        ("binary", [0, 0, 1, 1]),
    ],
)
def test_pixels_have_the_requested_scale(pixels, expected):
    spec = data.spec("MNIST", "nowhere", pixels=pixels)
    images = torch.tensor([0, 127, 128, 255], dtype=torch.uint8).repeat(196).view(1, 28, 28, 1)
    batches = DeviceBatches(
        Split(images.numpy(), torch.zeros(1, dtype=torch.long).numpy()),
        spec,
        device="cpu",
        batch_size=1,
        seed=0,
        train=False,
    )
    ((normalised, _),) = batches.epoch(0)
    torch.testing.assert_close(normalised.flatten()[:4], torch.tensor(expected, dtype=torch.float32), rtol=0, atol=1e-6)
    if pixels == "binary":
        assert normalised.unique().tolist() == [0, 1]


def test_an_unknown_pixel_scale_is_refused():
    with pytest.raises(ValueError, match="pixels: 'units' is unknown"):
        data.spec("MNIST", "nowhere", pixels="units")


@pytest.mark.parametrize(
    ("words", "steps"), [((), 6), (("--test-batch-size", "100"), 4), (("--test-batch-size", "9"), 40)]
)
def test_evaluation_uses_test_batch_size(program, config, monkeypatch, words, steps):
    made = []
    whole = data.make_batches

    def spy(split, spec, **options):
        batches = whole(split, spec, **options)
        made.append((options["train"], len(batches)))
        return batches

    monkeypatch.setattr("trainers.build.data.make_batches", spy)
    assert program("--config", config(epochs=1), *words)[0] == 0
    assert made == [(True, 23), (False, steps)]
