"""SampleSubnetConv: weights under a random mask, which every forward pass draws anew."""

import torch
from torch import Tensor, nn

from models.constraints.base import Constraint
from models.constraints.gradients import ThroughSampling
from models.initial import initial_scores


class SampleSubnetWeight(Constraint):
    """Constraint SampleSubnetConv, which draws a random mask in every forward pass.

    Each weight is kept with probability sigmoid(score). The effective weight is W · B, where the mask B ~
    Bernoulli(sigmoid(scores)) is drawn in every forward pass, also in evaluation mode. `scores` has the shape of the
    layer's weight W. Both train, unless W is frozen. While `bypassed` is True the effective weight is W.
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
        """Expected number of weights kept in a forward pass, rounded to an integer."""
        if self.bypassed:
            return self.scores.numel()
        return round(float(torch.sigmoid(self.scores.detach()).double().sum()))

    def forward(self, weight: Tensor) -> Tensor:
        """Return `weight` times a newly drawn mask of zeros and ones.

        If the constraint is switched off (`bypassed`), `weight` itself is returned.
        """
        return weight if self.bypassed else weight * ThroughSampling.apply(torch.sigmoid(self.scores))
