"""Constraints that change the bias, own the parameters of the weight, or cache values."""

import copy
import re
import textwrap

import pytest
import torch
from torch import nn

from models.constraints import (
    Constraint,
    attach,
    bake,
    base,
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
    with pytest.raises(NotImplementedError, match="Doubled does not store the weight in own parameters"):
        Doubled(torch.ones(1)).from_dense(torch.ones(1))


class Masked(Constraint):
    """A constraint with a parameter, a buffer and a plain attribute, which counts its computations."""

    def __init__(self, weight, in_training=False):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.register_buffer("mask", torch.ones_like(weight))
        self.power, self.calls, self.in_training = 1, 0, in_training

    def cache_key(self, weight):
        return super().cache_key(weight), self.power

    def forward(self, weight):
        return self.cached(self.compute, weight, in_training=self.in_training)

    def compute(self, weight):
        self.calls += 1
        return weight * self.scale * self.mask**self.power


def refill(tensor):
    with torch.no_grad():
        tensor.fill_(3)


CHANGES = {
    "weight": lambda layer: refill(layer.weight),
    "parameter": lambda layer: refill(layer.constraint.scale),
    "buffer": lambda layer: refill(layer.constraint.mask),
    "attribute of the key": lambda layer: setattr(layer.constraint, "power", 2),
    "train() and eval()": lambda layer: layer.train().eval(),
    "load_state_dict": lambda layer: layer.load_state_dict({k: v + 1 for k, v in layer.state_dict().items()}),
    "float64": lambda layer: layer.double().float(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_cached_value_is_computed_again_in_evaluation_when_its_key_changes(change):
    layer = network(Masked)[2].eval()
    for _ in range(3):
        out = layer.constraint(layer.weight)
    assert layer.constraint.calls == 1 and not out.requires_grad
    CHANGES[change](layer)
    for _ in range(2):
        out = layer.constraint(layer.weight)
    assert layer.constraint.calls == 2
    assert torch.equal(out, layer.weight * layer.constraint.scale * layer.constraint.mask**layer.constraint.power)


@pytest.mark.parametrize(("in_training", "calls"), [(False, 3), (True, 1)])
def test_training_computes_a_cached_value_in_every_pass_unless_caching_is_requested(in_training, calls):
    layer = network(lambda weight: Masked(weight, in_training))[2]
    for _ in range(3):
        assert not layer.constraint(layer.weight).requires_grad
    assert layer.constraint.calls == calls


def test_the_example_of_the_docstring_works():
    source = re.search(r"    class ShrunkWeight.*?self.scale\n", base.__doc__, re.DOTALL).group()
    names = {"Constraint": Constraint, "nn": nn, "Tensor": torch.Tensor}
    exec(textwrap.dedent(source), names)
    net = network(names["ShrunkWeight"])
    torch.testing.assert_close(bake(net)(X), net(X))
    net(X).sum().backward()
    assert net[0].constraint.scale.grad


def test_a_cached_function_may_write_to_the_weight():
    layer = network(Masked)[2].eval()
    layer.constraint.compute = lambda weight: weight.mul_(2)
    layer.constraint.compute.__name__ = "compute"
    before = layer.weight.detach().clone()
    for _ in range(3):
        assert torch.equal(layer.constraint(layer.weight), 2 * before)
