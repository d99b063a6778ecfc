"""Properties of SubnetConv's masks and weights for any shape, density, dtype, memory format and ties."""

import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from models.constraints import topk_mask
from models.constraints.subnet import SubnetWeight
from models.constraints.topk_mask import keep_largest, kept_count

FAST = settings(deadline=None, max_examples=80)
SHAPES = st.lists(st.integers(1, 9), min_size=2, max_size=2) | st.lists(st.integers(1, 5), min_size=4, max_size=4)
DENSITIES = st.floats(0, 1, exclude_min=True)
DTYPES = st.sampled_from(list(topk_mask._BITS))
SEEDS = st.integers(0, 2**31)
LEVELS = st.sampled_from([1, 2, 5, 10**6])  # distinct magnitudes of the scores: few give ties


def draw(shape, dtype, seed, levels, *, channels_last=False):
    """Draw scores and weights with repeated values, zeros and both signs."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(0, levels, shape, generator=generator) - levels // 3
    tensor = (drawn / min(levels, 100)).to(dtype)
    return tensor.contiguous(memory_format=torch.channels_last) if channels_last and len(shape) == 4 else tensor


def made(shape, density, dtype, seed, levels, channels_last):
    weight = draw(shape, dtype, seed + 1, 10**6)
    constraint = SubnetWeight(weight, density=density)
    constraint.scores.data = draw(shape, dtype, seed, levels, channels_last=channels_last)
    return constraint, weight


@FAST
@given(SHAPES, DENSITIES, DTYPES, SEEDS, LEVELS, st.booleans())
@example([1, 1], 5e-324, torch.float32, 0, 1, False)
@example([5, 5, 5, 5], 1.0, torch.bfloat16, 0, 1, True)
def test_effective_weights_are_minus_alpha_zero_or_alpha_with_an_exact_count(shape, density, dtype, seed, levels, last):
    constraint, weight = made(shape, density, dtype, seed, levels, last)
    mask, effective = constraint.mask(), constraint.effective_weight(weight)
    kept = kept_count(weight.numel(), constraint.density)
    assert 1 <= kept == constraint.kept <= weight.numel()
    assert set(mask.unique().tolist()) <= {0, 1} and int(mask.double().sum()) == kept
    assert effective.isfinite().all() and effective.dtype == weight.dtype and effective.shape == weight.shape
    alpha = (weight.double().abs() * mask.double()).sum() / kept
    expected = alpha * mask.double() * torch.where(weight >= 0, 1.0, -1.0)
    torch.testing.assert_close(effective.double(), expected, rtol=4 * torch.finfo(weight.dtype).eps + 1e-6, atol=1e-7)
    assert len(effective.abs().unique()) <= 2


@FAST
@given(SHAPES, DTYPES, SEEDS, LEVELS, st.booleans(), st.data())
def test_weights_are_kept_by_magnitude_and_then_by_row_major_index(shape, dtype, seed, levels, last, data):
    scores = draw(shape, dtype, seed, levels, channels_last=last)
    kept = data.draw(st.integers(1, scores.numel()))
    mask = keep_largest(scores.abs(), kept)
    ranked = sorted((abs(value), index) for index, value in enumerate(scores.reshape(-1).tolist()))
    chosen = {index for _, index in ranked[len(ranked) - kept :]}
    assert set(mask.reshape(-1).nonzero().flatten().tolist()) == chosen
    assert mask.stride() == scores.abs().stride()


@FAST
@given(SHAPES, DTYPES, SEEDS, LEVELS, st.booleans(), st.data())
def test_host_and_device_select_the_same(shape, dtype, seed, levels, last, data):
    magnitude = draw(shape, dtype, seed, levels, channels_last=last).abs()
    pruned = data.draw(st.integers(0, magnitude.numel() - 1))
    bits = magnitude.view(topk_mask._BITS[dtype])
    host, device = torch.empty_like(magnitude), torch.empty_like(magnitude)
    topk_mask._fill_on_host([bits], pruned, [host])
    topk_mask._fill_on_device([bits], pruned, [device])
    assert torch.equal(host, device)


@FAST
@given(SHAPES, DENSITIES, DENSITIES, SEEDS, LEVELS)
def test_a_larger_density_keeps_every_weight_that_a_smaller_one_keeps(shape, one, other, seed, levels):
    low, high = sorted((one, other))
    scores = draw(shape, torch.float32, seed, levels).abs()
    few, many = (keep_largest(scores, kept_count(scores.numel(), density)) for density in (low, high))
    assert (few <= many).all()


@FAST
@given(st.integers(1, 10**7), DENSITIES)
def test_the_kept_fraction_is_within_one_weight_of_the_density(n, density):
    kept = kept_count(n, density)
    assert 1 <= kept <= n and abs(kept - density * n) <= 1 + 1e-6


@FAST
@given(SHAPES, DENSITIES, SEEDS, LEVELS, st.booleans())
def test_the_score_gradient_ignores_mask_and_alpha(shape, density, seed, levels, last):
    constraint, weight = made(shape, density, torch.float32, seed, levels, last)
    g = draw(shape, torch.float32, seed + 2, 10**6)
    constraint(weight).backward(g)
    assert torch.equal(constraint.scores.grad, g * (weight * constraint.scores.detach().sign()))


@FAST
@given(SHAPES, DENSITIES, DTYPES, SEEDS, LEVELS, st.booleans())
def test_evaluation_and_training_agree_to_the_bit(shape, density, dtype, seed, levels, last):
    constraint, weight = made(shape, density, dtype, seed, levels, last)
    assert torch.equal(constraint.train()(weight), constraint.eval()(weight))
    assert torch.equal(constraint(weight), constraint.train()(weight))
