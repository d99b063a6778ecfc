"""BinaryConv: values against numpy, gradients against the surrogate, and products that skip zeros."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from models.constraints import attach, bake, constrain, layer_counts
from models.constraints import binary as module
from models.constraints.binary import BinaryWeight, binarised
from models.constraints.gradients import ThroughThreshold
from models.constraints.sparse_matmul import find_ones, product_of_rows

HALF = torch.tensor([[0.0, 0.49999997, 0.5, 1.0], [-0.5, -0.2, -1.0, 0.7]])
ONES = [[0, 0, 1, 1], [1, 0, 1, 1]]


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def linear(weight, bias=None, **settings):
    """Return a Linear layer with the constraint BinaryConv and the given real weight θ."""
    net = nn.Sequential(nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None))
    constrain(net, "BinaryConv", **settings)
    with torch.no_grad():
        net[0].weight.copy_(weight)
        if bias is not None:
            net[0].bias.copy_(bias)
    return net[0]


# values


@pytest.mark.parametrize("on", [1.0, 0.0, 2.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_a_weight_is_on_if_its_magnitude_is_at_least_one_half(on, dtype):
    real = HALF.where(HALF != 0.49999997, 0.4).to(dtype)
    found = binarised(real, on)
    assert found.tolist() == [[on * one for one in row] for row in ONES] and found.dtype == dtype
    assert binarised(HALF, on).tolist() == [[on * one for one in row] for row in ONES]


def test_attaching_draws_the_weight_from_the_generator():
    net = nn.Sequential(nn.Linear(400, 300))
    weight = net[0].weight
    constrain(net, "BinaryConv", initial_ones=0.1, generator=torch.Generator().manual_seed(3))
    expected = torch.empty(300, 400).bernoulli_(0.1, generator=torch.Generator().manual_seed(3))
    assert net[0].weight is weight and torch.equal(weight, expected) and weight.requires_grad
    default = linear(torch.zeros(1, 1)), nn.Linear(1000, 1000)
    BinaryWeight(default[1].weight.detach())
    assert 800 < default[1].weight.sum() < 1200 and set(default[1].weight.unique().tolist()) == {0, 1}


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_initial_ones_outside_0_to_1_is_refused(share):
    with pytest.raises(ValueError, match=r"initial_ones: .* must be >= 0 and <= 1"):
        BinaryWeight(torch.zeros(2, 2), initial_ones=share)


@pytest.mark.parametrize("kind", ["Linear", "Conv2d"])
@pytest.mark.parametrize("on", [1.0, 1.7])
@pytest.mark.parametrize("training", [True, False])
def test_layers_multiply_by_the_binary_weight_and_add_the_binary_bias(kind, on, training):
    layer = nn.Linear(6, 5) if kind == "Linear" else nn.Conv2d(6, 5, 3, stride=2, padding=1)
    net = constrain(nn.Sequential(layer), "BinaryConv").train(training)
    with torch.no_grad():
        net[0].weight.copy_(random(*layer.weight.shape))
        net[0].bias.copy_(random(5, seed=1))
    net[0].constraint.on_value = on
    x = random(3, 6, seed=2) if kind == "Linear" else random(3, 6, 7, 5, seed=2)
    weight, bias = (on * (np.abs(p.detach().numpy()) >= 0.5).astype(np.float32) for p in (layer.weight, layer.bias))
    plain = copy.deepcopy(layer)
    plain.weight.data, plain.bias.data = torch.from_numpy(weight), torch.from_numpy(bias)
    torch.testing.assert_close(net(x), plain(x))
    torch.testing.assert_close(bake(net)(x), plain(x))
    assert layer_counts(net)[0].kept == weight.astype(bool).sum()


# gradients


def test_the_straight_through_gradient_fails_gradcheck_and_that_of_its_surrogate_passes():
    real = random(4, 3, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda r: r.clone(), real)
    assert not torch.autograd.gradcheck(
        lambda r: ThroughThreshold.apply(r, binarised(r, 2.0)), real, raise_exception=False
    )


@pytest.mark.parametrize("kind", ["Linear", "Conv2d", "many ones"])
def test_gradients_equal_those_of_a_plain_layer_with_the_binary_weight(kind):
    layer = nn.Conv2d(6, 5, 3) if kind == "Conv2d" else nn.Linear(6, 5)
    net = constrain(nn.Sequential(layer), "BinaryConv", initial_ones=0.9 if kind == "many ones" else 0.04)
    net[0].constraint.on_value = 1.5
    x, g = (random(3, 6, 4, 4), random(3, 5, 2, 2, seed=1)) if kind == "Conv2d" else (random(3, 6), random(3, 5))
    x.requires_grad_()
    net(x).backward(g)
    plain, other = copy.deepcopy(layer), x.detach().clone().requires_grad_()
    plain.weight.data, plain.bias.data = binarised(layer.weight, 1.5), binarised(layer.bias, 1.5)
    plain.zero_grad()
    plain(other).backward(g)
    torch.testing.assert_close(net[0].weight.grad, plain.weight.grad)
    torch.testing.assert_close(net[0].bias.grad, plain.bias.grad)
    torch.testing.assert_close(x.grad, other.grad)


def test_an_output_without_gradient_gives_its_weights_a_zero_gradient():
    g, x = random(8, 4), random(4, 5, seed=1)
    g[[0, 3, 4, 7]] = 0
    found = product_of_rows(g, x, g.dtype)
    torch.testing.assert_close(found, g @ x)
    assert found[[0, 3, 4, 7]].count_nonzero() == 0 and found.is_contiguous()
    torch.testing.assert_close(product_of_rows(g[1:3], x, g.dtype), g[1:3] @ x)  # no row is 0
    assert torch.equal(product_of_rows(torch.zeros(8, 4), x, x.dtype), torch.zeros(8, 5))


@pytest.mark.parametrize("shape", [(0, 6), (0, 4, 6), (3, 0, 6)])
@pytest.mark.parametrize("ones", [0.04, 0.9])
def test_an_empty_batch_has_gradient_0(shape, ones):
    net = constrain(nn.Sequential(nn.Linear(6, 5)), "BinaryConv", initial_ones=ones)
    x = torch.zeros(shape, requires_grad=True)
    out = net(x)
    out.sum().backward()
    assert out.shape == (*shape[:-1], 5) and x.grad.shape == shape
    assert not net[0].weight.grad.any() and not net[0].bias.grad.any()


# products


@pytest.fixture
def products(monkeypatch):
    """List of the kind of each product of a binary Linear layer: sparse or dense."""
    taken = []
    apply = module.ThroughOnes.apply
    monkeypatch.setattr(module.ThroughOnes, "apply", lambda *a: taken.append("sparse") or apply(*a))
    dense = F.linear
    monkeypatch.setattr(F, "linear", lambda x, *rest: taken.extend(["dense"] * len(x)) or dense(x, *rest))
    return taken


def test_a_linear_layer_skips_the_zeros_if_there_are_few_ones(products):
    few, many = torch.zeros(10, 10), torch.zeros(10, 10)
    few[0] = 1
    many[:2, :6] = 1
    layer = linear(few)
    assert torch.equal(layer(torch.ones(2, 10)), few.sum(1).expand(2, 10))
    assert products[-1] == "sparse"
    layer = linear(many)
    assert torch.equal(layer(torch.ones(2, 10)), many.sum(1).expand(2, 10))
    assert products[-1] == "dense"


@pytest.mark.parametrize("share", [0.08, 0.6])
def test_inputs_may_have_any_number_of_leading_axes(share):
    layer = linear(torch.arange(24.0).lt(24 * share).float().view(6, 4).t(), bias=random(4, seed=1))
    x = random(2, 3, 6, seed=2)
    assert layer(x).shape == (2, 3, 4)
    torch.testing.assert_close(layer(x), F.linear(x, binarised(layer.weight, 1), binarised(layer.bias, 1)))
    torch.testing.assert_close(layer(x[0, 0]), layer(x)[0, 0])
    assert layer(x[:, :0]).shape == (2, 0, 4)


def test_autocast_applies_to_the_product_of_ones():
    layer = linear(torch.zeros(40, 50).bernoulli_(0.04, generator=torch.Generator().manual_seed(0)))
    x = random(8, 50).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), F.linear(x, binarised(layer.weight, 1)), rtol=0.02, atol=0.02)
    y.float().sum().backward()
    assert layer.weight.grad.dtype == x.grad.dtype == torch.float32
    torch.testing.assert_close(layer.weight.grad, x.detach().sum(0).expand(40, 50), rtol=0.02, atol=0.05)


# cache


@pytest.fixture
def searches(monkeypatch):
    calls = []
    monkeypatch.setattr(module, "find_ones", lambda weight, **how: calls.append(1) or find_ones(weight, **how))
    monkeypatch.setattr(module, "binarised", lambda real, on: calls.append(1) or binarised(real, on))
    return calls


def refill(tensor):
    with torch.no_grad():
        tensor.view(-1)[1] = 1


CHANGES = {
    "weight": lambda layer: refill(layer.weight),
    "train() and eval()": lambda layer: layer.train().eval(),
    "weight.data and eval()": lambda layer: refill(layer.weight.data) or layer.eval(),
    "another weight": lambda layer: setattr(layer, "weight", nn.Parameter(torch.full_like(layer.weight, 0.1))),
}


@pytest.mark.parametrize("kind", ["Linear", "Conv2d"])
@pytest.mark.parametrize("change", CHANGES)
def test_evaluation_finds_the_ones_once_until_something_changes(searches, change, kind):
    plain, x = (nn.Linear(6, 4), random(2, 6)) if kind == "Linear" else (nn.Conv2d(6, 4, 3), random(2, 6, 5, 5))
    plain.bias = None
    net = constrain(nn.Sequential(plain), "BinaryConv", initial_ones=0.0).eval()
    for _ in range(3):
        net(x)
    assert len(searches) == 1
    CHANGES[change](net[0])
    for _ in range(2):
        out = net(x)
    assert len(searches) == 2
    torch.testing.assert_close(out, bake(net)(x))


def test_training_finds_the_ones_in_every_pass(searches):
    layer = linear(torch.zeros(6, 5))
    for _ in range(3):
        layer(random(2, 5))
    assert len(searches) == 3
    layer.weight.data.fill_(1)  # without a change of the tensor version, as fused optimizers write
    assert torch.equal(layer(torch.ones(1, 5)), torch.full((1, 6), 5.0))


def test_ones_found_while_clamping_are_used_only_in_the_next_pass(searches):
    layer = linear(torch.full((6, 5), -0.7))  # would be ones if the clamp did not set them to 0
    layer.constraint.clamp_weight(layer.weight)
    assert layer.weight.count_nonzero() == 0 and len(searches) == 1
    assert torch.equal(layer(torch.ones(1, 5)), torch.zeros(1, 6))
    assert len(searches) == 1
    layer.weight.data.fill_(1)
    assert torch.equal(layer(torch.ones(1, 5)), torch.full((1, 6), 5.0))
    layer.constraint.clamp_weight(layer.weight)
    refill(layer.weight.detach().zero_())
    assert torch.equal(layer(torch.ones(1, 5)), torch.eye(6)[:1])


def test_ones_found_while_clamping_are_dropped_by_train():
    layer = linear(torch.zeros(6, 5))
    layer.constraint.clamp_weight(layer.weight)
    layer.weight.data.fill_(1)
    assert torch.equal(layer.train()(torch.ones(1, 5)), torch.full((1, 6), 5.0))


@pytest.mark.parametrize("plain", [nn.Linear(6, 5), nn.Linear(6, 5).bfloat16(), nn.Conv2d(6, 5, 3)], ids=str)
def test_clamp_weight_clamps_every_weight_to_0_to_1(plain):
    layer = constrain(nn.Sequential(plain), "BinaryConv")[0]
    few, many = torch.full_like(layer.weight, 0.25), random(*layer.weight.shape).to(layer.weight)
    few.view(-1)[:3] = torch.tensor([7.0, -7.0, 0.75])
    for weight in (few, many):
        layer.weight.data = weight.clone()
        layer.constraint.clamp_weight(layer.weight)
        assert torch.equal(layer.weight, weight.clamp(0, 1))


def test_evaluation_uses_a_changed_on_value():
    net = constrain(nn.Sequential(nn.Conv2d(3, 4, 1, bias=False)), "BinaryConv", initial_ones=0.5).eval()
    x = random(2, 3, 2, 2)
    at_one = net(x)
    net[0].constraint.on_value = 2.0
    torch.testing.assert_close(net(x), 2 * at_one)


def test_the_state_dict_holds_only_weight_and_bias():
    net = constrain(nn.Sequential(nn.Linear(4, 3)), "BinaryConv").eval()
    net(random(2, 4))
    assert list(net.state_dict()) == ["0.weight", "0.bias"]


def test_attach_makes_only_the_named_layers_binary():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    attach(net, BinaryWeight, ["1"])
    assert [count.constraint for count in layer_counts(net)] == ["dense", "BinaryWeight"]
