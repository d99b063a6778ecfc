"""BIPROP's SubnetConv: frozen random weights of which scores keep the best; those kept become ±α.

Diffenderfer & Kailkhura, "Multi-Prize Lottery Ticket Hypothesis", ICLR 2021; the exact arithmetic of their code with
these repairs: α is the mean over the weights kept, at least one weight is kept, sign(0) is +1, ties have an order.
"""

import numpy as np
import torch
from torch import Tensor, nn

from models.constraints.gradients import ScoreThroughMask
from models.initial import initial_scores

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
    pruned = magnitude.numel() - kept
    if pruned == 0:
        return torch.ones_like(magnitude)
    # Non-negative floats order as their bit patterns do: integers compare faster and leave no unordered NaN.
    bits = magnitude.view(_BITS[magnitude.dtype])
    select = _on_host if bits.is_cpu else _on_device
    return select(bits, pruned, torch.empty_like(magnitude))


def _on_host(bits: Tensor, pruned: int, mask: Tensor) -> Tensor:
    # numpy's partition is 10-60 times faster than torch's sort, kthvalue and topk on a CPU.
    flat = torch.empty_like(bits).copy_(bits).as_strided((bits.numel(),), (1,))
    flat.numpy().partition(pruned)
    threshold = flat[pruned]
    torch.ge(bits, threshold, out=mask)
    surplus = _count(mask) - (bits.numel() - pruned)
    if surplus:
        ties = np.flatnonzero((bits == threshold).numpy())[:surplus]  # row-major; torch.nonzero takes 8 times as long
        mask[tuple(map(torch.from_numpy, np.unravel_index(ties, bits.shape)))] = 0
    return mask


def _count(mask: Tensor) -> int:
    """How many ones, exactly; torch's count_nonzero takes 90 times as long as a float32 sum, exact below 2²⁴."""
    exact = mask.dtype == torch.float32 and mask.numel() <= 2**24
    return int(mask.sum() if exact else mask.sum(dtype=torch.float64))


def _on_device(bits: Tensor, pruned: int, mask: Tensor) -> Tensor:
    """The same without a word from the device to the host, so that the host never waits in a forward pass."""
    ordered = bits.reshape(-1)
    threshold = ordered.topk(bits.numel() - pruned, sorted=False).values.amin()  # kthvalue uses one block of the GPU
    torch.ge(bits, threshold, out=mask)
    surplus = mask.sum(dtype=torch.float64) - (bits.numel() - pruned)
    ties = (ordered == threshold).view(bits.shape)
    order_among_ties = ties.reshape(-1).cumsum(0).view(bits.shape)
    return mask.masked_fill_(ties & (order_among_ties <= surplus), 0)


class SubnetWeight(nn.Module):
    """Constraint of one layer: w = α · M · sign(W), M the mask of the `density` largest |scores| of this layer.

    `scores` has the shape of the layer's weight W. α = mean |W| over the weights kept: one scalar a layer. In
    evaluation mode the effective weight is computed once and kept until scores, weight or density change.
    """

    learns_weight = False

    def __init__(self, weight: Tensor, *, density: float, generator: torch.Generator | None = None) -> None:
        if not 0 < density <= 1:
            raise ValueError(
                f"prune_rate: {density} of the weights kept is impossible; it must be above 0 and at most 1"
            )
        super().__init__()
        self.density = density
        self.scores = nn.Parameter(initial_scores(weight.shape, generator=generator).to(weight))
        self._parts: tuple[object, Tensor, Tensor] | None = None
        self._ready: tuple[object, Tensor] | None = None

    @property
    def kept(self) -> int:
        """Number of weights kept."""
        return kept_count(self.scores.numel(), self.density)

    @torch.no_grad()
    def mask(self) -> Tensor:
        """1 where a weight is kept, else 0; shape and dtype of the scores."""
        return keep_largest(self.scores.abs(), self.kept)

    @torch.no_grad()
    def effective_weight(self, weight: Tensor) -> Tensor:
        """α · M · sign(W), a new tensor of the shape of `weight`, without gradient."""
        magnitude, sign = self._magnitude_and_sign(weight)
        mask = self.mask()
        alpha = _inner(magnitude, mask) / self.kept
        return mask.mul_(sign).mul_(alpha)

    def forward(self, weight: Tensor) -> Tensor:
        if not self.training:
            return self._cached(weight)
        return ScoreThroughMask.apply(self.scores, weight, self.effective_weight(weight))

    def train(self, mode: bool = True) -> "SubnetWeight":
        self._ready = self._parts = None  # in-place writes through .data leave no other trace
        return super().train(mode)

    def _cached(self, weight: Tensor) -> Tensor:
        state = (_identity(self.scores), _identity(weight), self.density)
        if self._ready is None or self._ready[0] != state:
            self._ready = (state, self.effective_weight(weight))
        return ScoreThroughMask.apply(self.scores, weight, self._ready[1])

    def _magnitude_and_sign(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """|W| and sign(W): W is frozen, so they are computed when it is first seen, moved or loaded, not every step."""
        identity = (_identity(weight), self.scores.stride())
        if self._parts is None or self._parts[0] != identity:
            like = torch.empty_like(self.scores, dtype=weight.dtype)  # the scores' memory format
            sign = like.copy_(weight).ge(0).to(weight.dtype).mul_(2).sub_(1)
            self._parts = (identity, like.abs_(), sign)
        return self._parts[1], self._parts[2]


def _identity(tensor: Tensor) -> tuple[int, int]:
    return tensor.data_ptr(), tensor._version


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """Sum of a·b for two dense tensors of the same shape and strides, in float32 at least: float16 ends at 65504."""
    n, dtype = (a.numel(),), torch.promote_types(a.dtype, torch.float32)
    return torch.dot(a.as_strided(n, (1,)).to(dtype), b.as_strided(n, (1,)).to(dtype))
