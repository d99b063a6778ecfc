"""Which weights are kept: the largest of one tensor or of many together, exactly so many, in O(n)."""

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
    """How many of `n` weights a fraction `density` keeps: n − int((1 − density)·n), at least 1."""
    return max(1, n - int((1 - density) * n))


def keep_largest(magnitude: Tensor, kept: int) -> Tensor:
    """1 where an entry is among the `kept` largest, else 0; same shape, strides and dtype. Exactly `kept` ones.

    Among equal entries the lowest index (in row-major order, whatever the memory format) is pruned first. Not-a-number
    is the largest value. `magnitude` holds no negative entry. O(n): the threshold is selected, nothing is sorted.
    """
    return keep_largest_of_all([magnitude], kept)[0]


def keep_largest_of_all(magnitudes: Sequence[Tensor], kept: int) -> list[Tensor]:
    """A mask as of `keep_largest` for every tensor, `kept` ones over all of them together.

    Among equal entries the earlier tensor's is pruned first. No tensor is emptied: each keeps its largest entry (of
    equal ones the last), at the expense of the smallest kept elsewhere; `kept` is raised to their number at least.
    All have one dtype and device.
    """
    pruned = sum(m.numel() for m in magnitudes) - max(kept, len(magnitudes))
    if pruned <= 0:
        return [torch.ones_like(m) for m in magnitudes]
    # Non-negative floats order as their bit patterns do: integers compare faster and leave no unordered NaN.
    bits = [m.view(_BITS[m.dtype]) for m in magnitudes]
    masks = [torch.empty_like(m) for m in magnitudes]
    select = _on_host if bits[0].is_cpu else _on_device
    select(bits, pruned, masks)
    return masks


def _on_host(bits: list[Tensor], pruned: int, masks: list[Tensor]) -> None:
    while not all(counts := _fill_on_host(bits, pruned, masks)):
        # To put on top the best of a tensor that is not empty would change nothing: it is kept already.
        bits = [b if count else _with_best_on_top(b) for b, count in zip(bits, counts, strict=True)]


def _fill_on_host(bits: list[Tensor], pruned: int, masks: list[Tensor]) -> list[int]:
    """Write the masks; how many each keeps."""
    # numpy's partition is 10-60 times faster than torch's sort, kthvalue and topk on a CPU.
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
    """How many ones, exactly; torch's count_nonzero takes 90 times as long as a float32 sum, exact below 2²⁴."""
    exact = mask.dtype == torch.float32 and mask.numel() <= 2**24
    return int(mask.sum() if exact else mask.sum(dtype=torch.float64))


def _with_best_on_top(bits: Tensor) -> Tensor:
    """A copy whose largest entry, of equal ones the last, is above whatever another tensor may hold."""
    flat = bits.reshape(-1).clone()
    if flat.is_cpu:
        last = torch.tensor(len(flat) - 1 - flat.numpy()[::-1].argmax())
    else:
        last = torch.where(flat == flat.amax(), torch.arange(len(flat), device=flat.device), -1).amax()
    return flat.index_fill_(0, last, torch.iinfo(flat.dtype).max).view(bits.shape)


def _on_device(bits: list[Tensor], pruned: int, masks: list[Tensor]) -> None:
    """The same without a word from the device to the host, so that the host never waits in a forward pass."""
    ordered = torch.cat([_with_best_on_top(b).view(-1) if len(bits) > 1 else b.reshape(-1) for b in bits])
    kept = len(ordered) - pruned
    threshold = ordered.topk(kept, sorted=False).values.amin()  # kthvalue uses one block of the GPU
    chosen = ordered >= threshold
    ties = ordered == threshold
    chosen &= ~(ties & (ties.cumsum(0) <= chosen.sum() - kept))
    for mask, part in zip(masks, chosen.split([b.numel() for b in bits]), strict=True):
        mask.copy_(part.view(mask.shape))
