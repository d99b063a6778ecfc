"""Masks of the k largest values of one tensor, or of several tensors together, in O(n)."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_BITS = {
    torch.float64: torch.int64,
    torch.float32: torch.int32,
    torch.bfloat16: torch.int16,
    torch.float16: torch.int16,
}


def kept_count(n: int, density: float) -> int:
    """Return how many of `n` weights are kept at a given density.

    The number is n − int((1 − density)·n), at least 1.
    """
    return max(1, n - int((1 - density) * n))


def keep_largest(magnitude: Tensor, kept: int) -> Tensor:
    """Return the mask of the `kept` largest values of `magnitude`.

    The mask is 1 for these values, 0 for the others. The mask has exactly `kept` ones, and the shape, strides and dtype
    of `magnitude`, which has no negative value. Of equal values the value with the lowest row-major index is pruned
    first, in any memory format. NaN counts as the largest value. The threshold is selected in O(n). Nothing is sorted.
    """
    return keep_largest_of_all([magnitude], kept)[0]


def keep_largest_of_all(magnitudes: Sequence[Tensor], kept: int) -> list[Tensor]:
    """Return the masks of the `kept` largest values of several tensors together.

    Each tensor has one mask, which is 1 for these values, 0 for the others. Each tensor keeps at least its largest
    value (the last of equal values), even if `kept` is smaller than the number of tensors. For each tensor that would
    keep nothing else, the smallest value kept in the other tensors is pruned instead. Of equal values in two tensors,
    the value in the earlier tensor is pruned first. All tensors have the same dtype and device. See `keep_largest` for
    the shape of masks and for NaN.
    """
    pruned = sum(m.numel() for m in magnitudes) - max(kept, len(magnitudes))
    if pruned <= 0:
        return [torch.ones_like(m) for m in magnitudes]
    # Non-negative floats have the order of their bit patterns. Integers compare faster and have no unordered NaN.
    bits = [m.view(_BITS[m.dtype]) for m in magnitudes]
    masks = [torch.empty_like(m) for m in magnitudes]
    fill = _fill_on_host if bits[0].is_cpu else _fill_on_device
    fill(bits, pruned, masks)
    return masks


def _fill_on_host(bits: list[Tensor], pruned: int, masks: list[Tensor]) -> None:
    """Fill the masks of CPU tensors, pruning the smallest values of all tensors together.

    A mask is 0 for the `pruned` smallest values of all tensors in `bits`, else 1. Each mask keeps at least the largest
    value of its tensor. `bits` has the values to rank as integers of the same order.
    """
    while not all(counts := _fill_by_threshold(bits, pruned, masks)):
        # The largest value is raised only where a mask is empty: the other masks keep their largest value already.
        bits = [b if count else _with_largest_raised(b) for b, count in zip(bits, counts, strict=True)]


def _fill_by_threshold(bits: list[Tensor], pruned: int, masks: list[Tensor]) -> list[int]:
    """Fill masks that prune the smallest values of all given CPU tensors together.

    A mask is 0 for the `pruned` smallest values of all tensors in `bits`, else 1. A mask can be all zeros. Returns the
    number of ones in each mask.
    """
    # numpy's partition is 10 to 60 times as fast as torch's sort, kthvalue and topk on a CPU.
    copies = [torch.empty_like(b).copy_(b).as_strided((b.numel(),), (1,)) for b in bits]
    flat = copies[0] if len(copies) == 1 else torch.cat(copies)
    flat.numpy().partition(pruned)
    threshold = flat[pruned]
    counts = [count_ones(torch.ge(b, threshold, out=mask)) for b, mask in zip(bits, masks, strict=True)]
    surplus = sum(counts) - (len(flat) - pruned)
    for i, (b, mask) in enumerate(zip(bits, masks, strict=True)):
        if not surplus:
            break
        ties = np.flatnonzero((b == threshold).numpy())[:surplus]  # row-major; torch.nonzero takes 8 times as long
        mask[tuple(map(torch.from_numpy, np.unravel_index(ties, b.shape)))] = 0
        counts[i] -= len(ties)
        surplus -= len(ties)
    return counts


def count_ones(mask: Tensor) -> int:
    """Return the number of ones in a mask of zeros and ones.

    The number is exact for any dtype and size.
    """
    # count_nonzero takes 90 times as long as a float32 sum, which is exact up to 2²⁴.
    exact = mask.dtype == torch.float32 and mask.numel() <= 2**24
    return int(mask.sum() if exact else mask.sum(dtype=torch.float64))


def _with_largest_raised(bits: Tensor) -> Tensor:
    """Return a copy of `bits` in which the largest value is the dtype's largest integer.

    Of equal values the last is raised. A mask of the largest values then always keeps this value.
    """
    flat = bits.reshape(-1).clone()
    if flat.is_cpu:
        last = torch.tensor(len(flat) - 1 - flat.numpy()[::-1].argmax())
    else:
        last = torch.where(flat == flat.amax(), torch.arange(len(flat), device=flat.device), -1).amax()
    return flat.index_fill_(0, last, torch.iinfo(flat.dtype).max).view(bits.shape)


def _fill_on_device(bits: list[Tensor], pruned: int, masks: list[Tensor]) -> None:
    """Fill the masks of GPU tensors, pruning the smallest values of all tensors together.

    A mask is 0 for the `pruned` smallest values of all tensors in `bits`, else 1. Each mask keeps at least the largest
    value of its tensor. `bits` has the values to rank as integers of the same order. Nothing is copied to the host,
    because a copy would block the CPU.
    """
    ordered = torch.cat([_with_largest_raised(b).view(-1) if len(bits) > 1 else b.reshape(-1) for b in bits])
    kept = len(ordered) - pruned
    threshold = ordered.topk(kept, sorted=False).values.amin()  # kthvalue uses a single block of the GPU
    chosen = ordered >= threshold
    ties = ordered == threshold
    chosen &= ~(ties & (ties.cumsum(0) <= chosen.sum() - kept))
    for mask, part in zip(masks, chosen.split([b.numel() for b in bits]), strict=True):
        mask.copy_(part.view(mask.shape))
