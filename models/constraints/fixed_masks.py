"""Masks that stay as they are, over weights that train: selected by the scores of a trained network, or random."""

import torch
from torch import Tensor

from models.constraints.base import Constraint, tensor_version
from models.constraints.subnet import checked_density
from models.constraints.topk_mask import count_ones, keep_largest, kept_count
from models.initial import initial_scores


class FixedSubnetWeight(Constraint):
    """Constraint FixedSubnetConv: w = W · M, where M is the fixed mask of the `density` largest |scores| of the layer.

    W trains. The `scores` come from a trained subnetwork (--pretrained) and are never trained here. BIPROP took
    `density` for the fraction pruned and stored M in the place of the scores. Such a file gives the same M here if
    `density` is the fraction of ones in it.
    """

    scores: Tensor

    def __init__(self, weight: Tensor, *, density: float, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.density = checked_density(density)
        self.register_buffer("scores", initial_scores(weight.shape, generator=generator).to(weight))

    @property
    def kept(self) -> int:
        """Number of weights kept."""
        return kept_count(self.scores.numel(), self.density)

    def mask(self) -> Tensor:
        """Return the mask: 1 where a weight is kept, else 0, of the shape and dtype of the scores."""
        return self.cached(self._select, None, in_training=True)

    def _select(self, _weight: None) -> Tensor:
        return keep_largest(self.scores.abs(), self.kept)

    def cache_key(self, _weight: Tensor | None) -> object:
        """Return a key that changes with the scores and the density."""
        return tensor_version(self.scores), self.density

    def forward(self, weight: Tensor) -> Tensor:
        """Return W · M."""
        return weight * self.mask()


class RandomMaskWeight(Constraint):
    """Constraint RGConv: w = W · M, where M is a fixed random mask that keeps `density` of the weights.

    W trains. Five of BIPROP's published configs (densewide/*rg_wide.yml and conv4wide_05_baseline.yml) name a conv type
    RGConv, "random graph", that its code does not define. A random mask is the nearest meaning. These configs give no
    density, so that the default of 1 holds.
    """

    mask: Tensor

    def __init__(self, weight: Tensor, *, density: float, generator: torch.Generator | None = None) -> None:
        super().__init__()
        kept = kept_count(weight.numel(), checked_density(density))
        order = torch.randperm(weight.numel(), generator=generator).to(weight.device)
        self.register_buffer("mask", (order < kept).view(weight.shape).to(weight))

    @property
    def kept(self) -> int:
        """Number of weights kept."""
        return count_ones(self.mask)

    def forward(self, weight: Tensor) -> Tensor:
        """Return W · M."""
        return weight * self.mask
