"""BIPROP's SubnetConv and GlobalSubnetConv: frozen random weights, of which trained scores select a binary subnetwork.

Diffenderfer & Kailkhura, "Multi-Prize Lottery Ticket Hypothesis", ICLR 2021. The arithmetic is exactly that of their
code, except for four repairs: α is the mean over the weights kept, at least one weight is kept, sign(0) is +1, and
equal scores are ordered.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn

from models.constraints.base import Cache, Constraint, tensor_version
from models.constraints.gradients import ScoreThroughMask
from models.constraints.topk_mask import count_ones, keep_largest, keep_largest_of_all, kept_count
from models.initial import initial_scores

ROW = 2**10  # products that are summed in float32
BLOCK = 2**18  # products that are computed at a time, so that they stay in the cache


def checked_density(density: float) -> float:
    """Return `density`. Raises ValueError unless it is above 0 and at most 1."""
    if not 0 < density <= 1:
        raise ValueError(f"prune_rate: {density} of the weights kept is impossible; it must be above 0 and at most 1")
    return density


class SubnetWeight(Constraint):
    """Constraint SubnetConv: w = α · M · sign(W), where M is the mask of the `density` largest |scores| of the layer.

    `scores` has the shape of the layer's weight W. The scalar α is the mean of |W| over the weights kept. While
    `bypassed` is True the layer is dense: w = W.
    """

    learns_weight = False

    def __init__(self, weight: Tensor, *, density: float, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.density = checked_density(density)
        self.bypassed = False
        self.scores = nn.Parameter(initial_scores(weight.shape, generator=generator).to(weight))

    @property
    def kept(self) -> int:
        """Number of weights kept."""
        return self.scores.numel() if self.bypassed else self._mask_size()

    def _mask_size(self) -> int:
        """Return the number of ones in the mask."""
        return kept_count(self.scores.numel(), self.density)

    def _divisor(self, mask: Tensor) -> int | Tensor:  # noqa: ARG002
        """Return the number of ones in `mask`; here it is known without a look at the mask."""
        return self._mask_size()

    @torch.no_grad()
    def mask(self) -> Tensor:
        """Return a new mask: 1 where a weight is kept, else 0, of the shape and dtype of the scores."""
        return keep_largest(self.scores.abs(), self._mask_size())

    @torch.no_grad()
    def effective_weight(self, weight: Tensor) -> Tensor:
        """Return α · M · sign(W) as a new tensor of the shape of `weight`, without gradient."""
        signs, alpha = self._signs_and_alpha(weight)
        return signs.mul_(alpha)

    def _signs_and_alpha(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return M · sign(W) as a new tensor, and α."""
        # W is frozen, so |W| and sign(W) are computed once, not in every step.
        magnitude, sign = self.cached(self._magnitude_and_sign, weight, key=self._layout, in_training=True)
        mask = self.mask()
        alpha = _dot(magnitude, mask) / self._divisor(mask)
        return mask.mul_(sign), alpha

    def _magnitude_and_sign(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return |W| and sign(W) in the memory format of the scores."""
        like = torch.empty_like(self.scores, dtype=weight.dtype)
        sign = like.copy_(weight).ge(0).to(weight.dtype).mul_(2).sub_(1)
        return like.abs_(), sign

    def _layout(self, weight: Tensor) -> object:
        """Return the cache key of |W| and sign(W)."""
        return tensor_version(weight), self.scores.stride()

    def cache_key(self, weight: Tensor | None) -> object:
        """Return a key that changes with weight, scores and density."""
        return super().cache_key(weight), self.density

    def forward(self, weight: Tensor) -> Tensor:
        """Return α · M · sign(W), or W while bypassed."""
        if self.bypassed:
            return weight
        return ScoreThroughMask.apply(self.scores, weight, self.cached(self.effective_weight, weight))

    def signs(self, weight: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return (M · sign(W), α), or None while bypassed."""
        if self.bypassed:
            return None
        signs, alpha = self.cached(self._signs_and_alpha, weight)
        return ScoreThroughMask.apply(self.scores, weight, signs), alpha


class GlobalSelection:
    """The masks of many layers, selected together: the `density` largest |scores| of all of them.

    Each layer keeps at least one weight. In evaluation the masks are selected again when scores or density change. In
    training they are selected again in every forward pass, because torch's fused optimizers step without a trace.
    """

    def __init__(self, density: float) -> None:
        self.density = checked_density(density)
        self._members: list[GlobalSubnetWeight] = []
        self._cache = Cache()
        self._pass_masks: list[Tensor] = []  # of the current forward pass in training
        self._pass_members: set[int] = set()  # the members that have their mask of this pass

    def add(self, member: "GlobalSubnetWeight") -> int:
        """Add a member and return its index."""
        self._members.append(member)
        return len(self._members) - 1

    def cache_key(self) -> object:
        """Return a key that changes whenever the masks may have changed."""
        return self.density, [tensor_version(member.scores) for member in self._members]

    def masks(self) -> list[Tensor]:
        """Return the mask of each member, in the order of their indices. The caller must not write to them."""
        return self._cache.get(self._select, self.cache_key)

    def training_mask(self, index: int) -> Tensor:
        """Return the mask of member `index` in the current forward pass. The caller must not write to it.

        A new pass begins with the first member, or with a member that has its mask of this pass already.
        """
        # One selection per pass, without a look at the scores of all members for each of them: 105 layers have 105².
        if index == 0 or index in self._pass_members or not self._pass_masks:
            self.clear()
            self._pass_masks = self._select()
        self._pass_members.add(index)
        return self._pass_masks[index]

    def clear(self) -> None:
        """Drop all masks, so that they are selected anew."""
        self._cache.clear()
        self._pass_masks, self._pass_members = [], set()

    @torch.no_grad()
    def _select(self) -> list[Tensor]:
        magnitudes = [member.scores.abs() for member in self._members]
        return keep_largest_of_all(magnitudes, kept_count(sum(m.numel() for m in magnitudes), self.density))


class GlobalSubnetWeight(SubnetWeight):
    """Constraint GlobalSubnetConv: as SubnetWeight, but M keeps the largest |scores| of all layers of `selection`."""

    def __init__(self, weight: Tensor, *, selection: GlobalSelection, generator: torch.Generator | None = None) -> None:
        self.selection = selection
        super().__init__(weight, density=selection.density, generator=generator)
        self._index = selection.add(self)

    @classmethod
    def maker(cls, **settings: Any) -> Callable[..., Constraint]:
        return partial(cls, selection=GlobalSelection(settings.pop("density")), **settings)

    @property
    def density(self) -> float:
        """Density of the whole selection. Setting it changes the density of all layers."""
        return self.selection.density

    @density.setter
    def density(self, density: float) -> None:
        self.selection.density = checked_density(density)

    @torch.no_grad()
    def mask(self) -> Tensor:
        """Return a new mask of this layer from the selection over all layers."""
        selection = self.selection
        return (selection.training_mask(self._index) if self.training else selection.masks()[self._index]).clone()

    def _mask_size(self) -> int:
        return count_ones(self.selection.masks()[self._index])

    def _divisor(self, mask: Tensor) -> int | Tensor:
        return count_ones(mask) if mask.is_cpu else mask.sum(dtype=torch.float64)  # the host does not wait for a GPU

    def train(self, mode: bool = True) -> Self:
        """Set training or evaluation mode and clear the caches of the layer and the selection."""
        self.selection.clear()
        return super().train(mode)

    def cache_key(self, weight: Tensor | None) -> object:
        """Return a key that changes with the weight, the scores of all layers and the density."""
        return self.selection.cache_key(), None if weight is None else tensor_version(weight)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Return the sum of a · b for two dense tensors of the same shape and strides, as a float64 scalar.

    One float32 dot product of 5·10⁷ weights is off by 2·10⁻⁴ and depends on the number of threads. Sums of rows that
    are added up in float64 are off by about 10⁻⁷ and do not depend on it.
    """
    n, dtype = a.numel(), torch.promote_types(a.dtype, torch.float32)  # float16 ends at 65504
    a, b, whole = a.as_strided((n,), (1,)), b.as_strided((n,), (1,)), n - n % ROW
    block = BLOCK if a.is_cpu else max(1, whole)  # on a GPU each block is a kernel launch
    blocks = zip(a[:whole].split(block), b[:whole].split(block), strict=True)
    sums = [(x * y).view(-1, ROW).sum(1, dtype=dtype) for x, y in blocks]
    return torch.cat([*sums, (a[whole:] * b[whole:]).sum(0, keepdim=True, dtype=dtype)]).sum(dtype=torch.float64)
