"""Parameter groups by module type, BIPROP's freezing rules (reference 3.7) and its weight decay (4.2)."""

import pytest
import torch
from torch import nn

import models
from models.constraints import constrain, constrained_layers
from trainers.optimizers import freeze_weights, make_optimizer, parameter_groups, set_learning_rate
from trainers.registry import OPTIMIZERS


def network(arch="Conv2_BinAct", bn_type="AffineBatchNorm", conv_type="SubnetConv", dense=()):
    model = models.build(arch, num_classes=3, in_shape=(1, 4, 4), bn_type=bn_type, width_mult=0.125)
    return constrain(model, conv_type, density=0.5, dense=dense)


def names(model, parameters):
    own = {id(p): name for name, p in model.named_parameters()}
    return {own[id(p)] for p in parameters}


def norms_of(model):
    return {name for name, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}


def trainable(model):
    """Return the kinds of trainable parameters: scores, weight or bias (of a layer), bn weight, bn bias."""
    norms = norms_of(model)
    kinds = set()
    for name, parameter in model.named_parameters():
        module, _, kind = name.rpartition(".")
        kinds |= {f"bn {kind}" if module in norms else kind} if parameter.requires_grad else set()
    return kinds


# groups


def test_batch_norm_parameters_are_grouped_by_type_and_not_by_name():
    model = network()
    assert not any("bn" in name for name, _ in model.named_parameters())
    norms, rest = parameter_groups(model, weight_decay=0.01)
    assert names(model, norms["params"]) == {
        f"{norm}.{kind}" for norm in norms_of(model) for kind in ("weight", "bias")
    }
    assert names(model, rest["params"]) == {f"{name}.constraint.scores" for name in constrained_layers(model)}


@pytest.mark.parametrize("no_bn_decay", [False, True])
def test_no_bn_decay_exempts_only_batch_norms_from_weight_decay(no_bn_decay):
    norms, rest = parameter_groups(network(), weight_decay=0.01, no_bn_decay=no_bn_decay)
    assert (norms["weight_decay"], rest["weight_decay"]) == (0.0 if no_bn_decay else 0.01, 0.01)


def test_groups_hold_each_trainable_parameter_once_and_empty_groups_are_omitted():
    (rest,) = parameter_groups(network(bn_type="NonAffineBatchNorm"), weight_decay=0)
    assert len(rest["params"]) == 5
    dense = network(conv_type="DenseConv")
    groups = parameter_groups(dense, weight_decay=0)
    assert sorted(id(p) for g in groups for p in g["params"]) == sorted(id(p) for p in dense.parameters())


def test_a_network_without_trainable_parameters_is_an_error():
    model = network(bn_type="NonAffineBatchNorm")
    freeze_weights(model, learn_batchnorm=True, tune_batchnorm=True)
    with pytest.raises(ValueError, match="nothing would be trained: freeze_weights"):
        parameter_groups(model, weight_decay=0)


# freezing

# (learn_batchnorm, bn_bias_only, tune_batchnorm, trainable kinds as measured); batch norm has weight and bias
FREEZING = [
    (False, False, False, {"scores"}),
    (False, False, True, {"scores"}),
    (False, True, False, {"scores", "bn bias"}),
    (False, True, True, {"bn bias"}),
    (True, False, False, {"scores", "bn weight", "bn bias"}),
    (True, True, False, {"scores", "bn weight", "bn bias"}),
    (True, False, True, {"bn weight", "bn bias"}),
    (True, True, True, {"bn weight", "bn bias"}),
]


@pytest.mark.parametrize("learn, bias_only, tune, expected", FREEZING)
@pytest.mark.parametrize("arch, bn_type", [("Conv2_BinAct", True), ("Conv2_BinAct", False), ("Conv2", True)])
def test_freeze_weights_keeps_scores_and_the_requested_batch_norm_parameters_trainable(
    learn, bias_only, tune, expected, arch, bn_type
):
    model = network(arch, "AffineBatchNorm" if bn_type else "NonAffineBatchNorm")
    freeze_weights(model, learn_batchnorm=learn, bn_bias_only=bias_only, tune_batchnorm=tune)
    affine = arch == "Conv2_BinAct" and bn_type
    assert trainable(model) == (expected if affine else expected & {"scores"})


@pytest.mark.parametrize("learn, bias_only, tune, expected", FREEZING)
def test_freeze_weights_freezes_a_dense_head(learn, bias_only, tune, expected):
    model = models.build("MLP", num_classes=3, in_shape=(1, 4, 4), hidden=(5,), bias=True, norm="batch_norm")
    constrain(model, "SubnetConv", density=0.5, dense=("linear.3",))
    freeze_weights(model, learn_batchnorm=learn, bn_bias_only=bias_only, tune_batchnorm=tune)
    assert trainable(model) == expected


def test_freeze_weights_keeps_only_the_batch_norms_of_a_dense_network_trainable():
    model = network(conv_type="DenseConv")
    freeze_weights(model)
    assert trainable(model) == set()
    freeze_weights(model, learn_batchnorm=True)
    assert trainable(model) == {"bn weight", "bn bias"}


def test_a_second_call_of_freeze_weights_overrides_the_first():
    model = network()
    freeze_weights(model, learn_batchnorm=True, tune_batchnorm=True)
    freeze_weights(model)
    assert trainable(model) == {"scores"}


def test_without_freeze_weights_only_weights_with_scores_are_frozen():
    assert trainable(network()) == {"scores", "bn weight", "bn bias"}
    assert trainable(network(dense=("linear.0",))) == {"scores", "bn weight", "bn bias", "weight"}


# steps


def after_one_step(name, weight_decay, grad=0.0, **options):
    """Return the scores before and after a step with learning rate 0.1 and a constant gradient."""
    torch.manual_seed(0)
    model = network(bn_type="NonAffineBatchNorm")
    optimizer = make_optimizer(name, parameter_groups(model, weight_decay=weight_decay), lr=0.1, **options)
    before = [p.detach().clone() for p in model.parameters() if p.requires_grad]
    for p in model.parameters():
        p.grad = torch.full_like(p, grad) if p.requires_grad else None
    optimizer.step()
    return before, [p.detach() for p in model.parameters() if p.requires_grad]


@pytest.mark.parametrize("name, shrink", [("sgd", 0.98), ("adamw", 0.98), ("adam", 1), ("radam", 1), ("adadelta", 1)])
def test_weight_decay_shrinks_scores_only_under_sgd_and_adamw(name, shrink):
    for old, new in zip(*after_one_step(name, 0.2), strict=True):
        torch.testing.assert_close(new, old * shrink)
    assert {"sgd", "adamw", "adam", "radam", "adadelta"} == OPTIMIZERS.keys()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_follows_the_negative_gradient_at_the_learning_rate(name):
    sizes = {"sgd": 0.1 * 0.5, "adam": 0.1, "adamw": 0.1, "radam": 0.1 * 0.5, "adadelta": None}
    for old, new in zip(*after_one_step(name, 0.0, grad=0.5), strict=True):
        assert (new < old).all()
        if sizes[name]:
            torch.testing.assert_close(old - new, torch.full_like(old, sizes[name]), rtol=1e-4, atol=1e-6)


def test_sgd_applies_momentum_and_nesterov():
    for nesterov, factor in ((False, 1.0), (True, 1.8)):
        old, new = after_one_step("sgd", 0.0, grad=0.5, momentum=0.8, nesterov=nesterov)
        torch.testing.assert_close(old[0] - new[0], torch.full_like(old[0], 0.05 * factor), rtol=1e-4, atol=1e-6)


def test_set_learning_rate_sets_every_group():
    optimizer = make_optimizer("adam", parameter_groups(network(), weight_decay=0), lr=0.1)
    set_learning_rate(optimizer, 0.025)
    assert [group["lr"] for group in optimizer.param_groups] == [0.025, 0.025]


def test_adam_has_the_constants_of_biprop():
    (group, _) = make_optimizer("adam", parameter_groups(network(), weight_decay=0.5), lr=0.1).param_groups
    assert (group["betas"], group["eps"], group["weight_decay"]) == ((0.9, 0.999), 1e-8, 0)


def test_an_unknown_optimizer_is_refused_with_the_nearest_name():
    with pytest.raises(ValueError, match=r"optimizer: 'sdg' is unknown .*'sgd'"):
        make_optimizer("sdg", [], lr=0.1)


PLAIN = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1),
    "radam": lambda p: torch.optim.RAdam(p, lr=0.1),
    "adadelta": lambda p: torch.optim.Adadelta(p, lr=0.1),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_optimizer_equals_that_of_torch_before_and_after_loading_its_state(name):
    decay = {"sgd": 0.0}.get(name, 0.1)
    ours, theirs = (nn.Parameter(torch.linspace(-1, 1, 6).reshape(2, 3)) for _ in range(2))

    def make():
        return make_optimizer(name, [{"params": [ours], "weight_decay": decay}], lr=0.1, momentum=0.9, nesterov=True)

    optimizer, plain = make(), PLAIN[name]([theirs])
    for step in range(8):
        if step == 5:
            stored = optimizer.state_dict()
            optimizer = make()
            optimizer.load_state_dict(stored)
        for parameter, one in ((ours, optimizer), (theirs, plain)):
            parameter.grad = torch.sin(parameter.detach() * 3 + step)
            one.step()
    assert torch.allclose(ours, theirs, rtol=1e-5) and not torch.allclose(ours, torch.linspace(-1, 1, 6).reshape(2, 3))
    assert torch.is_grad_enabled()
