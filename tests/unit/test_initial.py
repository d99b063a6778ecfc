"""Initial weights follow the formulas of BIPROP and are reproducible."""

import math

import pytest
import torch
from torch import nn

import models
from models.initial import fans, initial_scores, initial_weight, initialise
from models.registry import INITS

SHAPE = torch.Size((128, 40, 3, 3))  # fan_in 360, fan_out 1152
FAN_IN, FAN_OUT = 360, 1152
NORMAL = ("kaiming_normal", "xavier_normal")
SIGNED = ("signed_constant", "xavier_constant", "binary")
INITIALISERS, SCALED = INITS, [name for name, init in INITS.items() if init.scale_fan]
RANDOM = [init for init in INITIALISERS if init not in ("unsigned_constant", "ones")]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def drawn(init, seed=0, shape=SHAPE, **options):
    return initial_weight(shape, init, generator=generator(seed), **options)


def scale_of(init, fan=FAN_IN, gain=2**0.5):
    """Return the standard deviation, bound or constant in the formula of `init`."""
    std = gain / math.sqrt(fan)
    xavier = math.sqrt(2 / (FAN_IN + FAN_OUT))
    return {
        "kaiming_normal": std,
        "kaiming_uniform": math.sqrt(3) * std,
        "signed_constant": std,
        "unsigned_constant": std,
        "usc_bernoulli": std,
        "bernoulli": 1,
        "ones": 1,
        "xavier_normal": xavier,
        "xavier_uniform": math.sqrt(3) * xavier,
        "xavier_constant": xavier,
        "standard": 1 / math.sqrt(FAN_IN),
        "binary": 1,
    }[init]


def assert_agrees(init, weight, scale):
    """Assert that `weight` has the distribution of `init`. With 46,080 draws, 2 % is a safe tolerance."""
    values = weight.unique()
    if init in NORMAL:
        assert weight.std().item() == pytest.approx(scale, rel=0.02)
        assert abs(weight.mean().item()) < 0.02 * scale
        share = (weight.abs() < scale).float().mean().item()
        assert share == pytest.approx(0.6827, abs=0.01)
    elif init in ("kaiming_uniform", "xavier_uniform", "standard"):
        assert 0.999 * scale < weight.abs().max().item() <= scale * (1 + 1e-6)
        assert weight.std().item() == pytest.approx(scale / math.sqrt(3), rel=0.02)
        assert abs(weight.mean().item()) < 0.02 * scale
    elif init in SIGNED:
        assert values.tolist() == pytest.approx([-scale, scale])
        assert (weight > 0).float().mean().item() == pytest.approx(0.5, abs=0.01)
    elif init in ("bernoulli", "usc_bernoulli"):
        assert values.tolist() == pytest.approx([0, scale])
        assert (weight > 0).float().mean().item() == pytest.approx(0.5, abs=0.01)
    else:
        assert values.tolist() == pytest.approx([scale])


@pytest.mark.parametrize("init", INITIALISERS)
def test_weights_follow_the_distribution_of_their_init(init):
    weight = drawn(init)
    assert weight.shape == SHAPE and weight.dtype == torch.float32
    assert_agrees(init, weight, scale_of(init))


@pytest.mark.parametrize("init", INITIALISERS)
def test_scale_fan_applies_to_the_same_inits_as_in_biprop(init):
    scaled = ("kaiming_normal", "signed_constant", "unsigned_constant", "usc_bernoulli")
    assert set(SCALED) == set(scaled)
    assert_agrees(init, drawn(init, fan_scale=0.2), scale_of(init, fan=FAN_IN * (0.2 if init in scaled else 1)))


@pytest.mark.parametrize("init", INITIALISERS)
def test_mode_and_gain_apply_only_to_the_kaiming_family(init):
    kaiming = init in (*SCALED, "kaiming_uniform")
    assert_agrees(init, drawn(init, mode="fan_out"), scale_of(init, fan=FAN_OUT if kaiming else FAN_IN))
    assert_agrees(init, drawn(init, nonlinearity="tanh"), scale_of(init, gain=5 / 3 if kaiming else math.sqrt(2)))


@pytest.mark.parametrize("fan_scale", [0, -0.5])
def test_a_fan_scale_of_zero_or_less_is_refused_where_it_applies(fan_scale):
    for init in INITIALISERS:
        if init in SCALED:
            with pytest.raises(ValueError, match=r"scale_fan: .* prune_rate must be below 1"):
                drawn(init, fan_scale=fan_scale)
        else:
            assert torch.equal(drawn(init, fan_scale=fan_scale), drawn(init))


def test_an_unknown_init_is_refused_with_the_nearest_name():
    with pytest.raises(ValueError, match=r"init: 'kaiming_norml' is unknown .*'kaiming_normal'"):
        drawn("kaiming_norml")


@pytest.mark.parametrize("init", RANDOM)
def test_equal_generators_give_equal_weights(init):
    torch.manual_seed(1)
    first = drawn(init)
    torch.manual_seed(2)
    assert torch.equal(drawn(init), first)
    assert not torch.equal(drawn(init, seed=1), first)
    torch.manual_seed(2)
    assert torch.equal(initial_weight(SHAPE, init), initial_weight(SHAPE, init, generator=generator(2)))


def test_fans_count_the_kernel_positions():
    assert fans(SHAPE) == (FAN_IN, FAN_OUT)
    assert fans(torch.Size((3, 5))) == (5, 3)


def test_scores_are_uniform_within_one_over_root_fan_in():
    scores = initial_scores(SHAPE, generator=generator())
    assert_agrees("standard", scores, 1 / math.sqrt(FAN_IN))
    bound = 1 / math.sqrt(FAN_IN)
    assert torch.equal(scores, torch.empty(SHAPE).uniform_(-bound, bound, generator=generator()))


# a whole network


def network(**options):
    options = {"arch": "Conv2_BinAct", "bn_type": "AffineBatchNorm"} | options
    return models.build(options.pop("arch"), num_classes=3, in_shape=(2, 4, 4), width_mult=0.25, **options)


def test_every_weight_is_drawn_in_module_order():
    model = network()
    initialise(model, "kaiming_normal", fan_scale=0.5, mode="fan_out", generator=generator(4))
    expected = generator(4)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            shape = module.weight.shape
            weight = initial_weight(shape, "kaiming_normal", fan_scale=0.5, mode="fan_out", generator=expected)
            assert torch.equal(module.weight, weight)
            assert module.weight.requires_grad


def test_biases_are_uniform_within_one_over_root_fan_in():
    model = models.build("MLP", num_classes=500, in_shape=(1, 3, 3), hidden=(1000,), bias=True)
    for layer in (model.linear[0], model.linear[2]):
        layer.bias.data.fill_(9)
    initialise(model, "ones", generator=generator())
    for layer, fan_in in ((model.linear[0], 9), (model.linear[2], 1000)):
        bound = 1 / math.sqrt(fan_in)
        assert 0.98 * bound < layer.bias.abs().max() <= bound and layer.bias.min() < -0.9 * bound
        assert (layer.weight == 1).all()


def test_batch_norms_start_with_bn_weight_and_bn_bias_or_as_in_torch():
    def norms(**options):
        model = network()
        initialise(model, "ones", **options)
        return [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]

    for norm in norms():
        assert (norm.weight == 1).all() and (norm.bias == 0).all()
    for norm in norms(bn_weight=0.5, bn_bias=-2.0):
        assert (norm.weight == 0.5).all() and (norm.bias == -2).all()
    for norm in norms(bn_weight=0.0):
        assert (norm.weight == 0).all() and (norm.bias == 0).all()


def test_a_batch_norm_without_weight_and_bias_is_left_unchanged():
    model = network(bn_type="NonAffineBatchNorm")
    initialise(model, "ones", bn_weight=0.5, bn_bias=1.0)
    assert all((p == 1).all() for p in model.parameters())
