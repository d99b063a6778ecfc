"""Global selection over many tensors equals a sort for any shapes, dtypes, memory formats and values."""

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from models.constraints import topk_mask
from models.constraints.topk_mask import count_ones, keep_largest_of_all

FAST = settings(deadline=None, max_examples=120)
SHAPES = st.lists(
    st.lists(st.integers(1, 6), min_size=1, max_size=2) | st.lists(st.integers(1, 4), min_size=4, max_size=4),
    min_size=1,
    max_size=5,
)
DTYPES = st.sampled_from(list(topk_mask._BITS))
SEEDS = st.integers(0, 2**31)
LEVELS = st.sampled_from([1, 2, 5, 50])  # distinct magnitudes: few give ties
SHARES = st.floats(0, 1)
PATHS = pytest.mark.parametrize("select", [topk_mask._fill_on_host, topk_mask._fill_on_device], ids=["host", "device"])


def draw(shapes, dtype, seed, levels, *, odd=False):
    """Return magnitudes with ties in different memory formats. With `odd` some are infinite or NaN."""
    generator = torch.Generator().manual_seed(seed)
    drawn = []
    for number, shape in enumerate(shapes):
        values = torch.randint(0, levels, shape, generator=generator).to(dtype)
        values += number % 3  # some tensors exceed all values of others, whose masks would be empty without the floor
        if odd:
            values.view(-1)[torch.randint(0, 5, (values.numel(),), generator=generator) == 0] = math.inf
            values.view(-1)[torch.randint(0, 7, (values.numel(),), generator=generator) == 0] = math.nan
        if len(shape) == 4 and number % 2 == 0:
            values = values.contiguous(memory_format=torch.channels_last)
        drawn.append(values.abs())
    return drawn


def ranked(magnitudes):
    """Return (value, tensor, row-major index) of every entry in the order of pruning."""
    entries = [
        (math.nextafter(math.inf, 0) if value == math.inf else math.inf if math.isnan(value) else value, i, j)
        for i, magnitude in enumerate(magnitudes)
        for j, value in enumerate(magnitude.double().reshape(-1).tolist())
    ]
    return sorted(entries)


def sorted_masks(magnitudes, kept, *, floor=True):
    order = ranked(magnitudes)
    best = {i: (value, i, j) for value, i, j in order} if floor else {}  # the last entry of every tensor
    rest = [entry for entry in order if entry not in best.values()]
    chosen = [*best.values(), *rest[max(0, len(rest) - max(0, kept - len(best))) :]]
    masks = [torch.zeros(m.shape, dtype=m.dtype) for m in magnitudes]
    for _, i, j in chosen:
        masks[i].view(-1)[j] = 1
    return masks


def with_path(select, magnitudes, kept):
    pruned = sum(m.numel() for m in magnitudes) - max(kept, len(magnitudes))
    if pruned <= 0:
        return keep_largest_of_all(magnitudes, kept)
    masks = [torch.empty_like(m) for m in magnitudes]
    select([m.view(topk_mask._BITS[m.dtype]) for m in magnitudes], pruned, masks)
    return masks


@PATHS
@FAST
@given(shapes=SHAPES, dtype=DTYPES, seed=SEEDS, levels=LEVELS, odd=st.booleans(), share=SHARES)
@example(shapes=[[1], [1], [1]], dtype=torch.float32, seed=0, levels=1, odd=False, share=0.0)
@example(shapes=[[5, 5], [5]], dtype=torch.float16, seed=0, levels=1, odd=False, share=0.9)
def test_masks_equal_those_of_a_sort_that_keeps_one_per_tensor(select, shapes, dtype, seed, levels, odd, share):
    magnitudes = draw(shapes, dtype, seed, levels, odd=odd)
    total = sum(m.numel() for m in magnitudes)
    kept = max(1, round(share * total))
    found = with_path(select, magnitudes, kept)
    assert all(torch.equal(f, e) for f, e in zip(found, sorted_masks(magnitudes, kept), strict=True))
    counts = [count_ones(mask) for mask in found]
    assert sum(counts) == min(total, max(kept, len(shapes))) and min(counts) >= 1
    assert all(mask.stride() == m.stride() and mask.dtype == dtype for mask, m in zip(found, magnitudes, strict=True))


@PATHS
@FAST
@given(shapes=SHAPES, seed=SEEDS, levels=LEVELS, share=SHARES)
def test_keeping_one_per_tensor_changes_nothing_if_every_mask_has_a_one(select, shapes, seed, levels, share):
    magnitudes = draw(shapes, torch.float32, seed, levels)
    kept = max(1, round(share * sum(m.numel() for m in magnitudes)))
    without = sorted_masks(magnitudes, kept, floor=False)
    if all(mask.any() for mask in without):
        assert all(torch.equal(f, e) for f, e in zip(with_path(select, magnitudes, kept), without, strict=True))


@FAST
@given(shapes=SHAPES, dtype=DTYPES, seed=SEEDS, levels=LEVELS, odd=st.booleans(), share=SHARES)
def test_selection_does_not_change_the_magnitudes(shapes, dtype, seed, levels, odd, share):
    magnitudes = draw(shapes, dtype, seed, levels, odd=odd)
    before = [m.clone() for m in magnitudes]
    keep_largest_of_all(magnitudes, max(1, round(share * sum(m.numel() for m in magnitudes))))
    assert all(
        torch.equal(
            m,
            b,
        )
        or torch.equal(m.isnan(), b.isnan())
        for m, b in zip(magnitudes, before, strict=True)
    )


@FAST
@given(shapes=SHAPES, seed=SEEDS, levels=LEVELS, one=SHARES, other=SHARES)
def test_a_larger_count_keeps_every_value_that_a_smaller_one_keeps(shapes, seed, levels, one, other):
    magnitudes = draw(shapes, torch.float32, seed, levels)
    total = sum(m.numel() for m in magnitudes)
    few, many = (keep_largest_of_all(magnitudes, max(1, round(share * total))) for share in sorted((one, other)))
    assert all((f <= m).all() for f, m in zip(few, many, strict=True))
