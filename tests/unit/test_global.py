"""GlobalSubnetConv equals a numpy transcription of BIPROP's arithmetic with our repairs. Tests of its cache."""

import copy
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from models.constraints import bake, constrain, layer_counts, subnet
from models.constraints.subnet import GlobalSelection, GlobalSubnetWeight
from trainers.optimizers import make_optimizer, parameter_groups
from trainers.registry import OPTIMIZERS

GLOBAL = "GlobalSubnetConv"


def network(density=0.3, seed=0, first_layer_type=None, dense=(), conv_type=GLOBAL):
    """Return a convolution and two linear layers with scores of different scales, which keep different fractions."""
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, bias=False),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(4 * 3 * 5, 6, bias=False),
        nn.Tanh(),
        nn.Linear(6, 3, bias=False),
    )
    generator = torch.Generator().manual_seed(seed)
    return constrain(
        net, conv_type, density=density, first_layer_type=first_layer_type, dense=dense, generator=generator
    )


def batch(seed=1, count=4):
    return torch.randn(count, 2, 3, 5, generator=torch.Generator().manual_seed(seed))


def constraints(net):
    return [m for m in net.modules() if isinstance(m, GlobalSubnetWeight)]


def arrays(net):
    layers = [m for m in net.modules() if isinstance(getattr(m, "constraint", None), GlobalSubnetWeight)]
    return (
        [layer.weight.detach().numpy().copy() for layer in layers],
        [layer.constraint.scores.detach().numpy().copy() for layer in layers],
    )


def sorted_masks(scores, density):
    """Return masks by one ascending stable sort of all |s|, with the largest of each layer last.

    The first int((1 − k)·N) entries are pruned.
    """
    flat = np.concatenate([np.abs(s).ravel() for s in scores])
    starts = np.cumsum([0, *(s.size for s in scores[:-1])])
    ranked = flat.copy()
    ranked[[start + np.abs(s).argmax() for start, s in zip(starts, scores, strict=True)]] = np.inf
    order = np.argsort(ranked, kind="stable")
    mask = np.ones(flat.size)
    mask[order[: int((1 - density) * flat.size)]] = 0
    parts = np.split(mask, np.cumsum([s.size for s in scores])[:-1])
    return [part.reshape(s.shape) for part, s in zip(parts, scores, strict=True)]


def effective(weights, masks):
    return [
        np.where(w >= 0, 1, -1) * m * (np.abs(w)[m == 1].mean(dtype=np.float64))
        for w, m in zip(weights, masks, strict=True)
    ]


def plain_of(net, weights):
    """Return the same network with these weights instead of the constrained ones."""
    plain = copy.deepcopy(bake(net))
    constrained = [n for n, m in net.named_modules() if isinstance(getattr(m, "constraint", None), GlobalSubnetWeight)]
    for name, weight in zip(constrained, weights, strict=True):
        plain.get_submodule(name).weight.data = torch.from_numpy(weight).float()
    return plain


@pytest.fixture
def selections(monkeypatch):
    calls = []
    true = subnet.keep_largest_of_all
    monkeypatch.setattr(subnet, "keep_largest_of_all", lambda m, kept: calls.append(kept) or true(m, kept))
    return calls


# arithmetic


@pytest.mark.parametrize("density", [0.05, 0.2, 0.3, 0.5, 0.9, 0.999, 1.0])
def test_masks_alpha_and_effective_weights_equal_the_numpy_transcription(density):
    net = network(density)
    weights, scores = arrays(net)
    masks = sorted_masks(scores, density)
    total = sum(m.size for m in masks)
    for constraint, weight, mask, expected in zip(
        constraints(net), weights, masks, effective(weights, masks), strict=True
    ):
        assert np.array_equal(constraint.mask(), mask)
        found = constraint.effective_weight(torch.from_numpy(weight)).numpy()
        np.testing.assert_allclose(found, expected, rtol=2e-6, atol=0)
    assert sum(c.kept for c in constraints(net)) == total - int((1 - density) * total)
    shares = {c.kept / c.scores.numel() for c in constraints(net)}
    assert density > 0.99 or len(shares) == 3, "the layers compete"


def test_score_gradients_are_effective_weight_gradient_times_weight_times_score_sign():
    net = network()
    weights, scores = arrays(net)
    plain = plain_of(net, effective(weights, sorted_masks(scores, 0.3)))
    for model in (net, plain):
        model(batch()).square().sum().backward()
    gradients = [m.weight.grad.numpy() for m in plain.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    for constraint, g, w, s in zip(constraints(net), gradients, weights, scores, strict=True):
        np.testing.assert_allclose(constraint.scores.grad, g * w * np.sign(s), rtol=2e-4, atol=2e-6)
        assert constraint.scores.grad[constraint.mask() == 0].any(), "the pruned have theirs"


def test_an_empty_layer_gets_its_largest_score_in_exchange_for_the_smallest_kept_score():
    net = network(density=0.1)
    first, second, third = (c.scores.data for c in constraints(net))
    third.mul_(1e-6)
    masks = [c.mask() for c in constraints(net)]
    assert [int(mask.sum()) for mask in masks][2] == 1
    assert masks[2].flatten().argmax() == third.abs().argmax()
    total = sum(c.scores.numel() for c in constraints(net))
    kept = total - int(0.9 * total)
    assert sum(int(mask.sum()) for mask in masks) == kept
    order = torch.cat([first.flatten(), second.flatten()]).abs().argsort(descending=True)
    chosen = torch.cat([masks[0].flatten(), masks[1].flatten()])
    assert chosen[order[: kept - 1]].all() and not chosen[order[kept - 1 :]].any()
    assert net(batch()).isfinite().all()
    assert [c.kept for c in layer_counts(net)] == [int(mask.sum()) for mask in masks]


def test_each_layer_keeps_one_weight_at_a_tiny_density():
    net = network(density=1e-9)
    assert [c.kept for c in constraints(net)] == [1, 1, 1]
    assert net(batch()).isfinite().all()


@pytest.mark.parametrize("density", [0, -0.1, 1.01, float("nan")])
def test_impossible_densities_are_refused(density):
    with pytest.raises(ValueError, match=r"prune_rate: .* must be above 0 and at most 1"):
        network(density)


# masks in training, also with optimizers that do not change the tensor version

RAW = {
    "torch's fused SGD": partial(torch.optim.SGD, lr=0.3, momentum=0.9, fused=True),
    "torch's fused Adam": partial(torch.optim.Adam, lr=0.05, fused=True),
    "torch's plain SGD": partial(torch.optim.SGD, lr=0.3, fused=False, foreach=False),
}
OURS = {
    name: lambda p, name=name: make_optimizer(name, [{"params": list(p), "weight_decay": 0.0}], lr=0.3, momentum=0.9)
    for name in OPTIMIZERS
}


@pytest.mark.parametrize("optimizer", RAW | OURS)
def test_every_training_step_uses_the_masks_of_the_current_scores(optimizer):
    net = network().train()
    step = (RAW | OURS)[optimizer]([p for p in net.parameters() if p.requires_grad])
    seen = []
    for number in range(6):
        weights, scores = arrays(net)
        masks = sorted_masks(scores, 0.3)
        expected = plain_of(net, effective(weights, masks))(batch(number))
        logits = net(batch(number))
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
        step.zero_grad()
        logits.square().sum().backward()
        step.step()
        seen.append(np.concatenate([m.ravel() for m in masks]))
    if optimizer != "adadelta":  # the first steps of Adadelta are tiny
        assert all((a != b).any() for a, b in pairwise(seen)), "a stale mask would not have shown"
    assert np.array_equal(arrays(net)[0][0], weights[0])


@pytest.mark.parametrize("asked", [0, 1, 2])
def test_reading_a_mask_between_steps_leaves_the_following_steps_correct(asked):
    net = network().train()
    constraints(net)[asked].mask()
    step = RAW["torch's fused SGD"]([p for p in net.parameters() if p.requires_grad])
    for number in range(4):
        weights, scores = arrays(net)
        expected = plain_of(net, effective(weights, sorted_masks(scores, 0.3)))(batch(number))
        logits = net(batch(number))
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
        net.zero_grad()
        logits.square().sum().backward()
        step.step()


# cache


def test_training_selects_once_per_forward_pass(selections):
    net = network().train()
    for count in (1, 2, 3):
        net(batch())
        assert len(selections) == count


def test_a_training_pass_reads_the_scores_of_all_layers_once(monkeypatch):
    selected, select = [], GlobalSelection._select
    monkeypatch.setattr(GlobalSelection, "_select", lambda self: selected.append(self) or select(self))
    net = network().train()
    for count in (1, 2, 3):
        net(batch())
        assert len(selected) == count


def refill(tensor):
    with torch.no_grad():
        tensor.normal_()


CHANGES = {
    "scores of one layer": lambda net: refill(constraints(net)[2].scores),
    "density": lambda net: setattr(constraints(net)[0].selection, "density", 0.1),
    "load_state_dict": lambda net: net.load_state_dict({k: v + 1 for k, v in net.state_dict().items()}),
    "train() and eval()": lambda net: net.train().eval(),
    "scores.data and eval()": lambda net: refill(constraints(net)[1].scores.data) or net.eval(),
    "channels_last": lambda net: net.to(memory_format=torch.channels_last),
    "float64": lambda net: net.double().float(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_evaluation_selects_once_until_something_changes(selections, change):
    net = network().eval()
    for _ in range(3):
        net(batch())
    assert len(selections) == 1
    CHANGES[change](net)
    for _ in range(2):
        out = net(batch())
    assert len(selections) == 2
    weights, scores = arrays(net)
    masks = sorted_masks(scores, constraints(net)[0].selection.density)
    torch.testing.assert_close(out, plain_of(net, effective(weights, masks))(batch()), rtol=1e-4, atol=1e-5)


def test_a_change_of_the_frozen_weights_causes_no_selection(selections):
    net = network().eval()
    net(batch())
    refill(net[3].weight)
    out = net(batch())
    assert len(selections) == 1
    weights, scores = arrays(net)
    expected = plain_of(net, effective(weights, sorted_masks(scores, 0.3)))(batch())
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


def test_counting_and_baking_select_once(selections):
    net = network().eval()
    layer_counts(net)
    assert len(selections) == 1
    for model in (net, network().train()):
        selections.clear()
        bake(model)
        assert len(selections) == 1


def test_training_and_evaluation_agree_to_the_bit():
    net = network()
    assert torch.equal(net.train()(batch()), net.eval()(batch()))


# copies, state dicts, memory formats


def test_a_copy_selects_among_its_own_scores():
    net = network().eval()
    before = net(batch())
    other = copy.deepcopy(net)
    assert constraints(other)[0].selection is not constraints(net)[0].selection
    refill(constraints(other)[0].scores)
    other(batch())
    assert torch.equal(net(batch()), before)
    weights, scores = arrays(other)
    expected = plain_of(other, effective(weights, sorted_masks(scores, 0.3)))(batch())
    torch.testing.assert_close(other(batch()), expected, rtol=1e-4, atol=1e-5)


def test_two_networks_select_independently():
    alone = network(seed=1).eval()(batch())
    one, other = network(seed=1), network(seed=2, density=0.8)
    refill(constraints(other)[0].scores)
    other(batch())
    assert torch.equal(one.eval()(batch()), alone)
    counts = [sum(c.kept for c in layer_counts(net)) for net in (one, other)]
    total = sum(c.total for c in layer_counts(one))
    assert counts == [total - int(0.7 * total), total - int((1 - 0.8) * total)]


def test_baked_and_loaded_networks_give_the_same_output():
    net, other = network(seed=1), network(seed=2)
    assert torch.equal(bake(net)(batch()), net(batch()))
    other.load_state_dict(net.state_dict())
    assert torch.equal(other(batch()), net(batch()))
    assert {name.rpartition(".")[2] for name in net.state_dict()} == {"weight", "scores"}


def test_the_memory_format_changes_no_mask():
    net = network()
    masks = [c.mask() for c in constraints(net)]
    moved = network().to(memory_format=torch.channels_last)
    assert all(torch.equal(c.mask(), mask) for c, mask in zip(constraints(moved), masks, strict=True))
    torch.testing.assert_close(moved(batch()), net(batch()))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_every_float_dtype_keeps_the_same_number(dtype):
    net = network().to(dtype)
    assert net(batch().to(dtype)).isfinite().all()
    assert sum(c.kept for c in constraints(net)) == sum(c.kept for c in constraints(network()))


# networks with other layers


@pytest.mark.parametrize("first", ["SubnetConv", "SampleSubnetConv", "FixedSubnetConv", "RGConv", "DenseConv"])
def test_a_first_layer_of_another_type_is_not_in_the_selection(first):
    net = network(0.3, first_layer_type=first)
    own = net[0].constraint.kept if first != "DenseConv" else 72
    weights, scores = arrays(net)
    assert len(scores) == 2
    masks = sorted_masks(scores, 0.3)
    assert [c.kept for c in layer_counts(net)] == [own, *(int(m.sum()) for m in masks)]
    for constraint, mask in zip(constraints(net), masks, strict=True):
        assert np.array_equal(constraint.mask(), mask)
    torch.manual_seed(3)
    found = net.eval()(batch())
    torch.manual_seed(3)
    torch.testing.assert_close(found, plain_of(net, effective(weights, masks))(batch()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rest", ["SubnetConv", "SampleSubnetConv", "DenseConv"])
def test_a_single_global_first_layer_has_its_own_selection(rest):
    net = network(0.3, conv_type=rest, first_layer_type=GLOBAL)
    assert net[0].constraint.kept == 72 - int(0.7 * 72)
    assert np.array_equal(net[0].constraint.mask(), sorted_masks([net[0].constraint.scores.detach().numpy()], 0.3)[0])
    net(batch()).sum().backward()
    assert net[0].constraint.scores.grad.any()


def test_dense_layers_are_not_in_the_selection():
    net = network(0.3, dense=("0", "5"))
    assert net[3].constraint.kept == 360 - int(0.7 * 360)
    assert [c.kept for c in layer_counts(net)] == [72, net[3].constraint.kept, 18]


def test_at_density_one_every_weight_is_plus_or_minus_alpha():
    net = network(1.0)
    assert [c.kept for c in constraints(net)] == [72, 360, 18]
    assert np.allclose(bake(net)[5].weight.abs().detach(), net[5].weight.abs().mean())


def test_a_global_selection_works_without_constrain():
    """GlobalSelection and GlobalSubnetWeight are enough."""
    chosen = GlobalSelection(0.5)
    low, high = (GlobalSubnetWeight(torch.ones(2, 2), selection=chosen) for _ in range(2))
    low.scores.data, high.scores.data = torch.tensor([[1.0, 2], [3, 4]]), torch.tensor([[5.0, 6], [7, 8]])
    assert low.mask().tolist() == [[0, 0], [0, 1]] and high.mask().tolist() == [[0, 1], [1, 1]]
    assert (low.kept, high.kept) == (1, 3)


def test_under_autocast_gradients_have_the_dtype_of_the_scores():
    net = network()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = net(batch(count=1))
    out.float().sum().backward()
    assert out.dtype == torch.bfloat16
    assert all(c.scores.grad.dtype == torch.float32 and c.scores.grad.any() for c in constraints(net))


def test_the_optimizer_gets_only_the_scores():
    (group,) = parameter_groups(network(), weight_decay=0.1)
    assert [p.shape for p in group["params"]] == [c.scores.shape for c in constraints(network())]
