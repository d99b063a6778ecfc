"""Shift weights on layers and networks: outputs, baking, options, and the method."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import args
import models
from models.constraints import bake, constrain, constrained_layers, layer_counts, parameter_counts, weight_layers
from models.constraints.shift import FixedPoint, power_of_two
from tests.originals import original_state, write
from trainers import load_trained
from trainers.build import build
from trainers.checkpoint_sources import read_network
from trainers.methods.shift import Shift, exponent_counts
from trainers.registry import TRAINERS
from utils.errors import UsageError

KINDS = pytest.mark.parametrize("kind", ["ShiftQ", "ShiftPS"])
SHIFT = {"arch": "MNISTNet", "set": "MNIST", "freeze_weights": None, "prune_rate": None, "conv_type": "ShiftPS"}


def network(kind, seed=0, **options):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 5 * 5, 4))
    return constrain(net, kind, generator=torch.Generator().manual_seed(seed), **options)


def batch(count=4, seed=9):
    return 3 * torch.randn(count, 2, 5, 5, generator=torch.Generator().manual_seed(seed))


# layers


@KINDS
@pytest.mark.parametrize("training", [True, False])
def test_a_layer_uses_the_effective_weight_and_fixed_point_inputs_and_biases(kind, training):
    net = network(kind, activation_bits=(3, 2)).train(training)
    found, fixed = net(batch()), FixedPoint(3, 2).quantise
    conv, linear = constrained_layers(net).values()
    hidden = F.conv2d(fixed(batch()), conv.constraint(conv.weight), fixed(conv.bias), padding=1)
    hidden = torch.relu(hidden).flatten(1)
    assert torch.equal(found, F.linear(fixed(hidden), linear.constraint(linear.weight), fixed(linear.bias)))
    assert not torch.equal(fixed(batch()), batch()) and not torch.equal(fixed(hidden), hidden)


def published_output(net, x):
    """Return the layers' output as the paper's code computes it (modules.py and modules_q.py)."""

    def fixed(x):
        return torch.clamp(torch.floor(x / 2**-16) * 2**-16, -(2.0**15), 2.0**15 - 1)

    conv, linear = constrained_layers(net).values()
    kind = type(conv.constraint).__name__
    weights = [layer.constraint(layer.weight) for layer in (conv, linear)]
    x = torch.relu(F.conv2d(fixed(x), weights[0], fixed(conv.bias), padding=1)).flatten(1)
    return (fixed(x) if kind == "ShiftQWeight" else x) @ weights[1].t() + linear.bias


@KINDS
@pytest.mark.parametrize("training", [True, False])
def test_layer_outputs_equal_those_of_the_published_code(kind, training):
    net = network(kind).double().train(training)
    found = net(batch().double())
    torch.testing.assert_close(found, published_output(net, batch().double()), rtol=0, atol=1e-12)
    everywhere = network(kind, activation_bits=(16, 16)).double().train(training)
    assert (everywhere(batch().double()) - found).abs().max() > 1e-7


@KINDS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_few_weight_bits_do_not_clip_inputs_above_one(kind, dtype):
    net = network(kind, activation_bits=(16, 16)).to(dtype).eval()
    x = batch().to(dtype)
    free = network(kind, activation_bits=(16, 16)).to(dtype).eval()
    for layer in free.modules():
        layer._forward_pre_hooks.clear()
    assert x.abs().max() > 1
    torch.testing.assert_close(net(x), free(x), rtol=0, atol=0.05)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert net.float()(x.float()).abs().max() < 100


@KINDS
def test_the_gradient_passes_through_the_fixed_point_of_the_inputs(kind):
    net, x = network(kind, activation_bits=(2, 1)), batch().requires_grad_()
    net(x).sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0
    assert all(p.grad is not None for p in net.parameters())


@KINDS
@pytest.mark.parametrize("options", [{}, {"activation_bits": (3, 1)}, {"weight_bits": 3, "rounding": "stochastic"}])
def test_baking_and_copying_keep_the_fixed_point_of_inputs(kind, options):
    net = network(kind, **options).eval()
    expected = net(batch())
    plain = bake(net)
    assert type(plain[0]) is nn.Conv2d and torch.equal(plain(batch()), expected)
    assert torch.equal(copy.deepcopy(net)(batch()), expected)
    assert torch.equal(copy.deepcopy(plain)(batch()), expected)
    assert list(plain.state_dict()) == ["0.weight", "0.bias", "3.weight", "3.bias"]
    free = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 5 * 5, 4))
    free.load_state_dict(plain.state_dict())
    assert not torch.equal(free(batch()), expected)


def test_baking_crude_weights_and_biases_gives_powers_of_two():
    net = network("ShiftQ", shift_update="crude")
    before = {name: value.clone() for name, value in net.state_dict().items()}
    plain = bake(net)
    for name, value in plain.state_dict().items():
        assert torch.equal(value, power_of_two(before[name], -15)), name
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())  # bake overwrites a copy


def test_the_shift_and_sign_of_shift_ps_replace_the_weight():
    net = network("ShiftPS")
    names = ["0.bias", "0.constraint.shift", "0.constraint.sign", "3.bias", "3.constraint.shift", "3.constraint.sign"]
    assert [name for name, _ in net.named_parameters()] == names
    assert all(layer.weight is None for layer in weight_layers(net).values())
    dense = nn.Sequential(nn.Conv2d(2, 6, 3), nn.Linear(150, 4))
    total, kept = parameter_counts(net)
    assert total == sum(p.numel() for p in dense.parameters())
    zeros = sum(int((layer.constraint(None) == 0).sum()) for layer in constrained_layers(net).values())
    assert zeros > 100 and kept == total - zeros


# options


@KINDS
@pytest.mark.parametrize("depth, constrained", [(None, 4), (1, 1), (3, 3), (9, 4)])
def test_shift_depth_counts_from_the_output(config, kind, depth, constrained):
    path = config(**SHIFT | {"conv_type": kind, "shift_depth": depth})
    model, method = build(args.parse(["--config", path]))
    kinds = [count.constraint != "dense" for count in layer_counts(model)]
    assert kinds == [False] * (4 - constrained) + [True] * constrained
    assert isinstance(method, Shift)


def test_options_reach_the_constraints(config):
    words = {"weight_bits": 3, "rounding": "stochastic", "activation_bits": [8, 4], "freeze_sign": True}
    path = config(**SHIFT | words | {"shift_init": "weights", "init": "standard"})
    model, _ = build(args.parse(["--config", path]))
    dense, _ = build(args.parse(["--config", path, "--conv-type", "DenseConv"]))
    for name, layer in constrained_layers(model).items():
        made = layer.constraint
        assert (made.weight_bits, made.stochastic, made.fixed_point) == (3, True, FixedPoint(8, 4))
        assert not made.sign.requires_grad and made.shift.requires_grad
        weight = dense.get_submodule(name).weight
        assert torch.equal(made.eval()(None), power_of_two(weight, -2))
    crude, _ = build(args.parse(["--config", config(**SHIFT | {"conv_type": "ShiftQ", "shift_update": "crude"})]))
    assert all(layer.constraint.crude for layer in constrained_layers(crude).values())


@KINDS
def test_a_shift_type_that_reaches_no_layer_is_refused(program, config, kind):
    words = {"arch": "MLP", "conv_type": kind, "freeze_weights": None, "prune_rate": None, "hidden": [5]}
    path = config(**words, first_layer_dense=True, last_layer_dense=True)
    told = f"error: conv_type: {kind} would constrain no layer: every layer is left dense\n"
    assert program("--config", path) == (2, "", told)
    assert program("--config", path, "--no-first-layer-dense", "--shift-depth", 1) == (2, "", told)


@KINDS
def test_one_weight_bit_is_refused_in_one_line(program, config, kind):
    path = config(conv_type=kind, freeze_weights=None, prune_rate=None)
    code, out, err = program("--config", path, "--weight-bits", 1)
    told = "error: weight_bits: '1' on the command line, but it must be an int >= 2 and <= 8\n"
    assert (code, out, err) == (2, "", told)


# the method


def test_the_method_refuses_a_network_without_shifts():
    with pytest.raises(ValueError, match=r"no layer has shifts; use conv_type ShiftQ or ShiftPS"):
        Shift().prepare(network("DenseConv"))


@KINDS
def test_the_table_has_the_fraction_of_every_exponent(kind):
    net = network(kind).eval()
    weights = torch.cat([layer.weight.flatten() for layer in weight_layers(bake(net)).values()]).detach()
    counts = exponent_counts(net)
    assert list(counts) == list(range(-15 if kind == "ShiftQ" else -14, 1))
    assert all(count == int((weights.abs() == 2.0**p).sum()) for p, count in counts.items())
    tables = Shift().tables(net, None, None, 1, 1)
    assert {*tables} == {*TRAINERS["shift"].tables}
    table = tables["shifts"]
    assert [row["exponent"] for row in table.rows] == list(counts) and (table.x, table.y) == ("exponent", "share")
    zero = float((weights == 0).double().mean())
    assert sum(row["share"] for row in table.rows) == pytest.approx(1 - zero)


def test_the_table_includes_exponents_outside_the_range_for_the_crude_update():
    net = network("ShiftQ", shift_update="crude")
    with torch.no_grad():
        net[0].weight.view(-1)[:3] = torch.tensor([3.0, -(2.0**-20), float("nan")])
    counts = exponent_counts(net.eval())
    assert list(counts) == list(range(-20, 3)) and counts[2] == counts[-20] == 1
    assert sum(counts.values()) == sum(layer.weight.numel() for layer in weight_layers(net).values()) - 1


@pytest.mark.parametrize(("epochs", "written"), [(1, [1]), (5, [1, 2, 3, 4, 5]), (25, [*range(2, 25, 2), 25])])
def test_a_long_run_writes_the_table_for_some_epochs_and_the_last(epochs, written):
    net = network("ShiftQ").eval()
    assert [e for e in range(1, epochs + 1) if Shift().tables(net, None, None, e, epochs)] == written


# from a trained dense network


def small(kind, seed=0):
    torch.manual_seed(seed)
    model = models.build("Conv2", num_classes=3, in_shape=(1, 4, 4), width_mult=0.125)
    return constrain(model, kind, generator=torch.Generator().manual_seed(seed))


FORMS = {  # name -> content of a checkpoint
    "bare": lambda model: model.state_dict(),
    "ours": lambda model: {"model": model.state_dict(), "options": {"arch": "Conv2", "conv_type": "DenseConv"}},
    "biprop": lambda model: {"state_dict": original_state(model), "arch": "Conv2", "conv_type": "DenseConv"},
}


@KINDS
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("whole", [True, False])
def test_a_dense_checkpoint_loads_into_a_shift_network(config, tmp_path, capsys, kind, form, whole):
    dense, model = small("DenseConv", seed=1), small(kind)
    options = args.parse(["--config", config(arch="Conv2", conv_type=kind, freeze_weights=None, prune_rate=None)])
    stored = read_network(str(write(FORMS[form](dense), tmp_path / "dense.pt")))
    load_trained.check_declared(stored, options)
    count = 10 if kind == "ShiftPS" else 5
    report = load_trained.load_weights(stored, model, whole=whole)
    assert report == f"{count} of {count} tensors match" and not capsys.readouterr().out
    lowest = -15 if kind == "ShiftQ" else -14
    for name, layer in constrained_layers(model.eval()).items():
        weight = dense.get_submodule(name).weight.detach()
        assert torch.equal(layer.constraint(layer.weight), power_of_two(weight, lowest)), name


def test_error_names_a_dense_layer_of_another_shape(config, tmp_path):
    dense = small("DenseConv").state_dict() | {"linear.4.weight": torch.ones(9, 32)}
    stored = read_network(str(write(dense, tmp_path / "dense.pt")))
    with pytest.raises(UsageError, match=r"of another shape: linear\.4\.shift has shape \[9, 32, 1, 1\], not \[3, 32"):
        load_trained.load_weights(stored, small("ShiftPS"), whole=True)


def test_a_shift_checkpoint_is_refused_for_a_dense_network(config, tmp_path):
    options = args.parse(["--config", config(arch="Conv2", conv_type="DenseConv", freeze_weights=None)])
    content = {"model": small("ShiftQ").state_dict(), "options": {"arch": "Conv2", "conv_type": "ShiftQ"}}
    with pytest.raises(UsageError, match=r"conv_type: 'ShiftQ' in .*, 'DenseConv' here"):
        load_trained.check_declared(read_network(str(write(content, tmp_path / "q.pt"))), options)
