"""Which connections of a layer stay, which are dropped and which grow: pure rules over scores.

The notebook's progress, filter by filter (Numenta, "Sparse CNN"), and updates that keep the number of a layer's
connections: SET (Mocanu et al. 2018, arXiv 1707.04780), RigL (Evci et al. 2020, arXiv 1911.11134).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.constraints.topk_mask import kept_count


@dataclass(frozen=True)
class Change:
    """What becomes of a layer's connections: boolean tensors of the weight's shape; what is in neither is dropped.

    `kept` stay as they are; `grown` begin anew, drawn from U(−bound, bound), at 0 where `bound` is 0.
    """

    kept: Tensor
    grown: Tensor
    bound: float = 0.0

    def applied(self, weight: Tensor) -> Tensor:
        """The weight after it, a new tensor; new values come from torch's generator of the CPU on any device."""
        fresh = torch.empty(weight.shape).uniform_(-self.bound, self.bound).to(weight)
        return torch.where(self.kept, weight, fresh.mul_(self.grown))


def strongest(scores: Tensor, count: int) -> Tensor:
    """(rows, n) -> true at exactly the `count` largest of every row; of equal ones the first."""
    order = scores.argsort(dim=1, descending=True, stable=True)[:, :count]
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, order, True)


def select(drop: Tensor, grow: Tensor, keep: int, new: int) -> tuple[Tensor, Tensor]:
    """(kept, grown) of every row: the `keep` largest by `drop`, and of the others the `new` largest by `grow`."""
    kept = strongest(drop, keep)
    return kept, strongest(grow.masked_fill(kept, -math.inf), new)


def filters(weight: Tensor) -> tuple[int, int]:
    """(rows, n): a row is the kernel between one input and one output channel, or what comes into a linear unit."""
    rows = weight.shape[:2].numel() if weight.dim() == 4 else weight.shape[0]
    return rows, weight.numel() // rows


def filter_counts(n: int, keep_share: float, live_share: float) -> tuple[int, int]:
    """(k1, k2) of a filter of n connections: k1 stay as they are, k2 − k1 begin anew."""
    return max(int(keep_share * n), 1), max(int(live_share * n), 1)


def progress_connections(drop: Tensor, grow: Tensor, *, keep_share: float, live_share: float, grows: bool) -> Change:
    """In every filter: the k1 best by `drop` stay, the next k2 − k1 by `grow` begin anew, the others are dropped.

    `drop` and `grow` have the shape of the weight. New ones are Kaiming uniform as in the notebook, on a 1×m tensor, m
    being their number in a filter: bound √(6/m). The notebook loses what it redraws in a copy, so that k1 live there.
    """
    rows, n = filters(drop)
    k1, k2 = filter_counts(n, keep_share, live_share)
    new = (k2 - k1) * grows
    chosen = select(drop.reshape(rows, n), grow.reshape(rows, n), k1, new)
    kept, grown = (one.view(drop.shape) for one in chosen)
    return Change(kept, grown, math.sqrt(6 / new) if new else 0.0)


def prune_randomly(weight: Tensor, uniform: Tensor, live_share: float) -> Change:
    """Return the notebook's control (`prune_randomly`): every weight is zeroed with probability 1 − `live_share`.

    `uniform` has the shape of the weight and holds independent draws from [0, 1): a weight is kept where its draw is
    below `live_share`. Kept weights that are 0 are redrawn. As in the notebook these are Kaiming uniform on a 1×m
    tensor, m being their number in the layer: bound √(6/m). The number kept is random and can be 0.
    """
    kept = uniform < live_share
    grown = kept & (weight == 0)
    new = int(grown.sum())
    return Change(kept & ~grown, grown, math.sqrt(6 / new) if new else 0.0)


def rank_within_sign(weight: Tensor) -> Tensor:
    """Return the rank of every weight among those of its sign, divided by their number: float64, in (0, 1].

    The largest |w| of a sign has 1, of equal ones the first has more, and zeros have 0. The k lowest ranks are the same
    share of the positive and of the negative weights, rounded: the weights closest to 0 on either side (SET, alg. 1).
    """
    flat = weight.reshape(-1)
    ranks = torch.zeros_like(flat, dtype=torch.float64)
    for places in ((flat > 0).nonzero().squeeze(1), (flat < 0).nonzero().squeeze(1)):
        order = flat[places].abs().argsort(descending=True, stable=True)
        descending = torch.arange(len(places), 0, -1, dtype=torch.float64, device=flat.device)
        ranks[places[order]] = descending / max(len(places), 1)
    return ranks.view(weight.shape)


def replace_connections(
    mask: Tensor, drop: Tensor, grow: Tensor, *, target: int, fraction: float, grows: bool
) -> Change:
    """Keep the best of the connections in `mask` by `drop`, grow others by `grow`, so that `target` there are.

    A `fraction` of them is replaced; without `grows` none is, and `target` is reached by dropping alone. One that is
    dropped may grow again at once, and then stays as it is; new ones begin at 0 (RigL, section 3, as in its code).
    """
    live = mask.reshape(1, -1) > 0
    count = int(live.sum())
    replaced = int(fraction * target) if grows else 0
    keep = min(count, target - replaced)
    new = (target - keep) * grows
    kept, grown = select(drop.reshape(1, -1).masked_fill(~live, -math.inf), grow.reshape(1, -1), keep, new)
    return Change((kept | (grown & live)).view(mask.shape), (grown & ~live).view(mask.shape))


def kept_per_layer(shapes: Sequence[Sequence[int]], density: float, rule: str) -> list[int]:
    """How many connections each layer keeps so that all together keep exactly `density`, at least one each.

    `uniform`: the same share of every layer. `erdos_renyi_kernel`: as many as ε · (in + out + height + width), no more
    than there are: a share of ε (in + out + height + width) / (in · out · height · width) (RigL, section 3).
    """
    sizes = [math.prod(shape) for shape in shapes]
    parts = [float(sum(shape)) for shape in shapes] if rule == "erdos_renyi_kernel" else [float(n) for n in sizes]
    total = max(kept_count(sum(sizes), density), len(sizes))
    return _rounded(_capped(parts, sizes, total), sizes, total)


def _capped(parts: list[float], sizes: list[int], total: int) -> list[float]:
    """Shares of `total` in proportion to `parts`, none above its size: what a full layer leaves goes to the others."""
    full: set[int] = set()
    while True:
        rest = total - sum(sizes[i] for i in full)
        scale = rest / max(sum(p for i, p in enumerate(parts) if i not in full), 1e-300)
        over = {i for i, p in enumerate(parts) if i not in full and scale * p > sizes[i]}
        if not over:
            return [float(sizes[i]) if i in full else scale * p for i, p in enumerate(parts)]
        full |= over


def _rounded(shares: list[float], sizes: list[int], total: int) -> list[int]:
    """Whole numbers that add up to `total`, each at least 1 and at most its size, by the largest remainder."""
    counts = [min(max(int(share), 1), size) for share, size in zip(shares, sizes, strict=True)]
    while (missing := total - sum(counts)) != 0:
        sign = 1 if missing > 0 else -1
        able = [i for i, n in enumerate(counts) if (n < sizes[i] if missing > 0 else n > 1)]
        counts[max(able, key=lambda i: sign * (shares[i] - counts[i]))] += sign
    return counts
