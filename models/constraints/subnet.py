"""BIPROP's SubnetConv and GlobalSubnetConv: trained scores select a binary subnetwork of frozen random weights.

Diffenderfer & Kailkhura, "Multi-Prize Lottery Ticket Hypothesis", ICLR 2021. The arithmetic is exactly the arithmetic
of their code, except for four corrections: α is the mean over the kept weights, at least one weight is kept, sign(0) is
+1, and equal scores have an order.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn

from models.constraints.base import Cache, Constraint
from models.constraints.gradients import ScoreThroughMask
from models.constraints.topk_mask import count_ones, keep_largest, keep_largest_of_all, kept_count
from models.initial import initial_scores
from utils.torch_compat import tensor_version

ROW = 2**10  # number of products that are added in float32
BLOCK = 2**18  # number of products computed at a time, so that they stay in the processor's cache


def checked_density(density: float) -> float:
    """Return `density`, or raise ValueError if it is not above 0 and at most 1."""
    if not 0 < density <= 1:
        raise ValueError(f"prune_rate: {density} given; it must be above 0 and at most 1")
    return density


class SubnetWeight(Constraint):
    """Constraint SubnetConv, whose trained scores select which frozen weights to keep.

    A kept weight keeps its sign and gets the magnitude α, which is the same for all kept weights of the layer. The
    effective weight is α · M · sign(W). W is the layer's weight, which does not train. `scores` has the shape of W. M
    keeps a fraction `density` of the layer's weights, those with the largest |scores|. The scalar α is the mean of |W|
    over the kept weights. While `bypassed` is True the effective weight is W.
    """

    learns_weight = False

    def __init__(self, weight: Tensor, *, density: float, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.density = checked_density(density)
        self.bypassed = False
        self.scores = nn.Parameter(initial_scores(weight.shape, generator=generator).to(weight))

    @property
    def kept(self) -> int:
        """Number of weights that are kept."""
        return self.scores.numel() if self.bypassed else self._mask_size()

    def _mask_size(self) -> int:
        """Return the number of ones in the mask."""
        return kept_count(self.scores.numel(), self.density)

    def _ones_in(self, mask: Tensor) -> int | Tensor:  # noqa: ARG002
        """Return the number of ones in a mask, known from the density without counting."""
        return self._mask_size()

    @torch.no_grad()
    def mask(self) -> Tensor:
        """Return the mask of the weights with the largest scores.

        The mask is 1 for the largest |scores|, else 0. It is a new tensor of the shape and dtype of `scores`.
        """
        return keep_largest(self.scores.abs(), self._mask_size())

    @torch.no_grad()
    def effective_weight(self, weight: Tensor) -> Tensor:
        """Return the effective weight as a new tensor without gradient.

        It is α times the signs of `weight` under the current mask.
        """
        signs, alpha = self._signs_and_alpha(weight)
        return signs.mul_(alpha)

    def _signs_and_alpha(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return the signs of the kept weights (0 for the others) and their mean magnitude α."""
        # W is frozen, so |W| and sign(W) are computed once, not in every step.
        magnitude, sign = self.cached(self._magnitude_and_sign, weight, key=self._magnitude_key, in_training=True)
        mask = self.mask()
        alpha = _dot(magnitude, mask) / self._ones_in(mask)
        return mask.mul_(sign), alpha

    def _magnitude_and_sign(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return |weight| and sign(weight), with +1 for 0, in the memory layout of the scores."""
        like = torch.empty_like(self.scores, dtype=weight.dtype)
        sign = like.copy_(weight).ge(0).to(weight.dtype).mul_(2).sub_(1)
        return like.abs_(), sign

    def _magnitude_key(self, weight: Tensor) -> object:
        """Return a cache key that changes with the weight and the strides of the scores."""
        return tensor_version(weight), self.scores.stride()

    def cache_key(self, weight: Tensor | None) -> object:
        """Return a cache key that changes with the weight, the scores and the density."""
        return super().cache_key(weight), self.density

    def forward(self, weight: Tensor) -> Tensor:
        """Return the effective weight, with values −α, 0 and α.

        If the constraint is switched off (`bypassed`), `weight` itself is returned.
        """
        if self.bypassed:
            return weight
        return ScoreThroughMask.apply(self.scores, weight, self.cached(self.effective_weight, weight))

    def signs(self, weight: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return the signs of the kept weights, and their common magnitude α.

        The sign of the other weights is 0. The effective weight is α times the signs. Returns None if the constraint is
        switched off (`bypassed`).
        """
        if self.bypassed:
            return None
        signs, alpha = self.cached(self._signs_and_alpha, weight)
        return ScoreThroughMask.apply(self.scores, weight, signs), alpha


class GlobalSelection:
    """Joint selection of the masks of several layers, by the largest scores.

    The members are the constraints of these layers. The masks keep a fraction `density` of all weights, those with the
    largest |scores| in all layers, and at least one weight per layer. In evaluation mode the masks are selected again
    when scores or density change. In training mode they are selected again in every forward pass, because a step of a
    fused optimizer does not change `tensor_version`.
    """

    def __init__(self, density: float) -> None:
        self.density = checked_density(density)
        self._members: list[GlobalSubnetWeight] = []
        self._cache = Cache()
        self._pass_masks: list[Tensor] = []  # masks of the current forward pass in training mode
        self._pass_members: set[int] = set()  # indices of the members that got their mask in this pass

    def add(self, member: "GlobalSubnetWeight") -> int:
        """Add the constraint of a layer to the selection, and return its index."""
        self._members.append(member)
        return len(self._members) - 1

    def cache_key(self) -> object:
        """Return a cache key that changes whenever the masks may have changed."""
        return self.density, [tensor_version(member.scores) for member in self._members]

    def masks(self) -> list[Tensor]:
        """Return the masks of all layers, in the order in which the layers were added.

        The masks are cached, so the caller must not write to them.
        """
        return self._cache.get(self._select, self.cache_key)

    def training_mask(self, index: int) -> Tensor:
        """Return the mask of one layer for the current forward pass in training mode.

        `index` is the number that `add` returned for this layer. The caller must not write to the mask.

        A new pass begins when the first member, or a member that already got its mask in this pass, asks for a mask.
        """
        # All masks are selected once per pass. A comparison of cache keys for each of n layers would cost n² steps.
        if index == 0 or index in self._pass_members or not self._pass_masks:
            self.clear()
            self._pass_masks = self._select()
        self._pass_members.add(index)
        return self._pass_masks[index]

    def clear(self) -> None:
        """Remove all stored masks, so that they are selected again."""
        self._cache.clear()
        self._pass_masks, self._pass_members = [], set()

    @torch.no_grad()
    def _select(self) -> list[Tensor]:
        magnitudes = [member.scores.abs() for member in self._members]
        return keep_largest_of_all(magnitudes, kept_count(sum(m.numel() for m in magnitudes), self.density))


class GlobalSubnetWeight(SubnetWeight):
    """Constraint GlobalSubnetConv, whose trained scores select frozen weights jointly in several layers.

    The layers share `selection`. A kept weight keeps its sign and gets the magnitude α of its layer. The masks keep the
    largest |scores| of all these layers, so that the density differs between layers.
    """

    def __init__(self, weight: Tensor, *, selection: GlobalSelection, generator: torch.Generator | None = None) -> None:
        self.selection = selection
        super().__init__(weight, density=selection.density, generator=generator)
        self._index = selection.add(self)

    @classmethod
    def maker(cls, **settings: Any) -> Callable[..., Constraint]:
        return partial(cls, selection=GlobalSelection(settings.pop("density")), **settings)

    @property
    def density(self) -> float:
        """Fraction of the weights kept, over all layers with a joint selection.

        Setting the density of one layer sets it for all of them.
        """
        return self.selection.density

    @density.setter
    def density(self, density: float) -> None:
        self.selection.density = checked_density(density)

    @torch.no_grad()
    def mask(self) -> Tensor:
        """Return a copy of this layer's mask.

        The mask is selected together with the masks of all other layers.
        """
        selection = self.selection
        return (selection.training_mask(self._index) if self.training else selection.masks()[self._index]).clone()

    def _mask_size(self) -> int:
        return count_ones(self.selection.masks()[self._index])

    def _ones_in(self, mask: Tensor) -> int | Tensor:
        return count_ones(mask) if mask.is_cpu else mask.sum(dtype=torch.float64)  # the host does not wait for a GPU

    def train(self, mode: bool = True) -> Self:
        """Set training or evaluation mode, and clear the cached values.

        They are the effective weight of this layer, and the masks of all layers that are selected together.
        """
        self.selection.clear()
        return super().train(mode)

    def cache_key(self, weight: Tensor | None) -> object:
        """Return a cache key that changes with the weight, the density and all jointly selected scores."""
        return self.selection.cache_key(), None if weight is None else tensor_version(weight)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Return the dot product of two tensors as a float64 scalar.

    Both tensors have the same shape and strides, and no gaps in memory. Products are added in float32 within rows, and
    the rows in float64. The relative error is then about 10⁻⁷ and does not depend on the number of threads. A plain
    float32 dot product of 5·10⁷ weights has an error of 2·10⁻⁴, which depends on the number of threads.
    """
    n, dtype = a.numel(), torch.promote_types(a.dtype, torch.float32)  # float16 ends at 65504
    a, b, whole = a.as_strided((n,), (1,)), b.as_strided((n,), (1,)), n - n % ROW
    block = BLOCK if a.is_cpu else max(1, whole)  # on a GPU each block is a kernel launch
    blocks = zip(a[:whole].split(block), b[:whole].split(block), strict=True)
    sums = [(x * y).view(-1, ROW).sum(1, dtype=dtype) for x, y in blocks]
    return torch.cat([*sums, (a[whole:] * b[whole:]).sum(0, keepdim=True, dtype=dtype)]).sum(dtype=torch.float64)
