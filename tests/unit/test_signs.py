"""Layers between binary activations: detection of these layers, and their exact sums."""

import copy
from collections import Counter
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import models
from models.activations import Sign
from models.constraints import attach, bake, constrain, constrained_layers, weight_layers
from models.constraints.between_signs import rounded_scale, sign_layers
from models.constraints.subnet import SubnetWeight
from models.initial import initialise

PLACES = {
    "VGG_Small_BinAct": {"convs.6", "convs.12"},
    "VGG_Small_noReLU_BinAct": {"convs.6", "convs.12"},
    "Conv8Wide_BinAct_ReLU": {"convs.7", "convs.14", "convs.21"},
}
NETS = {name: (name, (3, 16, 16), {"width_mult": 0.125}) for name in PLACES}
NETS["MLP"] = ("MLP", (1, 8, 8), {"hidden": (200, 200, 200), "activation": "sign"})
NETS["MLP with biases"] = ("MLP", (1, 8, 8), {"hidden": (90, 80), "activation": "sign", "bias": True})
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
PRECISIONS = {"fp32": nullcontext, "bf16": lambda: torch.autocast("cpu", torch.bfloat16)}


def net(name, conv_type="SubnetConv", density=0.5):
    arch, shape, options = NETS[name]
    model = models.build(arch, num_classes=10, in_shape=shape, **options)
    generator = torch.Generator().manual_seed(3)
    initialise(model, "kaiming_normal", generator=generator)
    return constrain(model, conv_type, density=density, initial_ones=0.5, generator=generator)


def images(name, count=32):
    return torch.randn(count, *NETS[name][1], generator=torch.Generator().manual_seed(4))


def layers_between(model):
    return {name: layer for name, layer in constrained_layers(model).items() if layer.constraint.between_signs}


# detection of the layers


def sums_between_signs(logits):
    """Return the number of convolutions and products between two binary activations in autograd's graph."""
    through = ("MaxPool2DWithIndices", "Relu", "View", "ReshapeAlias", "UnsafeView")
    products = ("Convolution", "Mm", "Addmm")

    def kind(node):
        return type(node).__name__.partition("Backward")[0]

    def source(node):
        while node is not None and kind(node) in through:
            node = node.next_functions[0][0]
        return node

    seen, found, left = set(), 0, [logits.grad_fn]
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        sums = source(node.next_functions[0][0]) if kind(node) == "BinarySign" else None
        if sums is not None and kind(sums) in products:
            inputs = (source(n) for n, _ in sums.next_functions)
            found += any(n is not None and kind(n) == "BinarySign" for n in inputs)
        left += [n for n, _ in node.next_functions]
    return found


@pytest.mark.parametrize("arch", models.ARCHS)
def test_sign_layers_finds_every_layer_between_signs_in_every_architecture(arch):
    with torch.device("meta"):
        model = models.build(arch, num_classes=10, in_shape=(3, 32, 32))
        logits = model(torch.empty(2, 3, 32, 32))
    assert sign_layers(model) == PLACES.get(arch, set())
    assert sums_between_signs(logits) == len(sign_layers(model))


@pytest.mark.parametrize("norm", ["none", "batch_norm", "hard_invert"])
@pytest.mark.parametrize("norm_last", [False, True])
def test_sign_layers_finds_the_layers_between_signs_of_an_mlp(norm, norm_last):
    model = models.build(
        "MLP", num_classes=5, in_shape=(1, 4, 4), hidden=(9, 8), activation="sign", norm=norm, norm_last=norm_last
    )
    layers = list(weight_layers(model))
    expected = {"none": layers[1:], "hard_invert": layers[1:] if norm_last else []}.get(norm, [])
    assert sign_layers(model) == set(expected if norm_last else expected[:-1])


class Reused(nn.Module):
    """A network that uses one layer for real numbers and for signs."""

    def __init__(self):
        super().__init__()
        self.layer, self.sign = nn.Linear(4, 4), Sign()

    def forward(self, x):
        return self.sign(self.layer(self.sign(self.layer(x))))


class ByValue(Reused):
    """A network that torch.fx cannot trace."""

    def forward(self, x):
        return super().forward(x) if x.sum() > 0 else x


class Functional(Reused):
    def forward(self, x):
        return self.sign(F.relu(self.layer(torch.flatten(self.sign(x), 1))))


class Tenth(Sign):
    def forward(self, x):
        return super().forward(x) / 10


class OfTenths(Functional):
    """A network with a subclass of the binary activation whose values are not integers."""

    def __init__(self):
        super().__init__()
        self.sign = Tenth()


class InPlace(Functional):
    """A network that scales a binary activation in place."""

    def forward(self, x):
        y = self.sign(x)
        y.mul_(0.3)
        return self.sign(self.layer(y))


class Twofold(Reused):
    """A network that uses sums together with their signs."""

    def forward(self, x):
        y = self.layer(self.sign(x))
        return y + self.sign(y)


@pytest.mark.parametrize(
    "kind, expected", [(Reused, 0), (ByValue, 0), (Twofold, 0), (OfTenths, 0), (InPlace, 0), (Functional, 1)]
)
def test_sign_layers_omits_a_layer_if_its_inputs_or_uses_may_not_be_signs(kind, expected):
    model = kind()
    assert len(sign_layers(model)) == expected
    attach(model, lambda weight: SubnetWeight(weight, density=0.5), ["layer"])
    assert len(layers_between(model)) == expected
    assert model(torch.randn(3, 4)).shape == (3, 4)


def test_a_layer_after_dropout_is_no_sign_layer():
    assert sign_layers(nn.Sequential(Sign(), nn.Dropout(0.3), nn.Linear(4, 4), Sign())) == set()


# exact sums


def seen(model, x, precision="fp32"):
    """Return name -> (input, output) of every layer between signs in a pass."""
    found, hooks = {}, []
    for name, layer in layers_between(model).items():
        keep = lambda _, inputs, out, name=name: found.update({name: (inputs[0].detach(), out.detach())})  # noqa: E731
        hooks.append(layer.register_forward_hook(keep))
    with PRECISIONS[precision]():
        model(x)
    for hook in hooks:
        hook.remove()
    return found


def exact_sign(layer, x):
    """Return the signs of the exact outputs, computed with sums of integers in float64."""
    signs, scale = layer.constraint.signs(layer.weight)
    multiply = F.linear if signs.dim() == 2 else lambda a, b: F.conv2d(a, b, padding=layer.padding)
    sums = multiply(x.double(), signs.double())
    assert torch.equal(sums, sums.round())
    bias = 0 if layer.bias is None else layer.constraint.effective_bias(layer.bias).double()
    return (sums * float(scale) + bias).sign()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", NETS)
def test_the_signs_of_outputs_equal_those_of_exact_sums(name, threads, layout, precision, on_threads):
    model, x = net(name), images(name)
    if x.shape[1] > 1:
        model, x = model.to(memory_format=LAYOUTS[layout]), x.contiguous(memory_format=LAYOUTS[layout])
    with on_threads(threads), torch.no_grad():
        found = seen(model, x, precision)
        halves = [seen(model.eval(), part, precision) for part in x.split(len(x) // 2)]
        whole = seen(model, x, precision)
    zeros = 0
    for at, (inputs, out) in found.items():
        assert set(inputs.unique().tolist()) <= {-1, 0, 1}
        assert torch.equal(out.double().sign(), exact_sign(layers_between(model)[at], inputs)), at
        assert torch.equal(torch.cat([half[at][1] for half in halves]), whole[at][1])
        zeros += int((out == 0).sum())
    assert len(found) >= 1 and (zeros or "biases" in name)


@pytest.mark.parametrize("conv_type", ["SubnetConv", "GlobalSubnetConv", "BinaryConv"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", NETS)
def test_sums_are_exact_for_every_constraint_with_one_magnitude(name, training, conv_type):
    model = net(name, conv_type).train(training)
    for layer in constrained_layers(model).values():
        layer.constraint.on_value = 1.1
    found = seen(model, images(name))
    assert found.keys() == layers_between(model).keys()
    for at, (inputs, out) in found.items():
        assert torch.equal(out.double().sign(), exact_sign(layers_between(model)[at], inputs)), at


# values and gradients


def between(layer, conv_type):
    """Return a network of one constrained layer between two binary activations."""
    torch.manual_seed(5)
    made = constrain(nn.Sequential(Sign(), layer, Sign()), conv_type, density=0.4, initial_ones=0.3)
    made[1].constraint.on_value = 1.3
    return made


@pytest.mark.parametrize("conv_type", ["SubnetConv", "GlobalSubnetConv", "BinaryConv"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", ["conv", "strided", "circular", "linear"])
def test_values_and_gradients_equal_those_of_the_effective_weight(kind, bias, conv_type):
    layer, shape = {
        "conv": (nn.Conv2d(6, 5, 3, padding=1, bias=bias), (3, 6, 5, 4)),
        "strided": (nn.Conv2d(6, 4, 2, stride=2, dilation=2, groups=2, bias=bias), (3, 6, 7, 7)),
        "circular": (nn.Conv2d(6, 5, 3, padding=1, padding_mode="circular", bias=bias), (3, 6, 4, 4)),
        "linear": (nn.Linear(6, 5, bias=bias), (3, 4, 6)),
    }[kind]
    model, x = between(layer, conv_type), torch.randn(*shape, requires_grad=True)
    reference = copy.deepcopy(model)
    assert model[1].constraint.between_signs
    reference[1].constraint.between_signs = False
    outs = [m[1](m[0](x)) for m in (model, reference)]
    torch.testing.assert_close(*outs, rtol=1e-6, atol=1e-6)
    g = torch.randn_like(outs[0])
    gradients = []
    for m, out in zip((model, reference), outs, strict=True):
        wanted = [x, *(p for p in m.parameters() if p.requires_grad)]
        gradients.append(torch.autograd.grad(out, wanted, g, allow_unused=True))
    for ours, expected in zip(*gradients, strict=True):
        assert (ours is None) == (expected is None)
        if ours is not None:
            torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)
            assert ours.any()


def test_a_bypassed_layer_multiplies_by_its_own_weights():
    model = between(nn.Linear(6, 5), "SubnetConv")
    model[1].constraint.bypassed = True
    x = torch.ones(2, 6)
    assert torch.equal(model[1](x), F.linear(x, model[1].weight, model[1].bias))


def test_evaluation_between_signs_selects_once(monkeypatch):
    calls, true = Counter(), SubnetWeight.mask
    monkeypatch.setattr(SubnetWeight, "mask", lambda self: calls.update([self]) or true(self))
    model = net("VGG_Small_BinAct").eval()
    for _ in range(3):
        model(images("VGG_Small_BinAct"))
    assert set(calls.values()) == {1}


# baked networks


@pytest.mark.parametrize("name", PLACES)
def test_a_baked_network_has_the_same_signs(name):
    model, x = net(name), images(name)
    model(x)  # fills the running statistics
    plain, found = bake(model.eval()), seen(model, x)
    for at, (inputs, out) in found.items():
        layer = layers_between(model)[at]
        baked = plain.get_submodule(at)
        assert torch.equal(baked(inputs).sign(), out.sign())
        torch.testing.assert_close(baked.weight.detach(), layer.constraint(layer.weight).detach(), rtol=2**-11, atol=0)
        assert baked.weight.abs().unique().numel() == 2
    torch.testing.assert_close(plain(x), model(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("on", [0.7, 1.1])
@pytest.mark.parametrize("kind", [nn.Linear(200, 50), nn.Conv2d(8, 50, 5)])
def test_baking_scales_a_bias_together_with_the_weight(kind, on):
    torch.manual_seed(0)
    model = constrain(nn.Sequential(Sign(), copy.deepcopy(kind), Sign()), "BinaryConv", initial_ones=0.3).eval()
    model[1].constraint.on_value = on
    nn.init.ones_(model[1].bias)
    plain, x = bake(model), torch.randn(200, *((200,) if isinstance(kind, nn.Linear) else (8, 5, 5)))
    zeros = (model[:2](x) == 0).sum()
    assert zeros > 50 and torch.equal(plain(x), model(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("terms", [1, 9, 576, 4608, 40000])
def test_sums_of_a_rounded_scale_are_exact(terms, dtype):
    for scale in (0.0123456789, 1 / 3, 1.9999999, 7e-12):
        found = rounded_scale(scale, terms, dtype)
        assert found == pytest.approx(scale, rel=2 ** -(22 - terms.bit_length()))
        kind = torch.promote_types(dtype, torch.float32)
        added = torch.full((terms,), found, dtype=kind).cumsum(0)
        assert torch.equal(added.double(), found * torch.arange(1, terms + 1, dtype=torch.float64))


@pytest.mark.parametrize("scale", [0.0, float("inf"), float("nan")])
def test_zero_and_non_finite_scales_are_not_rounded(scale):
    assert rounded_scale(scale, 100, torch.float32) == pytest.approx(scale, nan_ok=True)
