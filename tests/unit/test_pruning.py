"""Pruning criteria: percentiles and masks against numpy, and the definition of every criterion and scope."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import nn

import models
from models.pruning import channel_cut, channel_groups, criteria

PERCENT = (0, 25, 50, 60, 70, 80, 90, 95, 97, 99)
FLOATS = st.floats(-4, 4, width=32)


def net(*hidden, bias=False):
    torch.manual_seed(3)
    return models.build("MLP", num_classes=4, in_shape=(1, 3, 5), hidden=hidden or (9, 8, 7), bias=bias).eval()


def numpy_mask(weight, percent, *, columns):
    """Return the mask of the weights, or columns, to keep in the (in, out) matrix of one layer."""
    size = np.sqrt((weight.astype(np.float64) ** 2).sum(0)) if columns else np.abs(weight.astype(np.float64))
    return ~(size < np.percentile(size, percent))


@pytest.mark.parametrize("percent", PERCENT)
def test_weights_are_pruned_as_numpy_does(percent):
    model = net()
    expected = {name: numpy_mask(w.numpy(), percent, columns=False) for name, w in weights(model).items()}
    kept = criteria.keep_masks(criteria.weight_scores(weights(model)), percent)
    before = copy.deepcopy(model)
    criteria.zero_weights(model, dict(zip(weights(model), kept, strict=True)))
    for name, mask in expected.items():
        was, now = (m.get_submodule(name).weight.detach().numpy() for m in (before, model))
        assert np.array_equal(now, was * mask)
        removed = round(percent / 100 * (mask.size - 1))
        assert abs((~mask).sum() - removed) <= 1
    assert torch.equal(model.linear[-1].weight, before.linear[-1].weight)


@pytest.mark.parametrize("percent", PERCENT)
def test_units_are_pruned_as_numpy_does(percent):
    model = net(bias=True)
    groups = channel_groups.unit_groups(model, torch.rand(2, 1, 3, 5))
    kept = criteria.keep_masks(criteria.unit_scores(weights(model), groups), percent)
    before = copy.deepcopy(model)
    expected = [numpy_mask(w.numpy().T, percent, columns=True) for w in weights(model).values()]
    assert all(np.array_equal(mask.numpy(), wanted) for mask, wanted in zip(kept, expected, strict=True))
    channel_cut.zero_units(model, groups, kept)
    for name, mask in zip(weights(model), expected, strict=True):
        was, now = before.get_submodule(name), model.get_submodule(name)
        assert np.array_equal(now.weight.detach().numpy(), was.weight.detach().numpy() * mask[:, None])
        assert np.array_equal(now.bias.detach().numpy(), was.bias.detach().numpy() * mask)
    assert torch.equal(model.linear[-1].weight, before.linear[-1].weight)
    assert torch.equal(model.linear[-1].bias, before.linear[-1].bias)


@settings(deadline=None, max_examples=60)
@given(arrays.arrays(np.float32, st.integers(1, 40), elements=FLOATS), st.floats(0, 100))
def test_kept_scores_reach_the_percentile_and_at_least_one_is_kept(values, percent):
    scores = torch.from_numpy(values).abs()
    (kept,) = criteria.keep_masks([scores], percent)
    assert kept.any()
    assert kept.all() or scores[kept].min() > scores[~kept].max()
    limit = np.percentile(np.abs(values).astype(np.float64), percent)
    assert np.array_equal(kept.numpy(), np.abs(values).astype(np.float64) >= limit)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(arrays.arrays(np.float32, st.integers(1, 12), elements=FLOATS), min_size=1, max_size=4),
    st.floats(0, 100),
    st.floats(0, 100),
)
def test_a_higher_percentage_keeps_a_subset_of_a_lower_one(values, one, other):
    scores = [torch.from_numpy(v).abs() for v in values]
    for scope in criteria.SCOPES:
        fewer, more = (criteria.keep_masks(scores, p, scope) for p in (max(one, other), min(one, other)))
        assert all(bool((m | ~f).all()) for f, m in zip(fewer, more, strict=True))


def test_global_scope_has_one_limit_and_each_layer_keeps_its_largest_score():
    small, large = torch.tensor([0.1, 0.3, 0.2]), torch.arange(1.0, 8.0)
    apart = criteria.keep_masks([small, large], 50)
    together = criteria.keep_masks([small, large], 50, "global")
    assert [int(k.sum()) for k in apart] == [2, 4]
    limit = np.percentile(torch.cat([small, large]).double().numpy(), 50)
    assert together[0].tolist() == [False, True, False]
    assert together[1].tolist() == (large.double() >= limit).tolist() and int(together[1].sum()) == 5


@pytest.mark.parametrize(
    ("percent", "scope", "message"), [(101, "layer", "101"), (-1, "layer", "-1"), (5, "net", "'net'")]
)
def test_an_impossible_percentage_or_scope_is_refused(percent, scope, message):
    with pytest.raises(ValueError, match=message):
        criteria.keep_masks([torch.rand(3)], percent, scope)


# criteria


def weights(model):
    return criteria.hidden_weights(model, torch.rand(2, 1, 3, 5))


def losses(model, count):
    generator = torch.Generator().manual_seed(8)
    for _ in range(count):
        images, labels = torch.randn(6, 1, 3, 5, generator=generator), torch.randint(0, 4, (6,), generator=generator)
        yield nn.functional.cross_entropy(model(images), labels)


def test_taylor_saliency_is_the_sum_over_batches_of_weight_times_gradient():
    model = net()
    saliencies = criteria.taylor_saliencies(model, losses(model, 3))
    expected = {name: torch.zeros_like(layer.weight) for name, layer in layers(model).items()}
    for loss in losses(model, 3):
        model.zero_grad()
        loss.backward()
        for name, layer in layers(model).items():
            expected[name] += (layer.weight * layer.weight.grad).abs().detach()
    assert all(
        torch.allclose(saliencies[name], expected[name], rtol=1e-5) and saliencies[name].any() for name in expected
    )


def test_small_saliencies_are_not_lost_in_a_large_sum():
    model = nn.Sequential(nn.Linear(1, 1, bias=False))
    nn.init.ones_(model[0].weight)
    saliencies = criteria.taylor_saliencies(model, (model(torch.tensor([[x]])).sum() for x in [2.0**24] + [1.0] * 64))
    assert saliencies["0"].item() == 2**24 + 64


def layers(model):
    return {f"linear.{i}": layer for i, layer in enumerate(model.linear) if isinstance(layer, nn.Linear)}


def test_taylor_scores_are_the_saliencies_and_random_ones_follow_the_seed():
    model = net()
    saliencies = criteria.taylor_saliencies(model, losses(model, 2))
    first = next(iter(weights(model)))
    assert torch.equal(criteria.weight_scores(weights(model), "taylor", saliencies)[0], saliencies[first])
    groups = channel_groups.unit_groups(model, torch.rand(2, 1, 3, 5))
    by_unit = criteria.unit_scores(weights(model), groups, "taylor", saliencies)[0]
    assert torch.allclose(by_unit, saliencies[first].double().sum(1))
    for draw in (criteria.weight_scores, lambda w, c: criteria.unit_scores(w, groups, c)):
        torch.manual_seed(1)
        one = draw(weights(model), "random")
        torch.manual_seed(1)
        again = draw(weights(model), "random")
        assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
        assert not torch.equal(one[0], draw(weights(model), "random")[0])


def test_the_importance_of_a_unit_is_a_sum_or_a_norm():
    w, every = {"a": torch.tensor([[3.0, -4.0], [1.0, 0.0]])}, torch.arange(2)
    group = [channel_cut.UnitGroup(2, {"a": every}, {}, {})]
    assert criteria.unit_scores(w, group)[0].tolist() == [5, 1]
    assert criteria.unit_scores(w, group, "magnitude")[0].tolist() == [7, 1]
    assert torch.equal(criteria.weight_scores(w, "l2")[0], w["a"] ** 2)
    coupled = [channel_cut.UnitGroup(2, {"a": every, "b": every.flip(0)}, {}, {})]
    both = w | {"b": torch.tensor([[[[0.0]]], [[[12.0]]]])}
    assert criteria.unit_scores(both, coupled)[0].tolist() == [13, 1]
    one_unit = [channel_cut.UnitGroup(1, {"a": torch.tensor([0, 0])}, {}, {})]
    assert criteria.unit_scores(w, one_unit, "magnitude")[0].tolist() == [8]


def test_an_unknown_criterion_and_a_network_without_hidden_layers_are_refused():
    with pytest.raises(ValueError, match=r"criterion: 'l1' is unknown.*one of magnitude"):
        criteria.weight_scores({"a": torch.rand(2)}, "l1")
    with pytest.raises(ValueError, match="only an output layer"):
        criteria.hidden_weights(nn.Sequential(nn.Linear(3, 2)), torch.rand(1, 3))


class ReversedMLP(nn.Module):
    """Three layers registered in the reverse order of the forward pass, and one that the forward pass never calls."""

    def __init__(self):
        super().__init__()
        self.out, self.second, self.first = nn.Linear(4, 2), nn.Linear(5, 4), nn.Linear(3, 5)
        self.unused = nn.Linear(2, 2)

    def forward(self, x):
        return self.out(self.second(self.first(x).relu()).relu())


def test_hidden_layers_and_groups_follow_the_forward_pass_not_the_registration():
    model, images = ReversedMLP().train(), torch.randn(2, 3)
    assert list(criteria.hidden_weights(model, images)) == ["first", "second"]
    assert [list(group.writers) for group in channel_groups.unit_groups(model, images)] == [["first"], ["second"]]
    assert model.training and not any(layer._forward_hooks for layer in model.modules())
