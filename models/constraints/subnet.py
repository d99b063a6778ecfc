"""BIPROP's SubnetConv and GlobalSubnetConv: frozen random weights of which scores keep the best; those become ±α.

Diffenderfer & Kailkhura, "Multi-Prize Lottery Ticket Hypothesis", ICLR 2021; the exact arithmetic of their code with
these repairs: α is the mean over the weights kept, at least one weight is kept, sign(0) is +1, ties have an order.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from models.constraints.base import Constraint
from models.constraints.gradients import ScoreThroughMask
from models.constraints.topk_mask import count_ones, keep_largest, keep_largest_of_all, kept_count
from models.initial import initial_scores

ROW, PIECE = 2**10, 2**18  # products added up in float32, and multiplied at a time: they stay in the cache


def checked_density(density: float) -> float:
    """Raises ValueError where `density` is no fraction of weights that could be kept."""
    if not 0 < density <= 1:
        raise ValueError(f"prune_rate: {density} of the weights kept is impossible; it must be above 0 and at most 1")
    return density


class SubnetWeight(Constraint):
    """Constraint of one layer: w = α · M · sign(W), M the mask of the `density` largest |scores| of this layer.

    `scores` has the shape of the layer's weight W. α = mean |W| over the weights kept: one scalar a layer. In
    evaluation mode the effective weight is computed once and kept until scores, weight or density change. While
    `bypassed` the layer is dense: w = W.
    """

    learns_weight = False

    def __init__(self, weight: Tensor, *, density: float, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.density = checked_density(density)
        self.bypassed = False
        self.scores = nn.Parameter(initial_scores(weight.shape, generator=generator).to(weight))
        self._parts: tuple[object, Tensor, Tensor] | None = None
        self._ready: tuple[object, Any] | None = None

    @property
    def kept(self) -> int:
        """Number of weights kept."""
        return self.scores.numel() if self.bypassed else self._kept()

    def _kept(self) -> int:
        return kept_count(self.scores.numel(), self.density)

    def _divisor(self, mask: Tensor) -> int | Tensor:  # noqa: ARG002 (here it is known without the mask)
        """The number of ones in `mask`."""
        return self._kept()

    @torch.no_grad()
    def mask(self) -> Tensor:
        """1 where a weight is kept, else 0; shape and dtype of the scores; the caller may write to it."""
        return keep_largest(self.scores.abs(), self._kept())

    @torch.no_grad()
    def effective_weight(self, weight: Tensor) -> Tensor:
        """α · M · sign(W), a new tensor of the shape of `weight`, without gradient."""
        signs, alpha = self._signs_and_alpha(weight)
        return signs.mul_(alpha)

    @torch.no_grad()
    def _signs_and_alpha(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """M · sign(W), a new tensor, and α."""
        magnitude, sign = self._magnitude_and_sign(weight)
        mask = self.mask()
        alpha = _inner(magnitude, mask) / self._divisor(mask)
        return mask.mul_(sign), alpha

    def forward(self, weight: Tensor) -> Tensor:
        if self.bypassed:
            return weight
        return ScoreThroughMask.apply(self.scores, weight, self._made(self.effective_weight, weight))

    def signs(self, weight: Tensor) -> tuple[Tensor, Tensor] | None:
        """(M · sign(W), α)."""
        if self.bypassed:
            return None
        signs, alpha = self._made(self._signs_and_alpha, weight)
        return ScoreThroughMask.apply(self.scores, weight, signs), alpha

    def train(self, mode: bool = True) -> "SubnetWeight":
        self._ready = self._parts = None  # in-place writes through .data leave no other trace
        return super().train(mode)

    def _selected_by(self) -> object:
        """What the mask depends on: equal as long as it cannot have changed."""
        return identity(self.scores), self.density

    def _made(self, make: Callable[[Tensor], Any], weight: Tensor) -> Any:
        """make(weight); in evaluation made once until something changes, the last of them is kept."""
        if self.training:
            return make(weight)
        state = (make.__name__, self._selected_by(), identity(weight))
        if self._ready is None or self._ready[0] != state:
            self._ready = (state, make(weight))
        return self._ready[1]

    def _magnitude_and_sign(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """|W| and sign(W): W is frozen, so they are computed when it is first seen, moved or loaded, not every step."""
        state = (identity(weight), self.scores.stride())
        if self._parts is None or self._parts[0] != state:
            like = torch.empty_like(self.scores, dtype=weight.dtype)  # the scores' memory format
            sign = like.copy_(weight).ge(0).to(weight.dtype).mul_(2).sub_(1)
            self._parts = (state, like.abs_(), sign)
        return self._parts[1], self._parts[2]


class GlobalSelection:
    """The masks of many layers, selected together: the `density` largest |scores| of them all, at least one a layer.

    Selected again, all at once, where scores or density are seen to have changed, and in training once a forward pass:
    torch's fused optimizers write to the scores without a trace.
    """

    def __init__(self, density: float) -> None:
        self.density = checked_density(density)
        self._members: list[GlobalSubnetWeight] = []
        self._made: tuple[object, list[Tensor]] | None = None
        self._taken: set[int] = set()

    def join(self, member: "GlobalSubnetWeight") -> int:
        """Take part; returns the member's number."""
        self._members.append(member)
        return len(self._members) - 1

    def state(self) -> object:
        """What the masks depend on: equal as long as they cannot have changed."""
        return self.density, [identity(member.scores) for member in self._members]

    @torch.no_grad()
    def masks(self) -> list[Tensor]:
        """A mask for every member, in the order in which they joined: not to be written to."""
        state = self.state()
        if self._made is None or self._made[0] != state:
            magnitudes = [member.scores.abs() for member in self._members]
            kept = kept_count(sum(m.numel() for m in magnitudes), self.density)
            self._made = (state, keep_largest_of_all(magnitudes, kept))
        return self._made[1]

    def take(self, number: int) -> Tensor:
        """Its mask for a member in training: the first, or whoever comes a second time, begins another forward pass."""
        if number == 0 or number in self._taken:
            self.forget()
        self._taken.add(number)  # the look at every member's scores is for the first alone: 105 layers, 105² looks
        return (self.masks() if self._made is None else self._made[1])[number]

    def forget(self) -> None:
        """Select anew when next asked, whatever has changed."""
        self._made, self._taken = None, set()


class GlobalSubnetWeight(SubnetWeight):
    """As SubnetWeight, but M keeps the largest |scores| of all layers of one GlobalSelection together."""

    def __init__(self, weight: Tensor, *, selection: GlobalSelection, generator: torch.Generator | None = None) -> None:
        self.selection = selection
        super().__init__(weight, density=selection.density, generator=generator)
        self._number = selection.join(self)

    @classmethod
    def maker(cls, **settings: Any) -> Callable[..., Constraint]:
        return partial(cls, selection=GlobalSelection(settings.pop("density")), **settings)

    @property
    def density(self) -> float:
        """That of the selection: the layer has none of its own, and to set one is to set that of all."""
        return self.selection.density

    @density.setter
    def density(self, density: float) -> None:
        self.selection.density = checked_density(density)

    @torch.no_grad()
    def mask(self) -> Tensor:
        shared = self.selection.take(self._number) if self.training else self.selection.masks()[self._number]
        return shared.clone()

    def _kept(self) -> int:
        return count_ones(self.selection.masks()[self._number])

    def _divisor(self, mask: Tensor) -> int | Tensor:
        return count_ones(mask) if mask.is_cpu else mask.sum(dtype=torch.float64)  # on a GPU nobody waits

    def train(self, mode: bool = True) -> "GlobalSubnetWeight":
        self.selection.forget()
        super().train(mode)
        return self

    def _selected_by(self) -> object:
        return self.selection.state()


def identity(tensor: Tensor) -> tuple[int, int]:
    """Changes whenever the tensor is written to or replaced."""
    return tensor.data_ptr(), tensor._version


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """Sum of a·b for two dense tensors of the same shape and strides, a scalar in float64.

    In float32 one dot product of 5·10⁷ weights is off by 2·10⁻⁴ and depends on the number of threads. These pairwise
    sums of rows, added up in float64, are off by about 10⁻⁷ and do not.
    """
    n, dtype = a.numel(), torch.promote_types(a.dtype, torch.float32)  # float16 ends at 65504
    a, b, whole = a.as_strided((n,), (1,)), b.as_strided((n,), (1,)), n - n % ROW
    piece = PIECE if a.is_cpu else max(1, whole)  # on a GPU every piece is a kernel
    pieces = zip(a[:whole].split(piece), b[:whole].split(piece), strict=True)
    sums = [(x * y).view(-1, ROW).sum(1, dtype=dtype) for x, y in pieces]
    return torch.cat([*sums, (a[whole:] * b[whole:]).sum(0, keepdim=True, dtype=dtype)]).sum(dtype=torch.float64)
