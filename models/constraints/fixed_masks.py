"""Fixed masks over weights that train: random masks, and masks from the scores of a trained network."""

import torch
from torch import Tensor

from models.constraints.base import Constraint
from models.constraints.subnet import checked_density
from models.constraints.topk_mask import count_ones, keep_largest, kept_count
from models.initial import initial_scores
from utils.torch_compat import tensor_version


class FixedSubnetWeight(Constraint):
    """Constraint FixedSubnetConv, which multiplies the layer's trained weight by a fixed mask.

    The effective weight is W · M. W is the layer's weight, which trains. The mask M keeps a fraction `density` of the
    layer's weights, those with the largest |scores|. The `scores` come from a trained subnetwork (--pretrained) and do
    not train. BIPROP took `density` for the fraction pruned, and stored M instead of the scores. Such a file gives the
    same M here if `density` is the fraction of ones in it.
    """

    scores: Tensor

    def __init__(self, weight: Tensor, *, density: float, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.density = checked_density(density)
        self.register_buffer("scores", initial_scores(weight.shape, generator=generator).to(weight))

    @property
    def kept(self) -> int:
        """Number of weights that the mask keeps."""
        return kept_count(self.scores.numel(), self.density)

    def mask(self) -> Tensor:
        """Return the mask of the weights with the largest scores.

        The mask is 1 for the largest |scores|, else 0. It has the shape and dtype of `scores`.
        """
        return self.cached(self._select, None, in_training=True)

    def _select(self, _weight: None) -> Tensor:
        return keep_largest(self.scores.abs(), self.kept)

    def cache_key(self, _weight: Tensor | None) -> object:
        """Return a cache key that changes with the scores and the density."""
        return tensor_version(self.scores), self.density

    def forward(self, weight: Tensor) -> Tensor:
        """Return `weight` times the fixed mask."""
        return weight * self.mask()


class RandomMaskWeight(Constraint):
    """Constraint RGConv, which multiplies the layer's trained weight by a fixed random mask.

    The effective weight is W · M. W is the layer's weight, which trains. The mask M keeps a fraction `density` of the
    weights. Five of BIPROP's published configs (densewide/*rg_wide.yml and conv4wide_05_baseline.yml) name a conv type
    RGConv, "random graph", that BIPROP's code does not define. A random mask is the nearest meaning. These configs set
    no density, so that the default of 1 applies.
    """

    mask: Tensor

    def __init__(self, weight: Tensor, *, density: float, generator: torch.Generator | None = None) -> None:
        super().__init__()
        kept = kept_count(weight.numel(), checked_density(density))
        order = torch.randperm(weight.numel(), generator=generator).to(weight.device)
        self.register_buffer("mask", (order < kept).view(weight.shape).to(weight))

    @property
    def kept(self) -> int:
        """Number of weights that the mask keeps."""
        return count_ones(self.mask)

    def forward(self, weight: Tensor) -> Tensor:
        """Return `weight` times the fixed mask."""
        return weight * self.mask
