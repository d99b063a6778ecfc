"""Integer layers compute the same as float64 layers, whose sums are exact. Other layers are refused."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from models.constraints.shift import FixedPoint, power_of_two
from scripts.parts import export_check
from scripts.parts.export_check import integer_network
from scripts.parts.export_packed import pack_any_powers, pack_powers
from utils.errors import UsageError

LAYERS = {
    "linear": (lambda: nn.Linear(7, 5), (7,)),
    "no bias": (lambda: nn.Linear(7, 5, bias=False), (7,)),
    "conv": (lambda: nn.Conv2d(2, 3, 3), (2, 6, 5)),
    "odd conv": (lambda: nn.Conv2d(2, 3, (3, 2), stride=(2, 1), padding=(1, 2)), (2, 6, 5)),
}


def shifted(net, bits=5, fixed=(16, 16), zeros=0.2, *, packed_bias=False):
    """Return `net` in float64 with shift weights, fixed-point biases and inputs, and the content of its file."""
    hook, content = FixedPoint(*fixed), {"weight_bits": bits, "activation_bits": list(fixed), "layers": {}}
    torch.manual_seed(1)
    for name, layer in net.double().eval().named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            weight = power_of_two(
                torch.randn_like(layer.weight) * (torch.rand_like(layer.weight) > zeros), 2 - 2 ** (bits - 1)
            )
            layer.weight.data = weight
            layer.register_forward_pre_hook(hook)
            entry = pack_powers(weight, bits, zero_code=True) | {"bias": None}
            if layer.bias is not None:
                layer.bias.data = (
                    power_of_two(layer.bias, 1 - 2 ** (bits - 1)) if packed_bias else hook.quantise(layer.bias.data)
                )
                as_ints = layer.bias.detach().mul(2.0 ** fixed[1]).to(torch.int64)
                entry["bias"] = pack_powers(layer.bias.detach(), bits, zero_code=False) if packed_bias else as_ints
            content["layers"][name] = entry
    return net, content


def run(net, content, x):
    """Return the logits of the integer network and those in float64."""
    network, last = integer_network(net, content)
    fixed = content["activation_bits"]
    ints = FixedPoint(*fixed).quantise(x.double()).mul(2.0 ** fixed[1]).to(torch.int64)
    with torch.no_grad():
        out = network(ints)
        assert out.dtype == torch.int64
        return out.double() / 2.0**last.fraction, net(x.double())


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("bits, fixed", [(5, (16, 16)), (2, (16, 16)), (4, (4, 3)), (6, (8, 0))], ids=str)
@pytest.mark.parametrize("packed_bias", [True, False])
def test_an_integer_layer_equals_float64(layer, bits, fixed, packed_bias):
    make, shape = LAYERS[layer]
    net, content = shifted(nn.Sequential(make()), bits, fixed, packed_bias=packed_bias)
    found, exact = run(net, content, torch.randn(50, *shape) * 20)
    assert torch.equal(found, exact) and len(found.unique()) > 3


def deep():
    convs = [nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout2d(0.25)]
    return nn.Sequential(*convs, nn.Flatten(), nn.Linear(24, 9), nn.ReLU(), nn.Dropout(0.5), nn.Linear(9, 3))


@pytest.mark.parametrize("fixed", [(16, 16), (5, 2), (2, 4)], ids=str)
def test_a_deep_network_equals_float64_when_fixed_point_rounds_and_clamps(fixed):
    net, content = shifted(deep(), fixed=fixed)
    found, exact = run(net, content, torch.randn(60, 1, 8, 8) * 3)
    assert torch.equal(found, exact)
    free = copy.deepcopy(net)
    for layer in free.modules():
        layer._forward_pre_hooks.clear()
    assert not torch.equal(free(torch.randn(60, 1, 8, 8).double()), exact)


def test_powers_of_any_size_equal_float64():
    """Crude weights and biases: 3 becomes 4, and nothing is clamped below."""
    net, content = shifted(deep(), fixed=(8, 4))
    for name, stored in content["layers"].items():
        layer = net.get_submodule(name)
        for value in (layer.weight.data, layer.bias.data):
            value.copy_(power_of_two(torch.randn_like(value).exp() * torch.randn_like(value).sign() * 3, None))
        stored |= pack_any_powers(layer.weight.data) | {"bias": pack_any_powers(layer.bias.data)}
    found, exact = run(net, content, torch.randn(60, 1, 8, 8) * 3)
    assert torch.equal(found, exact) and net[0].weight.max() > 1


def test_tile_and_chunk_sizes_do_not_change_the_output(monkeypatch):
    net, content = shifted(deep())
    x = torch.randn(45, 1, 8, 8)
    whole, _ = run(net, content, x)
    monkeypatch.setattr(export_check, "TILE", 7)
    monkeypatch.setattr(export_check, "IMAGES", 4)
    assert torch.equal(run(net, content, x)[0], whole)


def test_a_network_of_zeros_returns_its_biases():
    net, content = shifted(nn.Sequential(nn.Linear(4, 3)), zeros=2)
    found, exact = run(net, content, torch.randn(5, 4))
    assert torch.equal(found, exact) and torch.equal(found, net[0].bias.expand(5, 3))


@pytest.mark.parametrize("deep, bias, x", [([-60], 0.0, 1.0), ([-47], 0.0, 7.0), ([0, -60, -60], 1.0, 0.0)])
def test_sums_beyond_64_bits_are_refused(deep, bias, x):
    """2^7 with 16 bits behind the point times 2^-47, or a bias of 1 in units of 2^-76."""
    layer = nn.Linear(3, 1)
    net, content = shifted(nn.Sequential(layer), bits=8)
    layer.weight.data = torch.tensor([[2.0**p for p in (0, -1, *deep)][:3]]).double()
    layer.weight.data[:, -len(deep) :] = torch.tensor([2.0**p for p in deep])
    content["layers"]["0"] |= pack_powers(layer.weight.data, 8, zero_code=True)
    content["layers"]["0"]["bias"] = torch.tensor([int(bias * 2**16)])
    with pytest.raises(UsageError, match=r"layer 0 needs sums of \d+ bits, and integers have 64"):
        run(net, content, torch.full((2, 3), x))


@pytest.mark.parametrize(
    "between, message",
    [
        (nn.BatchNorm1d(5), "layer 1 is a BatchNorm1d, which cannot run on integers alone"),
        (nn.Tanh(), "layer 1 is a Tanh"),
        (nn.AdaptiveAvgPool1d(5), "layer 1 is a AdaptiveAvgPool1d"),
    ],
    ids=lambda case: type(case).__name__,
)
def test_a_layer_without_an_integer_form_is_refused_by_name(between, message):
    net, content = shifted(nn.Sequential(nn.Linear(7, 5), between, nn.Linear(5, 3)))
    with pytest.raises(UsageError, match=message):
        integer_network(net, content)


def test_plain_and_grouped_layers_are_refused_by_name():
    net, content = shifted(nn.Sequential(nn.Linear(7, 5), nn.Linear(5, 3)))
    del content["layers"]["0"]
    with pytest.raises(UsageError, match="layer 0 has no shift weights; the check needs them in every layer"):
        integer_network(net, content)
    for extra in ({"groups": 2}, {"dilation": 2}):
        net, content = shifted(nn.Sequential(nn.Conv2d(2, 2, 2, **extra)))
        with pytest.raises(UsageError, match="layer 0 has groups or dilation"):
            integer_network(net, content)


def test_an_integer_layer_uses_only_additions_subtractions_and_shifts():
    """An array that records its operations goes through a layer's sums."""
    seen = set()

    class Recording(np.ndarray):
        def __array_ufunc__(self, ufunc, method, *inputs, out=None, **options):
            seen.add(ufunc.__name__)
            plain = [np.asarray(i) for i in inputs]
            out = tuple(np.asarray(o) for o in out) if out else None
            return np.asarray(getattr(ufunc, method)(*plain, **({"out": out} if out else {}), **options)).view(
                Recording
            )

    net, content = shifted(nn.Sequential(nn.Linear(40, 6)))
    _, layer = integer_network(net, content)
    layer.sums(np.arange(80).reshape(40, 2).view(Recording))
    assert seen == {"add", "subtract", "left_shift"}
