"""The order of the layers in the forward pass, which may differ from the order of registration."""

import pytest
import torch
from torch import nn

import models
from models.constraints import constrain, weight_layers
from models.constraints.forward_order import layers_in_forward_order
from tests.cases import CASES, CLASSES


class OutOfOrder(nn.Module):
    """Network that registers its output layer first."""

    def __init__(self):
        super().__init__()
        self.output = nn.Linear(6, 2)
        self.body = nn.ModuleDict({"second": nn.Linear(5, 6), "first": nn.Linear(4, 5)})
        self.unused = nn.Linear(9, 9)

    def forward(self, x):
        return self.output(self.body["second"](self.body["first"](x).relu()))


class Branching(OutOfOrder):
    """Network with a branch on a value, which torch.fx cannot trace."""

    def forward(self, x):
        return super().forward(x) if x.sum() > 0 else self.output(x[:, :1].expand(-1, 6))


class Repeating(nn.Module):
    """Network that uses its layers in the order of the names in `order`."""

    def __init__(self, order):
        super().__init__()
        self.a, self.b, self.order = nn.Linear(3, 3), nn.Linear(3, 3), order

    def forward(self, x):
        for name in self.order:
            x = getattr(self, name)(x)
        return x


FORWARD = ["body.first", "body.second", "output"]


@pytest.mark.parametrize("images", [None, torch.ones(2, 4)])
def test_layers_come_in_the_order_of_the_forward_pass_without_unused_ones(images):
    model = OutOfOrder()
    layers = layers_in_forward_order(model, images)
    assert list(layers) == FORWARD and all(model.get_submodule(name) is layer for name, layer in layers.items())
    assert list(weight_layers(model)) == ["output", "body.second", "body.first", "unused"]
    constrain(model, "SubnetConv", density=0.5, dense=("output",))
    assert list(layers_in_forward_order(model, images)) == FORWARD


def test_the_order_of_an_untraceable_network_requires_images():
    with pytest.raises(ValueError, match=r"order of the layers is unknown: torch.fx cannot trace Branching"):
        layers_in_forward_order(Branching())
    assert list(layers_in_forward_order(Branching(), torch.ones(2, 4))) == FORWARD
    assert list(layers_in_forward_order(Branching(), -torch.ones(2, 4))) == ["output"]


def test_a_pass_with_images_leaves_the_network_unchanged():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout()).train()
    layers_in_forward_order(model, torch.ones(2, 1, 4, 4))
    assert all(module.training and not module._forward_pre_hooks for module in model.modules())
    assert int(model[1].num_batches_tracked) == 0 and not model[1].running_mean.any()


@pytest.mark.parametrize("images", [None, torch.ones(2, 3)])
@pytest.mark.parametrize(("order", "message"), [("aba", "a is used 2 times"), ("abbb", "b is used 3 times")])
def test_a_network_that_reuses_a_layer_has_no_forward_order(order, message, images):
    assert list(layers_in_forward_order(Repeating("ba"), images)) == ["b", "a"]
    with pytest.raises(ValueError, match=f"no single order: {message}"):
        layers_in_forward_order(Repeating(order), images)


def test_a_layer_with_two_names_is_listed_under_the_first():
    model = Repeating(["b", "alias"])
    model.alias = model.a
    assert list(layers_in_forward_order(model)) == list(layers_in_forward_order(model, torch.ones(2, 3))) == ["b", "a"]


def test_a_single_layer_is_listed_under_the_empty_name():
    layer = nn.Linear(3, 3)
    assert layers_in_forward_order(layer) == layers_in_forward_order(layer, torch.ones(1, 3)) == {"": layer}


@pytest.mark.parametrize("case", [case for case in CASES if case.conv_type == "DenseConv"], ids=str)
def test_every_architecture_registers_its_layers_in_the_order_of_the_forward_pass(case):
    with torch.device("meta"):
        model = models.build(case.arch, num_classes=CLASSES, in_shape=case.in_shape, **case.options)
    images = torch.ones(2, *case.in_shape, device="meta")
    layers = list(weight_layers(model))
    assert list(layers_in_forward_order(model)) == list(layers_in_forward_order(model, images)) == layers
