"""Masks over weights that keep their values: drawn at every pass, taken from trained scores, or random for good."""

import torch
from torch import Tensor, nn

from models.constraints.base import Constraint
from models.constraints.gradients import ThroughSampling
from models.constraints.subnet import checked_density, identity
from models.constraints.topk_mask import count_ones, keep_largest, kept_count
from models.initial import initial_scores


class SampleSubnetWeight(Constraint):
    """Constraint SampleSubnetConv: w = W · B, B ~ Bernoulli(sigmoid(scores)) at every forward pass, in evaluation too.

    `scores` has the shape of the layer's weight W, which trains as well unless it is frozen. While `bypassed` the layer
    is dense: w = W.
    """

    def __init__(
        self, weight: Tensor, *, score_init_constant: float | None = None, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.bypassed = False
        self.scores = nn.Parameter(initial_scores(weight.shape, generator=generator).to(weight))
        if score_init_constant is not None:
            nn.init.constant_(self.scores, score_init_constant)

    @property
    def kept(self) -> int:
        """How many weights a pass keeps on average, rounded."""
        return (
            self.scores.numel() if self.bypassed else round(float(torch.sigmoid(self.scores.detach()).double().sum()))
        )

    def forward(self, weight: Tensor) -> Tensor:
        return weight if self.bypassed else weight * ThroughSampling.apply(torch.sigmoid(self.scores))


class FixedSubnetWeight(Constraint):
    """Constraint FixedSubnetConv: w = W · M; W trains, M stays, the `density` largest |scores| of this layer.

    `scores` come from a trained ticket (--pretrained) and are never trained here. BIPROP took `density` for the
    fraction pruned, and wrote M over the scores: such a file gives the same M here if its ones are as many as are kept.
    """

    scores: Tensor

    def __init__(self, weight: Tensor, *, density: float, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.density = checked_density(density)
        self.register_buffer("scores", initial_scores(weight.shape, generator=generator).to(weight))
        self._made: tuple[object, Tensor] | None = None

    @property
    def kept(self) -> int:
        """Number of weights kept."""
        return kept_count(self.scores.numel(), self.density)

    def mask(self) -> Tensor:
        """1 where a weight is kept, else 0; shape and dtype of the scores."""
        state = (identity(self.scores), self.density)
        if self._made is None or self._made[0] != state:
            self._made = (state, keep_largest(self.scores.abs(), self.kept))
        return self._made[1]

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask()

    def train(self, mode: bool = True) -> "FixedSubnetWeight":
        self._made = None  # in-place writes through .data leave no other trace
        return super().train(mode)


class RandomMaskWeight(Constraint):
    """Constraint RGConv: w = W · M; W trains, M keeps a random `density` of the weights for good.

    Five of BIPROP's published configs (densewide/*rg_wide.yml and conv4wide_05_baseline.yml) name a conv type RGConv,
    "random graph", that its code never defined: this is the nearest meaning. They give no density; its default is 1.
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
        return weight * self.mask
