"""SampleSubnetConv, FixedSubnetConv and RGConv: masks over weights."""

import copy
import math

import pytest
import torch
from torch import nn

from models.constraints import bake, constrain, layer_counts
from models.constraints.fixed_masks import FixedSubnetWeight, RandomMaskWeight
from models.constraints.gradients import ThroughSampling
from models.constraints.sampled_mask import SampleSubnetWeight
from trainers.optimizers import make_optimizer, parameter_groups


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def network(conv_type, seed=0, **options):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 3 * 3, 5))
    return constrain(net, conv_type, generator=torch.Generator().manual_seed(seed), **options)


def batch(count=4):
    return random(count, 2, 5, 5, seed=9)


def trained(net, steps=3, **options):
    optimizer = make_optimizer("sgd", parameter_groups(net, weight_decay=1e-2), lr=0.1, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        net(batch()).square().sum().backward()
        optimizer.step()
    return net


# SampleSubnetConv


def sampler(probability, shape=(20, 50)):
    """Return a constraint that keeps each weight with `probability`."""
    made = SampleSubnetWeight(torch.zeros(shape))
    made.scores.data.fill_(math.log(probability / (1 - probability)))
    return made


@pytest.mark.parametrize("probability", [0.05, 0.5, 0.9])
@pytest.mark.parametrize("training", [True, False])
def test_each_weight_is_kept_with_probability_sigmoid_of_its_score(probability, training):
    torch.manual_seed(0)
    constraint, weight = sampler(probability).train(training), random(20, 50)
    draws = [constraint(weight).detach() for _ in range(400)]
    assert all(((draw == 0) | (draw == weight)).all() for draw in draws)
    shares = torch.stack(draws).ne(0).double().mean(0)
    deviation = math.sqrt(probability * (1 - probability) / 400)
    assert (shares - probability).abs().max() < 5 * deviation  # of 1000 weights
    assert (shares.mean() - probability).abs() < 5 * deviation / math.sqrt(1000)
    assert constraint.kept == round(1000 * probability)


def test_weights_are_kept_independently_of_each_other():
    torch.manual_seed(0)
    kept = torch.stack([sampler(0.5)(torch.ones(20, 50)).detach().sum() for _ in range(400)])
    assert 0.75 < kept.var() / 250 < 1.3  # the variance of a binomial; one common draw has 250 000


@pytest.mark.parametrize("score, kept", [(math.inf, 6), (-math.inf, 0), (math.nan, 0)])
def test_infinite_and_nan_scores_keep_all_or_no_weights(score, kept):
    constraint = SampleSubnetWeight(torch.zeros(2, 3))
    constraint.scores.data.fill_(score)
    assert all(constraint(torch.ones(2, 3)).sum() == kept for _ in range(50))


@pytest.mark.parametrize("training", [True, False])
def test_every_pass_draws_from_the_generator_of_torch(training):
    net = network("SampleSubnetConv").train(training)
    torch.manual_seed(1)
    first, second = net(batch()), net(batch())
    torch.manual_seed(1)
    assert torch.equal(net(batch()), first) and not torch.equal(first, second)


def test_gradients_use_the_sigmoid_derivative_for_scores_and_the_mask_for_weights():
    constraint = SampleSubnetWeight(torch.zeros(6, 5), generator=torch.Generator().manual_seed(1))
    weight, g = random(6, 5, seed=2).requires_grad_(), random(6, 5, seed=3)
    constraint.scores.data = random(6, 5, seed=4)
    effective = constraint(weight)
    effective.backward(g)
    p = torch.sigmoid(constraint.scores.detach())
    torch.testing.assert_close(constraint.scores.grad, g * weight.detach() * p * (1 - p))
    kept = effective.detach() != 0
    assert torch.equal(weight.grad, g * kept) and 0 < kept.sum() < 30


def test_the_score_gradient_equals_that_of_the_expected_mask_and_fails_gradcheck():
    scores, weight, g = (random(4, 3, seed=s, dtype=torch.float64) for s in range(3))
    scores.requires_grad_()
    (found,) = torch.autograd.grad(weight * ThroughSampling.apply(torch.sigmoid(scores)), scores, g)
    (expected,) = torch.autograd.grad(weight * torch.sigmoid(scores), scores, g)
    assert torch.equal(found, expected)
    assert torch.autograd.gradcheck(lambda s: weight * torch.sigmoid(s), scores)

    def seeded(s):
        torch.manual_seed(0)
        return weight * ThroughSampling.apply(torch.sigmoid(s))

    assert not torch.autograd.gradcheck(seeded, scores, raise_exception=False)


def test_initial_scores_are_drawn_unless_score_init_is_given():
    net = network("SampleSubnetConv", score_init=-1.5)
    assert all(torch.equal(m.scores, torch.full_like(m.scores, -1.5)) for m in samplers(net))
    bound = 1 / math.sqrt(2 * 3 * 3)
    scores = samplers(network("SampleSubnetConv"))[0].scores
    assert 0.9 * bound < scores.abs().max() <= bound and len(scores.unique()) == scores.numel()
    assert torch.equal(scores, samplers(network("SampleSubnetConv"))[0].scores)
    assert not torch.equal(scores, samplers(network("SampleSubnetConv", seed=1))[0].scores)


def samplers(net):
    return [m for m in net.modules() if isinstance(m, SampleSubnetWeight)]


def test_score_init_has_no_effect_on_other_constraints():
    net = network("SubnetConv", density=0.5, first_layer_type="SampleSubnetConv", score_init=2.0)
    assert (net[0].constraint.scores == 2).all() and not (net[3].constraint.scores == 2).any()


def test_kept_is_the_expected_number_of_weights():
    net = network("SampleSubnetConv", score_init=0.0)
    assert [c.kept for c in layer_counts(net)] == [54, 135]
    net[0].constraint.bypassed = True
    assert [c.kept for c in layer_counts(net)] == [108, 135]


def test_a_bypassed_constraint_is_dense():
    net = network("SampleSubnetConv")
    for constraint in samplers(net):
        constraint.bypassed = True
    torch.manual_seed(0)
    assert torch.equal(net(batch()), network("DenseConv")(batch()))


def test_scores_and_weights_both_train_unless_the_weights_are_frozen():
    net = network("SampleSubnetConv")
    before = copy.deepcopy(net.state_dict())
    trained(net)
    assert not any(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    frozen = network("SampleSubnetConv")
    frozen[0].weight.requires_grad_(False)
    trained(frozen)
    assert torch.equal(frozen[0].weight, before["0.weight"])
    assert not torch.equal(frozen[0].constraint.scores, before["0.constraint.scores"])


@pytest.mark.parametrize("conv_type", ["SampleSubnetConv", "FixedSubnetConv", "RGConv"])
@pytest.mark.parametrize("count", [1, 3])
def test_under_autocast_gradients_have_the_dtype_of_the_parameters(conv_type, count):
    net = network(conv_type, density=0.5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = net(batch(count))
    out.float().sum().backward()
    assert out.dtype == torch.bfloat16
    assert all(p.grad.dtype == torch.float32 and p.grad.any() for p in net.parameters())


# FixedSubnetConv


@pytest.mark.parametrize("density", [0.1, 0.3, 0.5, 1.0])
def test_the_mask_keeps_the_largest_scores_and_prune_rate_is_the_fraction_kept(density):
    net, tickets = network("FixedSubnetConv", density=density), network("SubnetConv", density=density, seed=3)
    net.load_state_dict(tickets.state_dict())
    for name in ("0", "3"):
        fixed, ticket = net.get_submodule(name), tickets.get_submodule(name)
        assert torch.equal(fixed.constraint.mask(), ticket.constraint.mask())
        assert fixed.constraint.kept == ticket.constraint.kept == int(fixed.constraint.mask().sum())
        assert torch.equal(bake(net).get_submodule(name).weight, fixed.weight * ticket.constraint.mask())


def test_masked_weights_have_no_effect_and_no_gradient():
    net = network("FixedSubnetConv", density=0.3)
    expected = net(batch())
    masks = {name: net.get_submodule(name).constraint.mask().clone() for name in ("0", "3")}
    with torch.no_grad():
        for name, mask in masks.items():
            net.get_submodule(name).weight.add_(1e6 * (1 - mask))
    assert torch.equal(net(batch()), expected)
    net(batch()).sum().backward()
    for name, mask in masks.items():
        assert not (net.get_submodule(name).weight.grad * (1 - mask)).any()
        assert (net.get_submodule(name).weight.grad * mask).any()


def test_fixed_scores_are_buffers_and_training_does_not_change_scores_or_mask():
    net = network("FixedSubnetConv", density=0.3)
    before, mask = copy.deepcopy(net.state_dict()), net[0].constraint.mask().clone()
    assert not [name for name, _ in net.named_parameters() if "scores" in name]
    trained(net)
    assert torch.equal(net[0].constraint.scores, before["0.constraint.scores"])
    assert torch.equal(net[0].constraint.mask(), mask)
    assert not torch.equal(net[0].weight, before["0.weight"])


MASK_CHANGES = {
    "load_state_dict": lambda c: c.load_state_dict({"scores": -2 * c.scores.flip(0)}),
    "written to": lambda c: c.scores.copy_(c.scores.flip(0).clone()),
    "scores.data and train()": lambda c: c.train(c.scores.data.copy_(c.scores.flip(0).clone()) is not None),
    "replaced": lambda c: setattr(c, "scores", c.scores.flip(0).clone()),
}


@pytest.mark.parametrize("change", MASK_CHANGES)
def test_the_mask_is_computed_once_until_the_scores_change(change):
    constraint = FixedSubnetWeight(random(6, 5), density=0.4, generator=torch.Generator().manual_seed(0))
    before = constraint.mask()
    assert constraint.mask() is before
    MASK_CHANGES[change](constraint)
    assert torch.equal(constraint.mask(), before.flip(0)) and not torch.equal(constraint.mask(), before)


def test_the_mask_changes_with_the_density():
    constraint = FixedSubnetWeight(random(6, 5), density=0.4)
    assert (constraint.mask().sum(), constraint.kept) == (12, 12)
    constraint.density = 0.2
    assert (constraint.mask().sum(), constraint.kept) == (6, 6)


def test_a_mask_loaded_in_place_of_the_scores_becomes_the_mask():
    """BIPROP stores the mask of a FixedSubnetConv in place of its scores."""
    constraint = FixedSubnetWeight(random(6, 5), density=0.4)
    mask = constraint.mask().clone()
    constraint.load_state_dict({"scores": mask})
    assert torch.equal(constraint.mask(), mask)


@pytest.mark.parametrize("kind", [FixedSubnetWeight, RandomMaskWeight])
@pytest.mark.parametrize("density", [0, -0.5, 1.01, math.nan])
def test_impossible_densities_are_refused(kind, density):
    with pytest.raises(ValueError, match=r"prune_rate: .* must be above 0 and at most 1"):
        kind(torch.zeros(2, 2), density=density)


# RGConv


@pytest.mark.parametrize("density", [1e-9, 0.1, 0.37, 0.9, 1.0])
def test_a_random_mask_keeps_exactly_its_density(density):
    constraint = RandomMaskWeight(random(40, 25), density=density)
    expected = max(1, 1000 - int((1 - density) * 1000))
    assert constraint.kept == expected == int(constraint(torch.ones(40, 25)).sum())
    assert set(constraint.mask.unique().tolist()) <= {0.0, 1.0}


def test_a_random_mask_is_uniform_and_comes_from_the_generator():
    masks = [
        RandomMaskWeight(random(40, 25), density=0.5, generator=torch.Generator().manual_seed(seed)).mask
        for seed in (0, 0, *range(1, 101))
    ]
    assert torch.equal(masks[0], masks[1]) and not torch.equal(masks[0], masks[2])
    shares = torch.stack(masks[1:]).mean(0)
    assert shares.min() > 0.2 and shares.max() < 0.8  # binomial of 101 draws, 1000 weights: 6 deviations


def test_without_a_density_an_rgconv_is_dense():
    assert torch.equal(network("RGConv")(batch()), network("DenseConv")(batch()))


def test_a_random_mask_survives_training_and_the_state_dict():
    net = network("RGConv", density=0.3)
    masks = [net[i].constraint.mask.clone() for i in (0, 3)]
    weight = net[0].weight.detach().clone()
    trained(net)
    other = network("RGConv", seed=5, density=0.8)
    assert not torch.equal(other[0].constraint.mask, masks[0])
    other.load_state_dict(net.state_dict())
    for model in (net, other, copy.deepcopy(net)):
        assert all(torch.equal(model[i].constraint.mask, mask) for i, mask in zip((0, 3), masks, strict=True))
        assert [c.kept for c in layer_counts(model)] == [int(mask.sum()) for mask in masks]
    assert not torch.equal(net[0].weight * masks[0], weight * masks[0])
    assert torch.equal(bake(net)[0].weight, net[0].weight * masks[0])
