"""Requirements on every row of `tests/cases.py`, and completeness of its tables."""

import contextlib
import copy
import itertools
from dataclasses import replace
from inspect import signature

import pytest
import torch
from torch import nn

import args
import models
from data import SETS
from models import initial
from models.constraints import (
    CONV_TYPES,
    bake,
    biprop_state_dict,
    constrain,
    constrained_layers,
    load_biprop_state_dict,
    weight_layers,
)
from models.initial import initialise
from models.registry import BN_TYPES, INITS, ResNetPlan
from tests.cases import CASES, CLASSES, CONSTRAINT_CASES, METHOD_CASES, NARROW, SET_CASES, SPARSE_DENSITY, SPARSE_RULES
from tests.steps import make_method
from trainers.optimizers import make_optimizer, parameter_groups
from trainers.registry import OPTIMIZERS, TRAINERS
from trainers.schedules import POLICIES, schedule
from utils.errors import UsageError

EVERY = pytest.mark.parametrize("case", CASES, ids=str)


def built(case, seed=0):
    generator = torch.Generator().manual_seed(seed)
    model = models.build(case.arch, num_classes=CLASSES, in_shape=case.in_shape, **case.options)
    initialise(model, "kaiming_normal", generator=generator)
    return constrain(model, case.conv_type, density=case.density, generator=generator, initial_ones=0.3)


def images(case, count, seed=1):
    return torch.rand(count, *case.in_shape, generator=torch.Generator().manual_seed(seed))


def settled(case):
    """Return the network of a case in evaluation mode, with running statistics that differ from the initial ones."""
    model = built(case)
    with torch.no_grad():
        model(images(case, 3))
    return model.eval()


def drawn(model, case):
    """Return the logits. A SampleSubnetConv draws the same masks in every call."""
    torch.manual_seed(0)
    return model(images(case, 3))


def differences(model, state):
    return {name for name, value in model.state_dict().items() if not torch.equal(value, state[name])}


@EVERY
@pytest.mark.parametrize("count", [1, 3])
def test_output_is_one_row_of_logits_per_image(case, count):
    model = built(case)
    x = images(case, count)
    assert model.eval()(x).shape == (count, CLASSES)
    assert model.train()(x).shape == (count, CLASSES)


@EVERY
def test_the_constraint_is_on_every_layer_or_on_none(case):
    model = built(case)
    constrained = list(constrained_layers(model))
    assert constrained == ([] if case.conv_type == "DenseConv" else list(weight_layers(model)))
    assert all(isinstance(m, nn.Conv2d | nn.Linear) for m in weight_layers(model).values())


@EVERY
def test_exactly_the_trainable_parameters_have_finite_gradients(case):
    model = built(case)
    model(images(case, 3)).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        assert parameter.grad is None or parameter.grad.isfinite().all(), name
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    own = [name for name, layer in weight_layers(model).items() if layer.weight is not None]
    assert frozen == {f"{name}.weight" for name in own if "weight" not in CONSTRAINT_CASES[case.conv_type].moved}
    assert any(p.grad is not None and p.grad.any() for p in model.parameters())


@EVERY
@pytest.mark.parametrize("training", [True, False])
def test_an_empty_batch_passes_forward_and_backward(case, training):
    model = built(case).train(training)
    logits = model(images(case, 0))
    logits.sum().backward()
    assert logits.shape == (0, CLASSES)
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())


@EVERY
def test_a_step_changes_nothing_but_trainable_parameters_and_running_statistics(case):
    model = built(case)
    before = copy.deepcopy(model.state_dict())
    optimizer = make_optimizer("sgd", parameter_groups(model, weight_decay=1e-4), lr=0.1, momentum=0.9)
    model(images(case, 3)).square().sum().backward()
    optimizer.step()
    changed = differences(model, before)
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    statistics = {name for name, _ in model.named_buffers() if ".constraint." not in name}
    weights = {f"{name}.{what}" for name in layer_names(model) for what in CONSTRAINT_CASES[case.conv_type].moved}
    assert weights <= changed <= trainable | statistics


def layer_names(model):
    return list(weight_layers(model))


@EVERY
def test_bake_returns_a_plain_network_with_equal_output(case):
    model = settled(case)
    torch.manual_seed(0)  # fixes the masks that a SampleSubnetConv draws
    plain = bake(model)
    assert not constrained_layers(plain) and not plain.training
    assert all(type(m) in (nn.Conv2d, nn.Linear) for m in weight_layers(plain).values())
    assert not any("scores" in name for name in plain.state_dict())
    assert all(p.requires_grad for p in plain.parameters())
    torch.testing.assert_close(plain(images(case, 3)), drawn(model, case), rtol=0, atol=1e-6)


@EVERY
def test_effective_weights_have_the_values_and_the_count_of_their_constraint(case):
    plain = bake(built(case))
    for name, layer in constrained_layers(built(case)).items():
        effective = plain.get_submodule(name).weight
        values = effective.abs().unique()
        kind = CONSTRAINT_CASES[case.conv_type].values
        if kind == "alpha":
            assert len(values[values > 0]) == 1
        elif kind == "powers":
            assert torch.frexp(values[values > 0]).mantissa.eq(0.5).all()
        elif kind == "weight":
            assert ((effective == 0) | (effective == layer.weight)).all()
        expected = layer.constraint.count_kept(layer.weight)
        spread = 5 * layer.weight.numel() ** 0.5 / 2 if case.conv_type == "SampleSubnetConv" else 0
        assert abs(int(effective.count_nonzero()) - expected) <= spread


@EVERY
def test_the_state_dict_restores_the_network(case):
    model, other = settled(case), built(case, seed=5)
    assert differences(other, model.state_dict())
    other.load_state_dict(model.state_dict())
    assert torch.equal(drawn(other.eval(), case), drawn(model, case))


@EVERY
def test_the_biprop_state_dict_restores_the_network(case):
    model, other = settled(case), built(case, seed=5)
    state = biprop_state_dict(model)
    load_biprop_state_dict(other, {f"module.{key}": value.clone() for key, value in state.items()})
    assert not differences(other, model.state_dict())
    assert torch.equal(drawn(other.eval(), case), drawn(model, case))


@pytest.mark.parametrize("trainer", TRAINERS)
def test_every_method_has_trainable_parameters_and_a_finite_loss(trainer):
    case = next(case for case in CASES if case.conv_type == METHOD_CASES[trainer])
    method, model = make_method(trainer, weight_decay=1e-4), built(case)
    method.prepare(model)
    assert sum(len(group["params"]) for group in method.parameter_groups(model)) > 0
    loss = method.loss(model(images(case, 3)), torch.arange(3))
    assert loss.isfinite() and loss.dim() == 0
    assert all(isinstance(v, float) for split in method.metrics(model).values() for v in split.values())


def test_prune_score_refuses_a_network_without_scores():
    with pytest.raises(ValueError, match=r"no layer has scores; use conv_type SubnetConv"):
        make_method("prune_score").prepare(built(CASES[0]))


@pytest.mark.parametrize("name", SETS)
def test_every_data_set_has_an_architecture_that_fits(name):
    # the classes of an ImageFolder are counted in its folder
    spec = replace(SETS[name], num_classes=SETS[name].num_classes or CLASSES)
    options = {} if SET_CASES[name] == "FC" else NARROW
    model = models.build(SET_CASES[name], num_classes=spec.num_classes, in_shape=spec.in_shape, **options)
    assert model.eval()(torch.zeros(2, *spec.in_shape)).shape == (2, spec.num_classes)
    assert len(spec.mean) == len(spec.std) == spec.in_shape[0]


def kind(arch):
    """Return the kind of an architecture: its name, or for a ResNet its plan without the sizes."""
    plan = models.ARCHS[arch].arguments.get("plan")
    if isinstance(plan, ResNetPlan):
        return plan.stem, plan.bottleneck, plan.norm, plan.act, len(plan.widths)
    return arch


def test_everything_registered_has_a_case():
    for conv_type in ("DenseConv", "SubnetConv"):
        assert {kind(case.arch) for case in CASES if case.conv_type == conv_type} == {*map(kind, models.ARCHS)}
    assert {case.conv_type for case in CASES} == set(CONV_TYPES)
    assert CONSTRAINT_CASES.keys() == set(CONV_TYPES)
    assert METHOD_CASES.keys() == TRAINERS.keys()
    assert SET_CASES.keys() == SETS.keys()
    assert {case.options.get("bn_type", "LearnedBatchNorm") for case in CASES} == set(BN_TYPES)
    assert len({str(case) + str(case.in_shape) for case in CASES}) == len(CASES)


def choices(option):
    return list(args.FIELDS[option].metadata["allowed"])


def test_the_options_allow_exactly_the_pairs_of_sparse_rules_of_the_table():
    common = {"set": "digits", "arch": "Conv2", "conv_type": "SparseConv"}
    allowed = []
    for pair in itertools.product(choices("drop"), choices("grow"), (SPARSE_DENSITY, None)):
        with contextlib.suppress(UsageError):
            args.from_flat(common | dict(zip(("drop", "grow", "prune_rate"), pair, strict=True)))
            allowed.append(pair)
    assert sorted(allowed, key=str) == sorted(SPARSE_RULES, key=str)


def test_every_choice_of_norm_nonlinearity_and_mode_is_accepted():
    for norm in choices("norm"):
        models.build("MLP", num_classes=2, in_shape=(1, 2, 2), norm=norm)
    shape = torch.Size((4, 3))
    drawn = [initial.initial_weight(shape, "unsigned_constant", nonlinearity=gain) for gain in choices("nonlinearity")]
    assert all(weight.isfinite().all() for weight in drawn)
    sides = {initial.initial_weight(shape, "unsigned_constant", mode=mode)[0, 0].item() for mode in choices("mode")}
    assert len(sides) == 2


def test_warmup_affects_exactly_the_policies_that_its_option_names():
    rates = {
        name: [[*map(schedule(name, epochs=90, warmup=warmup, step=20, gamma=0.1), range(90))] for warmup in (0, 4)]
        for name in POLICIES
    }
    warmed = args.FIELDS["warmup_length"].metadata["needs"].values
    assert sorted(warmed) == sorted(name for name, (without, warm) in rates.items() if without != warm)


@pytest.mark.parametrize("table", [models.ARCHS, CONV_TYPES, TRAINERS, OPTIMIZERS])
def test_every_registry_row_names_a_class_and_existing_options(table):
    for name, row in table.items():
        assert isinstance(row.load(), type) or name == "DenseConv"
        assert set(row.options) <= args.FIELDS.keys()


def test_every_init_lists_options_that_exist():
    assert {option for row in INITS.values() for option in row.options} == {"mode", "nonlinearity", "scale_fan"}


OWN_ARGUMENTS = {"weight", "generator", "density", "selection", "self", "usual", "options"}


@pytest.mark.parametrize("name", [name for name, row in CONV_TYPES.items() if row.constraint])
def test_the_options_of_a_constraint_are_the_arguments_of_its_class_with_equal_defaults(name):
    arguments = signature(CONV_TYPES[name].load()).parameters
    assert set(CONV_TYPES[name].options) == arguments.keys() - OWN_ARGUMENTS
    for option in CONV_TYPES[name].options:
        assert arguments[option].default == args.FIELDS[option].default


def test_each_conv_type_names_a_trainer_that_exists():
    assert {row.trainer for row in CONV_TYPES.values()} <= TRAINERS.keys()
    assert {row.variant_of for row in TRAINERS.values()} - {""} <= {row.trainer for row in CONV_TYPES.values()}
