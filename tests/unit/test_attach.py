"""Building, constraining and baking networks, BIPROP's keys, and the error messages of each."""

import pytest
import torch
from torch import nn

import models
from models.constraints import (
    attach,
    bake,
    biprop_state_dict,
    constrain,
    constrained_layers,
    layer_counts,
    load_biprop_state_dict,
    parameter_counts,
    weight_layers,
)
from models.constraints.subnet import SubnetWeight, kept_count
from trainers.optimizers import freeze_weights


def build(arch="Conv2", in_shape=(1, 4, 4), width_mult=0.125, **options):
    return models.build(arch, num_classes=3, in_shape=in_shape, width_mult=width_mult, **options)


def subnet(arch="Conv2", density=0.5, dense=(), first_layer_type=None, **options):
    return constrain(
        build(arch, **options), "SubnetConv", density=density, dense=dense, first_layer_type=first_layer_type
    )


LAYERS = ["convs.0", "convs.2", "linear.0", "linear.2", "linear.4"]


# building


@pytest.mark.parametrize(
    "arch, pools",
    [("Conv2", 1), ("Conv4", 2), ("Conv6_BinAct", 3), ("Conv8", 4), ("VGG_Small", 3), ("Wide_VGG_Small", 3)],
)
def test_an_image_too_small_for_the_pools_is_refused(arch, pools):
    side = 2**pools
    assert build(arch, (1, side, side))(torch.zeros(2, 1, side, side)).shape == (2, 3)
    for shape in ((1, side - 1, 32), (1, 32, side - 1)):
        message = rf"arch {arch}: .*{shape[1]}x{shape[2]}.* too small for {pools} 2x2 pools: at least {side}x{side}"
        with pytest.raises(ValueError, match=message):
            build(arch, shape)


def test_odd_images_lose_their_last_row_and_column_in_the_pools():
    assert build("Conv4", (1, 7, 9))(torch.zeros(2, 1, 7, 9)).shape == (2, 3)


def test_a_width_that_leaves_no_channel_is_refused():
    with pytest.raises(ValueError, match=r"arch Conv2: width_mult: 0.01 leaves no channel of 64; at least 0.015625"):
        build(width_mult=0.01)
    assert build(width_mult=1 / 64).convs[0].out_channels == 1


def test_fractional_widths_are_truncated():
    assert [layer.weight.shape[0] for layer in weight_layers(build(width_mult=0.1249)).values()] == [7, 7, 31, 31, 3]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"arch": "Conv3"}, r"arch: 'Conv3' is unknown .*'Conv\d'"),
        ({"bn_type": "Batchnorm", "arch": "Conv2_BinAct"}, "bn_type: 'Batchnorm' is unknown"),
        ({"arch": "MLP", "activation": "rleu"}, "activation: 'rleu' is unknown .*'relu'"),
        ({"arch": "MLP", "activation": "rleu", "hidden": ()}, "activation: 'rleu' is unknown .*'relu'"),
        ({"arch": "MLP", "norm": "layer"}, "norm: 'layer' is unknown; one of none, batch_norm"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest_or_all_names(arguments, message):
    with pytest.raises(ValueError, match=message):
        build(**arguments)


def test_the_options_of_an_mlp_define_its_layers():
    model = build("MLP", width_mult=1.0, hidden=(8, 4), bias=True, activation="sign", norm="batch_norm")
    kinds = ["Linear", "BatchNorm1d", "Sign", "Linear", "BatchNorm1d", "Sign", "Linear"]
    assert [type(m).__name__ for m in model.linear] == kinds
    assert [m.weight.shape for m in model.linear if isinstance(m, nn.Linear)] == [(8, 16), (4, 8), (3, 4)]
    assert all((m.bias is not None) for m in model.linear if isinstance(m, nn.Linear))
    assert all(m.bias is None for m in build("FC").linear if isinstance(m, nn.Linear))


# constraining


def test_every_layer_is_constrained_and_keeps_its_weight():
    plain = build()
    weights = {name: layer.weight for name, layer in weight_layers(plain).items()}
    assert constrain(plain, "SubnetConv", density=0.5) is plain
    assert list(constrained_layers(plain)) == LAYERS
    for name, layer in constrained_layers(plain).items():
        assert layer.weight is weights[name] and not layer.weight.requires_grad
        assert isinstance(layer, nn.Conv2d if "convs" in name else nn.Linear)


def test_layers_named_dense_get_no_constraint():
    model = subnet(dense=("convs.0", "linear.4"))
    assert list(constrained_layers(model)) == LAYERS[1:-1]
    assert type(model.convs[0]) is nn.Conv2d and type(model.linear[4]) is nn.Linear
    assert model.convs[0].weight.requires_grad


@pytest.mark.parametrize(
    "conv_type, first, expected", [("SubnetConv", "DenseConv", LAYERS[1:]), ("DenseConv", "SubnetConv", LAYERS[:1])]
)
def test_first_layer_type_sets_the_constraint_of_the_first_layer(conv_type, first, expected):
    assert list(constrained_layers(constrain(build(), conv_type, density=0.5, first_layer_type=first))) == expected


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"dense": ("fc",)}, r"dense: no layer is called 'fc'; there are convs.0, convs.2"),
        ({"dense": ("convs.1",)}, "dense: no layer is called 'convs.1'"),
        ({"dense": tuple(LAYERS)}, "conv_type: SubnetConv would constrain no layer"),
        ({"density": 0}, "prune_rate: 0 given; it must be above 0 and at most 1"),
        ({"density": 1.5}, "prune_rate: 1.5 given; it must be above 0 and at most 1"),
        ({"first_layer_type": "Subnet"}, "'Subnet' is unknown .*'SubnetConv'"),
    ],
)
def test_constrain_refuses_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        subnet(**arguments)
    with pytest.raises(ValueError, match=r"conv_type: 'SubnetCon' is unknown .*'SubnetConv'"):
        constrain(build(), "SubnetCon")


@pytest.mark.parametrize("name", ["nothing", "convs", "convs.1", "", "linear.0.weight"])
def test_attaching_to_a_name_without_a_plain_layer_is_an_error(name):
    with pytest.raises(
        ValueError, match=f"no plain Conv2d or Linear is called '{name}' in this network; there are convs.0"
    ):
        attach(build(), lambda weight: SubnetWeight(weight, density=0.5), [name])


def test_attaching_twice_is_an_error():
    with pytest.raises(ValueError, match=r"no plain Conv2d or Linear is called 'convs.0'"):
        constrain(subnet(), "SubnetConv", density=0.5)


def test_attaching_keeps_the_mode_of_a_layer():
    assert not constrain(build().eval(), "SubnetConv", density=0.5).convs[0].constraint.training
    assert subnet().convs[0].constraint.training


def test_scores_have_the_dtype_of_the_weight_and_come_from_the_generator():
    def scores(seed):
        made = constrain(build().double(), "SubnetConv", density=0.5, generator=torch.Generator().manual_seed(seed))
        return made.linear[0].constraint.scores

    assert scores(1).dtype == torch.float64
    assert torch.equal(scores(1), scores(1)) and not torch.equal(scores(1), scores(2))


def test_layer_counts_and_parameter_counts_add_up():
    model = subnet("Conv2_BinAct", density=0.3, dense=("linear.6",), bn_type="AffineBatchNorm")
    counts = layer_counts(model)
    assert [(c.name, c.constraint) for c in counts[-2:]] == [("linear.3", "SubnetWeight"), ("linear.6", "dense")]
    assert counts[0].shape == (8, 1, 3, 3) and counts[0].kept == kept_count(72, 0.3) and counts[0].total == 72
    assert counts[-1].kept == counts[-1].total
    total, kept = parameter_counts(model)
    assert total == sum(p.numel() for p in build("Conv2_BinAct").parameters())
    assert total - kept == sum(c.total - c.kept for c in counts) > 0
    assert sum(p.count_nonzero() for p in bake(model).parameters()) <= kept


# baking


def test_a_baked_network_shares_no_tensor_with_its_source():
    model = subnet("Conv2_BinAct", dense=("linear.6",))
    x = torch.randn(4, 1, 4, 4)
    before = model.eval()(x)
    plain = bake(model)
    theirs = {t.data_ptr() for t in (*model.parameters(), *model.buffers())}
    assert not theirs & {t.data_ptr() for t in (*plain.parameters(), *plain.buffers())}
    with torch.no_grad():
        for tensor in (*plain.parameters(), *plain.buffers()):
            tensor.fill_(7)
    assert torch.equal(model(x), before)
    assert list(constrained_layers(model)) == ["convs.0", "convs.3", "linear.0", "linear.3"]


@pytest.mark.parametrize("training", [True, False])
def test_bake_gives_a_trainable_network_in_the_same_mode(training):
    model = subnet("Conv2_BinAct", dense=("linear.6",)).train(training)
    freeze_weights(model)
    plain = bake(model)
    assert all(m.training == training for m in (*plain.modules(), *model.modules()))
    assert all(p.requires_grad for p in plain.parameters())
    assert [type(m).__name__ for m in plain.modules()] == [type(m).__name__ for m in build("Conv2_BinAct").modules()]
    assert list(plain.state_dict()) == list(build("Conv2_BinAct").state_dict())


def test_bake_keeps_biases_and_copies_a_plain_network():
    model = subnet("MLP", hidden=(5,), bias=True)
    assert torch.equal(bake(model).linear[0].bias, model.linear[0].bias)
    plain = build()
    assert all(torch.equal(a, b) for a, b in zip(bake(plain).parameters(), plain.parameters(), strict=True))


# BIPROP's keys


def changed(edit):
    state = dict(biprop_state_dict(subnet("Conv2_BinAct", bn_type="AffineBatchNorm")))
    edit(state)
    return state


def test_biprop_state_dict_has_the_keys_and_shapes_of_biprop():
    state = biprop_state_dict(subnet())
    assert list(state) == [f"{layer}.{kind}" for layer in LAYERS for kind in ("weight", "scores")]
    assert state["linear.0.weight"].shape == state["linear.0.scores"].shape == (32, 32, 1, 1)
    assert state["convs.0.scores"].shape == (8, 1, 3, 3)
    assert biprop_state_dict(build("MLP", hidden=(5,), bias=True))["linear.0.bias"].dim() == 1


@pytest.mark.parametrize("prefix", ["", "module."])
def test_loading_accepts_keys_with_and_without_the_data_parallel_prefix(prefix):
    source, target = subnet("Conv2_BinAct"), subnet("Conv2_BinAct")
    source(torch.randn(4, 1, 4, 4))
    load_biprop_state_dict(target, {prefix + key: value for key, value in biprop_state_dict(source).items()})
    for key, value in source.state_dict().items():
        assert torch.equal(value, target.state_dict()[key]), key
    x = torch.randn(2, 1, 4, 4)
    assert torch.equal(source.eval()(x), target.eval()(x))


def test_loading_accepts_linear_weights_of_two_axes():
    model, source = subnet(), subnet().state_dict()
    for value in source.values():
        value.add_(1)
    load_biprop_state_dict(model, {k.replace(".constraint.", "."): v for k, v in source.items()})
    assert all(torch.equal(value, source[key]) for key, value in model.state_dict().items())


FAULTS = {
    "missing": (lambda s: s.pop("convs.0.scores"), "convs.0.scores is missing"),
    "unexpected": (lambda s: s.update(fc=torch.zeros(1)), "fc is unexpected"),
    "shape": (
        lambda s: s.update({"linear.6.weight": torch.zeros(3, 31, 1, 1)}),
        r"linear.6.weight has shape \[3, 31, 1, 1\], not \[3, 32, 1, 1\]",
    ),
    "transposed": (
        lambda s: s.update({"linear.6.weight": torch.zeros(32, 3, 1, 1)}),
        r"linear.6.weight has shape \[32, 3, 1, 1\]",
    ),
    "same count": (
        lambda s: s.update({"convs.3.weight": torch.zeros(64, 9)}),
        r"convs.3.weight has shape \[64, 9, 1, 1\], not \[8, 8, 3, 3\]",
    ),
    "two at once": (
        lambda s: (s.pop("convs.1.bias"), s.pop("convs.1.weight")),
        "weight is missing; convs.1.bias is missing",
    ),
    "all": (dict.clear, r"missing; .*missing; .*missing; .*missing; .*missing \.\.\."),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_loading_refuses_a_state_that_does_not_fit_and_changes_nothing(fault):
    edit, message = FAULTS[fault]
    model = subnet("Conv2_BinAct", bn_type="AffineBatchNorm")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=f"the state does not fit this network: .*{message}"):
        load_biprop_state_dict(model, changed(edit))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_loading_refuses_a_dense_state_for_a_subnet_and_the_reverse():
    with pytest.raises(ValueError, match=r"convs.0.scores is missing"):
        load_biprop_state_dict(subnet(), biprop_state_dict(build()))
    with pytest.raises(ValueError, match=r"convs.0.scores is unexpected"):
        load_biprop_state_dict(build(), biprop_state_dict(subnet()))
