"""Constraints that change the bias, and constraints that own the parameters of the weight."""

import copy

import pytest
import torch
from torch import nn

from models.constraints import (
    Constraint,
    attach,
    bake,
    constrained_layers,
    layer_counts,
    parameter_counts,
    weight_shape,
)
from trainers.optimizers import freeze_weights


class Doubled(Constraint):
    """A constraint that doubles the weight and halves the bias."""

    def __init__(self, weight):
        super().__init__()

    def forward(self, weight):
        return 2 * weight

    def effective_bias(self, bias):
        return bias / 2


class Squared(Constraint):
    """A constraint that owns a root, whose square is the weight."""

    owns_weight = True

    def __init__(self, weight):
        super().__init__()
        self.shape = weight.shape
        self.root = nn.Parameter(weight.abs().sqrt())
        self.more = nn.Parameter(torch.zeros(3))

    def forward(self, weight):
        assert weight is None
        return self.root.square()

    def from_dense(self, weight):
        return {"root": weight.abs().sqrt()}


def network(make, seed=0):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(12, 5))
    attach(net, make, ["0", "2"])
    return net


X = torch.randn(4, 2, 4, 4, generator=torch.Generator().manual_seed(1))


def test_a_layer_adds_the_effective_bias():
    net = network(Doubled)
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(12, 5))
    for layer in (plain[0], plain[2]):
        layer.weight.data *= 2
        layer.bias.data /= 2
    torch.testing.assert_close(net(X), plain(X))
    net(X).sum().backward()
    assert net[2].bias.grad.eq(2).all()  # four images, half of each gradient


@pytest.mark.parametrize("make", [Doubled, Squared])
def test_bake_stores_effective_weight_and_effective_bias(make):
    net = network(make)
    plain = bake(net)
    assert type(plain[0]) is nn.Conv2d and type(plain[2]) is nn.Linear and not constrained_layers(plain)
    torch.testing.assert_close(plain(X), net(X))
    assert [name for name, _ in plain.named_parameters()] == ["0.weight", "0.bias", "2.weight", "2.bias"]


def test_a_layer_stores_no_weight_if_its_constraint_owns_it():
    net = network(Squared)
    assert net[0].weight is None and "0.weight" not in net.state_dict()
    assert weight_shape(net[0]) == (3, 2, 3, 3) and weight_shape(net[2]) == (5, 12)
    net(X).sum().backward()
    assert net[2].constraint.root.grad.any()
    other = network(Squared, seed=1)
    other.load_state_dict(net.state_dict())
    assert torch.equal(other(X), net(X)) and torch.equal(copy.deepcopy(net)(X), net(X))


def test_counts_include_weights_that_a_constraint_owns():
    dense, net = network(Doubled), network(Squared)
    assert [(c.shape, c.total) for c in layer_counts(net)] == [((3, 2, 3, 3), 54), ((5, 12), 60)]
    assert parameter_counts(net) == parameter_counts(dense) == (54 + 3 + 60 + 5,) * 2


def test_freezing_weights_leaves_the_parameters_of_constraints_trainable():
    net = network(Squared)
    freeze_weights(net)
    trained = {name for name, p in net.named_parameters() if p.requires_grad}
    assert trained == {f"{i}.constraint.{of}" for i in (0, 2) for of in ("root", "more")}


def test_from_dense_needs_a_constraint_that_owns_its_weight():
    assert torch.equal(Squared(torch.ones(2, 2)).from_dense(torch.full((2, 2), 9.0))["root"], torch.full((2, 2), 3.0))
    with pytest.raises(NotImplementedError, match="Doubled keeps the layer's own weight"):
        Doubled(torch.ones(1)).from_dense(torch.ones(1))
