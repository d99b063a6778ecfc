"""SampleSubnetConv: a mask that is drawn anew in every forward pass."""

import torch
from torch import Tensor, nn

from models.constraints.base import Constraint
from models.constraints.gradients import ThroughSampling
from models.initial import initial_scores


class SampleSubnetWeight(Constraint):
    """Constraint SampleSubnetConv: w = W · B with B ~ Bernoulli(sigmoid(scores)), drawn in every forward pass.

    B is drawn in evaluation mode too. `scores` has the shape of the layer's weight W, which trains as well unless it is
    frozen. While `bypassed` is True the layer is dense: w = W.
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
        """Expected number of weights kept in a pass, rounded."""
        if self.bypassed:
            return self.scores.numel()
        return round(float(torch.sigmoid(self.scores.detach()).double().sum()))

    def forward(self, weight: Tensor) -> Tensor:
        """Return W · B for a new draw of B, or W while bypassed."""
        return weight if self.bypassed else weight * ThroughSampling.apply(torch.sigmoid(self.scores))
