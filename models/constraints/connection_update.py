"""Pure functions that choose by scores which connections of a layer are kept, dropped and grown.

There are two families. The first is the rewiring of Numenta's notebook "Sparse CNN", filter by filter. The second keeps
the number of connections of a layer, as in SET (Mocanu et al. 2018, arXiv 1707.04780) and RigL (Evci et al. 2020, arXiv
1911.11134).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.constraints.topk_mask import kept_count


@dataclass(frozen=True)
class Rewiring:
    """Connections of a layer to keep and to grow.

    All other connections are dropped. `kept` and `grown` are boolean tensors of the weight's shape. A kept connection
    keeps its weight. A grown connection gets a weight from U(−bound, bound), which is 0 for the default bound of 0.
    """

    kept: Tensor
    grown: Tensor
    bound: float = 0.0

    def applied_to(self, weight: Tensor) -> Tensor:
        """Return a copy of `weight` in which connections are dropped and grown.

        The weights of grown connections come from torch's generator of the CPU.
        """
        fresh = torch.empty(weight.shape).uniform_(-self.bound, self.bound).to(weight)
        return torch.where(self.kept, weight, fresh.mul_(self.grown))


def top_per_row(scores: Tensor, count: int) -> Tensor:
    """Return a boolean mask of the largest scores in each row.

    `scores` has shape (rows, n). In each row `count` scores are chosen. Of equal scores the first are chosen.
    """
    order = scores.argsort(dim=1, descending=True, stable=True)[:, :count]
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, order, True)


def keep_and_grow(drop: Tensor, grow: Tensor, keep: int, new: int) -> tuple[Tensor, Tensor]:
    """Choose in each row which connections to keep and which others to grow.

    The `keep` connections with the largest `drop` scores are kept. Of the others, the `new` connections with the
    largest `grow` scores are grown. Both scores have shape (rows, n). Returns boolean masks (kept, grown).
    """
    kept = top_per_row(drop, keep)
    return kept, top_per_row(grow.masked_fill(kept, -math.inf), new)


def filter_shape(weight: Tensor) -> tuple[int, int]:
    """Return the number of filters in `weight` and the number of weights per filter.

    A filter is the kernel between one input and one output channel of a Conv2d, or one row of a Linear weight.
    """
    rows = weight.shape[:2].numel() if weight.dim() == 4 else weight.shape[0]
    return rows, weight.numel() // rows


def filter_counts(n: int, keep_share: float, live_share: float) -> tuple[int, int]:
    """Return the numbers of connections that a filter keeps and that it has after growing.

    Of the filter's `n` weights they are the fractions `keep_share` and `live_share`, rounded down, and at least 1.
    """
    return max(int(keep_share * n), 1), max(int(live_share * n), 1)


def rewire_filters(drop: Tensor, grow: Tensor, *, keep_share: float, live_share: float, grows: bool) -> Rewiring:
    """Choose in each filter of a layer the connections to keep and to grow.

    The connections with the largest `drop` scores are kept, and others with the largest `grow` scores are grown. Both
    scores have the weight's shape. The method is the rewiring of Numenta's notebook.

    In each filter a fraction `keep_share` of the connections is kept. Then connections are grown until a fraction
    `live_share` is live. If `grows` is False nothing is grown.

    Grown weights come from U(−√(6/m), √(6/m)) for m grown weights per filter. This is Kaiming's uniform initialisation
    of a 1×m tensor, as in the notebook. The notebook initialises them in a copy that is then lost, so that only the
    kept connections live there.
    """
    rows, n = filter_shape(drop)
    keep, live = filter_counts(n, keep_share, live_share)
    new = live - keep if grows else 0
    kept, grown = (m.view(drop.shape) for m in keep_and_grow(drop.reshape(rows, n), grow.reshape(rows, n), keep, new))
    return Rewiring(kept, grown, math.sqrt(6 / new) if new else 0.0)


def prune_randomly(weight: Tensor, uniform: Tensor, live_share: float) -> Rewiring:
    """Drop connections of a layer at random, each with the same probability.

    The probability is 1 − `live_share`, as in the control experiment of Numenta's notebook. `uniform` holds an
    independent random number from [0, 1) for each weight. A connection is kept if its number is below `live_share`. The
    number of kept connections is random and can be 0. Kept weights that are 0 get a value from U(−√(6/m), √(6/m)),
    where m is their number in the layer, as in the notebook's `prune_randomly`.
    """
    kept = uniform < live_share
    grown = kept & (weight == 0)
    new = int(grown.sum())
    return Rewiring(kept & ~grown, grown, math.sqrt(6 / new) if new else 0.0)


def rank_within_sign(weight: Tensor) -> Tensor:
    """Rank the positive weights by magnitude, and separately the negative weights.

    SET drops the connections with the lowest ranks. Returns a float64 tensor of the weight's shape. Of n weights of one
    sign, the largest magnitude has rank 1 and the smallest has rank 1/n. Zeros have rank 0. Of equal weights the first
    has the higher rank. Dropping the lowest ranks drops the same fraction of the positive and of the negative weights
    (SET, alg. 1).
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
    """Drop and grow connections of a layer by their scores, as in RigL.

    Connections with the lowest `drop` scores are dropped, and connections with the largest `grow` scores are grown
    (RigL, section 3). `mask` is 1 for the connections that the layer has. All tensors have the weight's shape. The
    layer then has `target` connections, of which a `fraction` is new. Grown connections have weight 0. If a connection
    that was dropped is grown, it keeps its weight, as in RigL's code. If `grows` is False, connections are only
    dropped, until `target` connections are left.
    """
    live = mask.reshape(1, -1) > 0
    count = int(live.sum())
    replaced = int(fraction * target) if grows else 0
    keep = min(count, target - replaced)
    new = target - keep if grows else 0
    kept, grown = keep_and_grow(drop.reshape(1, -1).masked_fill(~live, -math.inf), grow.reshape(1, -1), keep, new)
    return Rewiring((kept | (grown & live)).view(mask.shape), (grown & ~live).view(mask.shape))


def kept_per_layer(shapes: Sequence[Sequence[int]], density: float, rule: str) -> list[int]:
    """Return the number of connections per layer for a network of the given density.

    Each number is at least 1. `shapes` are the shapes of the layers' weights. Rule `uniform` gives all layers the same
    density. Rule `erdos_renyi_kernel` gives a layer ε · (in + out + height + width) connections, at most all of them,
    with one ε for the network (RigL, section 3).
    """
    sizes = [math.prod(shape) for shape in shapes]
    proportions = [float(sum(shape)) for shape in shapes] if rule == "erdos_renyi_kernel" else [float(n) for n in sizes]
    total = max(kept_count(sum(sizes), density), len(sizes))
    return _rounded(_capped_shares(proportions, sizes, total), sizes, total)


def _capped_shares(proportions: list[float], sizes: list[int], total: int) -> list[float]:
    """Divide connections among layers in given proportions, up to the size of each layer.

    `total` is divided in the given `proportions`, with no share above the size of its layer in `sizes`. What a full
    layer cannot take goes to the other layers, in the same proportions.
    """
    full: set[int] = set()
    while True:
        remaining = total - sum(sizes[i] for i in full)
        scale = remaining / max(sum(p for i, p in enumerate(proportions) if i not in full), 1e-300)
        over = {i for i, p in enumerate(proportions) if i not in full and scale * p > sizes[i]}
        if not over:
            return [float(sizes[i]) if i in full else scale * p for i, p in enumerate(proportions)]
        full |= over


def _rounded(shares: list[float], sizes: list[int], total: int) -> list[int]:
    """Round the shares of the layers to integers that add up to a given total.

    `shares` has one value per layer. The method is that of the largest remainder. Each integer is at least 1 and at
    most the size of its layer in `sizes`.
    """
    counts = [min(max(int(share), 1), size) for share, size in zip(shares, sizes, strict=True)]
    while (missing := total - sum(counts)) != 0:
        sign = 1 if missing > 0 else -1
        able = [i for i, n in enumerate(counts) if (n < sizes[i] if missing > 0 else n > 1)]
        counts[max(able, key=lambda i: sign * (shares[i] - counts[i]))] += sign
    return counts
