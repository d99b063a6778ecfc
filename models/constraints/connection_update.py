"""Pure functions that choose by scores which connections of a layer are kept, dropped and grown.

Two families: the progress of Numenta's notebook "Sparse CNN", which works filter by filter, and rewiring that keeps the
number of a layer's connections, as SET (Mocanu et al. 2018, arXiv 1707.04780) and RigL (Evci et al. 2020, arXiv
1911.11134) do.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.constraints.topk_mask import kept_count


@dataclass(frozen=True)
class Rewiring:
    """The connections of a layer that are kept and grown; all others are dropped.

    `kept` and `grown` are boolean tensors of the weight's shape. Kept connections keep their weights. Grown ones get
    weights from U(−bound, bound): 0 for the default `bound`.
    """

    kept: Tensor
    grown: Tensor
    bound: float = 0.0

    def applied_to(self, weight: Tensor) -> Tensor:
        """Return the rewired weight as a new tensor. Grown weights come from torch's generator of the CPU."""
        fresh = torch.empty(weight.shape).uniform_(-self.bound, self.bound).to(weight)
        return torch.where(self.kept, weight, fresh.mul_(self.grown))


def top_per_row(scores: Tensor, count: int) -> Tensor:
    """Return a boolean mask of the `count` largest scores in each row of (rows, n). Of equal scores the first count."""
    order = scores.argsort(dim=1, descending=True, stable=True)[:, :count]
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, order, True)


def keep_and_grow(drop: Tensor, grow: Tensor, keep: int, new: int) -> tuple[Tensor, Tensor]:
    """Return boolean masks (kept, grown) for scores of shape (rows, n).

    In each row the `keep` largest scores `drop` are kept. Of the others the `new` largest scores `grow` are grown.
    """
    kept = top_per_row(drop, keep)
    return kept, top_per_row(grow.masked_fill(kept, -math.inf), new)


def filter_shape(weight: Tensor) -> tuple[int, int]:
    """Return (number of filters, weights per filter) of a weight.

    A filter is the kernel between one input and one output channel of a Conv2d, or one row of a Linear weight.
    """
    rows = weight.shape[:2].numel() if weight.dim() == 4 else weight.shape[0]
    return rows, weight.numel() // rows


def filter_counts(n: int, keep_share: float, live_share: float) -> tuple[int, int]:
    """Return (k1, k2) for a filter of n connections: k1 are kept, k2 − k1 are grown."""
    return max(int(keep_share * n), 1), max(int(live_share * n), 1)


def rewire_filters(drop: Tensor, grow: Tensor, *, keep_share: float, live_share: float, grows: bool) -> Rewiring:
    """Return the notebook's rewiring, filter by filter: keep the k1 best by `drop`, grow the k2 − k1 best others.

    `drop` and `grow` are scores of the weight's shape. `filter_counts` gives k1 and k2; without `grows` nothing is
    grown. Grown weights are Kaiming uniform on a 1×m tensor, as in the notebook: bound √(6/m) for m grown weights per
    filter. The notebook redraws them in a copy that it loses, so that only k1 connections live there.
    """
    rows, n = filter_shape(drop)
    k1, k2 = filter_counts(n, keep_share, live_share)
    new = k2 - k1 if grows else 0
    masks = keep_and_grow(drop.reshape(rows, n), grow.reshape(rows, n), k1, new)
    kept, grown = (mask.view(drop.shape) for mask in masks)
    return Rewiring(kept, grown, math.sqrt(6 / new) if new else 0.0)


def prune_randomly(weight: Tensor, uniform: Tensor, live_share: float) -> Rewiring:
    """Return the rewiring of the notebook's control experiment: drop each weight with probability 1 − `live_share`.

    `uniform` has the shape of the weight and holds independent draws from [0, 1): a weight is kept where its draw is
    below `live_share`. Kept weights that are 0 are redrawn. As in the notebook's `prune_randomly` they are Kaiming
    uniform on a 1×m tensor: bound √(6/m) for m redrawn weights in the layer. The number kept is random and can be 0.
    """
    kept = uniform < live_share
    grown = kept & (weight == 0)
    new = int(grown.sum())
    return Rewiring(kept & ~grown, grown, math.sqrt(6 / new) if new else 0.0)


def rank_within_sign(weight: Tensor) -> Tensor:
    """Return the rank of each weight among the weights of its sign, divided by their number: float64, in (0, 1].

    The largest |w| of a sign has rank 1. Of equal weights the first has the higher rank. Zeros have rank 0. The weights
    with the lowest ranks are those closest to 0, in the same fraction of the positive and the negative weights (SET,
    alg. 1).
    """
    flat = weight.reshape(-1)
    ranks = torch.zeros_like(flat, dtype=torch.float64)
    for indices in ((flat > 0).nonzero().squeeze(1), (flat < 0).nonzero().squeeze(1)):
        order = flat[indices].abs().argsort(descending=True, stable=True)
        descending = torch.arange(len(indices), 0, -1, dtype=torch.float64, device=flat.device)
        ranks[indices[order]] = descending / max(len(indices), 1)
    return ranks.view(weight.shape)


def replace_connections(
    mask: Tensor, drop: Tensor, grow: Tensor, *, target: int, fraction: float, grows: bool
) -> Rewiring:
    """Return the rewiring that leaves `target` connections and replaces a `fraction` of them (RigL, section 3).

    Of the connections in `mask` the best by `drop` are kept, and the best others by `grow` are grown, with weight 0.
    Without `grows` none is replaced: connections are only dropped, until `target` are left. A dropped connection may be
    chosen to grow; it then keeps its weight, as in RigL's code. All tensors have the weight's shape.
    """
    live = mask.reshape(1, -1) > 0
    count = int(live.sum())
    replaced = int(fraction * target) if grows else 0
    keep = min(count, target - replaced)
    new = target - keep if grows else 0
    kept, grown = keep_and_grow(drop.reshape(1, -1).masked_fill(~live, -math.inf), grow.reshape(1, -1), keep, new)
    return Rewiring((kept | (grown & live)).view(mask.shape), (grown & ~live).view(mask.shape))


def kept_per_layer(shapes: Sequence[Sequence[int]], density: float, rule: str) -> list[int]:
    """Return the number of connections for each layer of `shapes`, such that the network has exactly `density`.

    Each layer keeps at least one. Rule `uniform` gives all layers the same density. Rule `erdos_renyi_kernel` gives a
    layer ε · (in + out + height + width) connections, at most all of them, with one ε for the network (RigL, section
    3).
    """
    sizes = [math.prod(shape) for shape in shapes]
    parts = [float(sum(shape)) for shape in shapes] if rule == "erdos_renyi_kernel" else [float(n) for n in sizes]
    total = max(kept_count(sum(sizes), density), len(sizes))
    return _rounded(_capped(parts, sizes, total), sizes, total)


def _capped(parts: list[float], sizes: list[int], total: int) -> list[float]:
    """Divide `total` in proportion to `parts`, with no share above its size. The others share the surplus."""
    full: set[int] = set()
    while True:
        remaining = total - sum(sizes[i] for i in full)
        scale = remaining / max(sum(p for i, p in enumerate(parts) if i not in full), 1e-300)
        over = {i for i, p in enumerate(parts) if i not in full and scale * p > sizes[i]}
        if not over:
            return [float(sizes[i]) if i in full else scale * p for i, p in enumerate(parts)]
        full |= over


def _rounded(shares: list[float], sizes: list[int], total: int) -> list[int]:
    """Round `shares` by the largest remainder to counts that add up to `total`, from 1 to their size."""
    counts = [min(max(int(share), 1), size) for share, size in zip(shares, sizes, strict=True)]
    while (missing := total - sum(counts)) != 0:
        sign = 1 if missing > 0 else -1
        able = [i for i, n in enumerate(counts) if (n < sizes[i] if missing > 0 else n > 1)]
        counts[max(able, key=lambda i: sign * (shares[i] - counts[i]))] += sign
    return counts
