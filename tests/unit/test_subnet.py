"""SubnetConv: values against numpy transcriptions, gradients, and evaluation cache."""

import copy
import functools
import math

import numpy as np
import pytest
import torch
from torch import nn

from models.constraints import bake, constrain, topk_mask
from models.constraints.gradients import ScoreThroughMask
from models.constraints.subnet import SubnetWeight
from models.constraints.topk_mask import keep_largest, kept_count

PATHS = pytest.mark.parametrize("select", [topk_mask._fill_on_host, topk_mask._fill_on_device], ids=["host", "device"])
DTYPES = pytest.mark.parametrize("dtype", list(topk_mask._BITS), ids=str)
INF, NAN = float("inf"), float("nan")


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def mask_of(select, magnitude, kept):
    bits = magnitude.view(topk_mask._BITS[magnitude.dtype])
    mask = torch.empty_like(magnitude)
    select([bits], magnitude.numel() - kept, [mask])
    return mask


def numpy_mask(scores, kept):
    """Return the mask of the `kept` largest |s|: a stable ascending sort prunes the lowest index of ties first."""
    flat = np.abs(scores).ravel()
    mask = np.ones(flat.size)
    mask[np.argsort(flat, kind="stable")[: flat.size - kept]] = 0
    return mask.reshape(scores.shape)


def numpy_effective(weight, scores, density):
    kept = max(1, weight.size - int((1 - density) * weight.size))
    mask = numpy_mask(scores, kept)
    alpha = np.abs(weight)[mask == 1].mean(dtype=np.float64)
    return np.where(weight >= 0, 1, -1) * mask * alpha


def constraint_of(weight, density=0.5, seed=1, scores=None):
    made = SubnetWeight(weight, density=density, generator=torch.Generator().manual_seed(seed))
    if scores is not None:
        made.scores.data = scores
    return made


# number kept


@pytest.mark.parametrize(
    "n, density, kept",
    [  # measured on BIPROP (reference 3.2), but at least one weight in the last rows
        (1728, 0.3, 519),
        (36864, 0.1, 3687),
        (1000, 0.9, 901),
        (2560, 0.8, 2049),
        (1000, 0.7, 700),
        (1000, 0.6, 600),
        (1000, 0.05, 50),
        (10, 1.0, 10),
        (1, 1.0, 1),
        (1, 0.01, 1),
        (3, 1e-9, 1),
        (10, 1e-300, 1),
    ],
)
def test_kept_count_equals_that_of_biprop_and_is_at_least_one(n, density, kept):
    assert kept_count(n, density) == kept
    assert constraint_of(torch.zeros(n, 1), density).kept == kept


@pytest.mark.parametrize("density", [0, -0.5, 1.0001, NAN, INF])
def test_impossible_densities_are_refused(density):
    with pytest.raises(ValueError, match=r"prune_rate: .* must be above 0 and at most 1"):
        SubnetWeight(torch.zeros(2, 2), density=density)


# masks


@PATHS
@DTYPES
@pytest.mark.parametrize("shape", [(37,), (6, 7), (4, 3, 4, 5), (5, 1, 3, 3), (2, 8, 1, 1)], ids=str)
def test_the_mask_keeps_the_largest_of_distinct_scores(select, dtype, shape):
    count = math.prod(shape)  # at most 256, up to which bfloat16 is exact for integers
    magnitude = torch.randperm(count, generator=torch.Generator().manual_seed(1)).view(shape).to(dtype)
    for kept in range(1, count):
        assert np.array_equal(mask_of(select, magnitude, kept).double(), numpy_mask(magnitude.double().numpy(), kept))


@PATHS
@DTYPES
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last], ids=str)
def test_equal_scores_are_pruned_in_row_major_order(select, dtype, memory):
    magnitude = torch.randint(0, 3, (4, 3, 2, 2), generator=torch.Generator().manual_seed(0)).to(dtype)
    magnitude = magnitude.contiguous(memory_format=memory)
    for kept in range(1, magnitude.numel()):
        mask = mask_of(select, magnitude, kept)
        assert np.array_equal(mask.double(), numpy_mask(magnitude.double().numpy(), kept)), kept
        assert mask.stride() == magnitude.stride() and mask.dtype == dtype


@PATHS
@pytest.mark.parametrize("kept", range(1, 6))
def test_if_all_scores_are_equal_the_first_ones_are_pruned(select, kept):
    for value in (0.0, 1.5, INF, NAN):
        assert mask_of(select, torch.full((5,), value), kept).tolist() == [0.0] * (5 - kept) + [1.0] * kept


@PATHS
def test_nan_counts_as_larger_than_infinity(select):
    magnitude = torch.tensor([3.0, NAN, 0.0, INF, 7.0, INF]).abs()
    assert mask_of(select, magnitude, 1).tolist() == [0, 1, 0, 0, 0, 0]
    assert mask_of(select, magnitude, 2).tolist() == [0, 1, 0, 0, 0, 1]
    assert mask_of(select, magnitude, 4).tolist() == [0, 1, 0, 1, 1, 1]
    assert mask_of(select, torch.tensor([NAN, 2.0, 2.0, 1.0]).abs(), 2).tolist() == [1, 0, 1, 0]


def test_subnormal_scores_are_ordered():
    magnitude = torch.tensor([3e-45, 1e-45, 0.0, 6e-45])
    assert keep_largest(magnitude, 2).tolist() == [1, 0, 0, 1]


def test_the_device_determines_the_selection_algorithm(monkeypatch):
    used = []
    for name in ("_fill_on_host", "_fill_on_device"):
        monkeypatch.setattr(topk_mask, name, lambda bits, pruned, mask, name=name: used.append(name))
    keep_largest(torch.ones(4), 2)
    keep_largest(torch.ones(4, device="meta"), 2)
    keep_largest(torch.ones(4), 4)  # nothing is pruned
    assert used == ["_fill_on_host", "_fill_on_device"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@DTYPES
def test_a_gpu_selects_the_same_weights_as_the_cpu(dtype):
    magnitude = torch.randint(0, 50, (40, 30, 3, 3)).to(dtype)
    for kept in (1, 17, 5000, magnitude.numel() - 1, magnitude.numel()):
        assert torch.equal(keep_largest(magnitude.cuda(), kept).cpu(), keep_largest(magnitude, kept))


def test_selection_does_not_change_the_scores():
    scores = random(6, 5)
    before = scores.clone()
    keep_largest(scores.abs(), 7)
    constraint_of(random(6, 5), scores=scores).mask()
    assert torch.equal(scores, before)


# effective weights


@pytest.mark.parametrize("density", [1e-6, 0.1, 0.3, 0.5, 0.8, 0.999, 1.0])
@pytest.mark.parametrize("shape", [(1, 1), (3, 4), (64, 3, 3, 3), (7, 5, 1, 1)], ids=str)
def test_the_effective_weight_equals_the_numpy_transcription(shape, density):
    weight, scores = random(*shape), random(*shape, seed=1)
    found = constraint_of(weight, density, scores=scores).effective_weight(weight)
    expected = numpy_effective(weight.numpy(), scores.numpy(), density)
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=0)
    assert found.dtype == weight.dtype and not found.requires_grad


@pytest.mark.parametrize("scores_last", [False, True])
@pytest.mark.parametrize("weight_last", [False, True])
def test_memory_formats_of_weight_and_scores_may_differ(weight_last, scores_last):
    weight, scores = random(8, 4, 3, 3), random(8, 4, 3, 3, seed=1)
    expected = numpy_effective(weight.numpy(), scores.numpy(), 0.3)
    constraint = constraint_of(weight, 0.3, scores=scores)
    np.testing.assert_allclose(constraint(weight).detach(), expected, rtol=2e-6)  # fills the cache
    if scores_last:
        constraint.scores.data = scores.contiguous(memory_format=torch.channels_last)
    if weight_last:
        weight = weight.contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(constraint(weight).detach(), expected, rtol=2e-6)


def test_the_sign_of_a_zero_weight_is_plus_one():
    weight = torch.tensor([[0.0, -0.0, 2.0, -4.0]])
    assert constraint_of(weight, 1.0).effective_weight(weight).tolist() == [[1.5, 1.5, 1.5, -1.5]]


def test_alpha_is_the_mean_magnitude_of_the_kept_weights():
    weight = torch.tensor([[1.0, -2.0, 30.0, -40.0]])
    found = constraint_of(weight, 0.5, scores=torch.tensor([[-9.0, 8.0, 1.0, 0.5]])).effective_weight(weight)
    assert found.tolist() == [[1.5, -1.5, 0, 0]]


@pytest.mark.parametrize("threads", [1, 2])
def test_alpha_of_many_weights_is_accurate_with_any_number_of_threads(threads, on_threads):
    weight = torch.full((4000, 1000), 0.1)
    constraint = constraint_of(weight, 1.0)
    with on_threads(threads):
        alpha = constraint.effective_weight(weight)[0, 0].item()
    assert alpha == pytest.approx(weight[0, 0].item(), rel=5e-7, abs=0)
    weight = random(500, 1000)
    with on_threads(threads):
        alpha = constraint_of(weight).effective_weight(weight).abs().max()
    with on_threads(1):
        assert alpha == constraint_of(weight).effective_weight(weight).abs().max()


@DTYPES
def test_the_effective_weight_has_the_dtype_of_the_weight(dtype):
    weight = random(256, 512, dtype=dtype)  # a float16 sum of its magnitudes overflows
    found = constraint_of(weight).effective_weight(weight)
    assert found.dtype == dtype and found.isfinite().all()
    assert found.abs().max().item() == pytest.approx(weight.double().abs().mean().item(), rel=1e-2)


def test_initial_scores_depend_on_the_fan_in_and_the_generator():
    weight = torch.zeros(50, 6, 3, 3)
    scores = constraint_of(weight, seed=3).scores
    assert torch.equal(scores, constraint_of(weight, seed=3).scores)
    assert not torch.equal(scores, constraint_of(weight, seed=4).scores)
    bound = 1 / np.sqrt(6 * 3 * 3)
    assert 0.97 * bound < scores.abs().max() <= bound and scores.mean().abs() < 0.05 * bound


# gradients


def test_the_score_gradient_is_effective_weight_gradient_times_weight_times_score_sign():
    weight, scores, g = random(6, 5), random(6, 5, seed=1), random(6, 5, seed=2)
    scores[0, 0] = 0
    constraint = constraint_of(weight, 0.3, scores=scores)
    constraint(weight).backward(g)
    assert np.array_equal(constraint.scores.grad, g.numpy() * (weight.numpy() * np.sign(scores.numpy())))
    assert constraint.scores.grad[0, 0] == 0 and constraint.scores.grad.count_nonzero() == 29  # pruned entries too


def test_the_frozen_weight_gets_no_gradient():
    weight = random(4, 3).requires_grad_()
    constraint_of(weight.detach())(weight).sum().backward()
    assert weight.grad is None


def straight_through(scores, weight):
    return ScoreThroughMask.apply(
        scores, weight, constraint_of(weight, scores=scores.detach()).effective_weight(weight)
    )


def test_the_straight_through_gradient_fails_gradcheck_and_that_of_its_surrogate_passes():
    scores = random(5, 4, dtype=torch.float64).requires_grad_()
    weight = random(5, 4, seed=1, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: weight * s.abs(), scores)
    assert not torch.autograd.gradcheck(lambda s: straight_through(s, weight), scores, raise_exception=False)


def test_the_gradient_is_that_of_the_surrogate():
    scores = random(5, 4, dtype=torch.float64).requires_grad_()
    weight, g = (random(5, 4, seed=seed, dtype=torch.float64) for seed in (1, 2))
    (found,) = torch.autograd.grad(straight_through(scores, weight), scores, g)
    (expected,) = torch.autograd.grad(weight * scores.abs(), scores, g)
    assert torch.equal(found, expected)


def test_under_autocast_the_gradient_has_the_dtype_of_the_scores():
    layer = constrain(nn.Sequential(nn.Linear(4, 3)), "SubnetConv", density=0.5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = layer(random(2, 4))
    out.float().sum().backward()
    grad = layer[0].constraint.scores.grad
    assert out.dtype == torch.bfloat16 and grad.dtype == torch.float32 and grad.any()


# cache


@pytest.fixture
def counted(monkeypatch):
    calls = []
    true = SubnetWeight.effective_weight
    monkeypatch.setattr(SubnetWeight, "effective_weight", lambda self, w: calls.append(1) or true(self, w))
    return calls


def refill(tensor):
    with torch.no_grad():
        tensor.normal_()


def reload(net):
    net.load_state_dict({name: value + 1 for name, value in net.state_dict().items()})


CHANGES = {
    "scores": lambda net: refill(net[0].constraint.scores),
    "weight": lambda net: refill(net[0].weight),
    "density": lambda net: setattr(net[0].constraint, "density", 0.25),
    "load_state_dict": reload,
    "train() and eval()": lambda net: net.train().eval(),
    "scores.data and eval()": lambda net: refill(net[0].constraint.scores.data) or net.eval(),
    "weight.data and eval()": lambda net: refill(net[0].weight.data) or net.eval(),
    "another weight": lambda net: setattr(net[0], "weight", nn.Parameter(random(3, 4, seed=9), requires_grad=False)),
    "float64": lambda net: net.double().float(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_evaluation_computes_the_weight_once_until_something_changes(counted, change):
    net = constrain(nn.Sequential(nn.Linear(4, 3, bias=False)), "SubnetConv", density=0.5).eval()
    for _ in range(3):
        net(random(2, 4))
    assert len(counted) == 1
    CHANGES[change](net)
    for _ in range(2):
        out = net(random(2, 4))
    assert len(counted) == 2
    layer = net[0]
    expected = numpy_effective(layer.weight.numpy(), layer.constraint.scores.detach().numpy(), layer.constraint.density)
    np.testing.assert_allclose(out.detach(), random(2, 4).numpy() @ expected.T, rtol=1e-5, atol=1e-6)


def test_training_computes_the_weight_in_every_pass_and_evaluation_gives_the_same(counted):
    net = constrain(nn.Sequential(nn.Conv2d(3, 8, 3)), "SubnetConv", density=0.5)
    x = random(2, 3, 5, 5)
    trained = [net(x) for _ in range(2)]
    assert len(counted) == 2
    assert torch.equal(trained[1], net.eval()(x))


def test_the_cached_weight_still_gives_gradients():
    net = constrain(nn.Sequential(nn.Linear(4, 3, bias=False)), "SubnetConv", density=0.5).eval()
    grads = []
    for _ in range(2):
        net.zero_grad()
        net(random(2, 4)).sum().backward()
        grads.append(net[0].constraint.scores.grad.clone())
    assert torch.equal(*grads) and grads[0].any()


def test_magnitude_and_sign_of_a_frozen_weight_are_computed_once():
    weight, constraint, calls = random(6, 5), constraint_of(random(6, 5)), []
    compute = constraint._magnitude_and_sign
    constraint._magnitude_and_sign = functools.wraps(compute)(lambda w: calls.append(1) or compute(w))
    for _ in range(3):
        refill(constraint.scores)
        constraint(weight)
    assert len(calls) == 1
    refill(weight)
    found = constraint(weight).detach()
    assert len(calls) == 2
    np.testing.assert_allclose(
        found, numpy_effective(weight.numpy(), constraint.scores.detach().numpy(), 0.5), rtol=2e-6
    )


def test_a_copied_network_has_its_own_cache():
    net = constrain(nn.Sequential(nn.Linear(4, 3, bias=False)), "SubnetConv", density=0.5).eval()
    before = net(random(2, 4))
    other = copy.deepcopy(net)
    refill(other[0].weight)
    assert not torch.equal(other(random(2, 4)), before)
    assert torch.equal(net(random(2, 4)), before)
    assert torch.equal(bake(net)(random(2, 4)), before)


def test_the_state_dict_holds_no_cached_values():
    net = constrain(nn.Sequential(nn.Linear(4, 3, bias=False)), "SubnetConv", density=0.5).eval()
    net(random(2, 4))
    assert list(net.state_dict()) == ["0.weight", "0.constraint.scores"]
