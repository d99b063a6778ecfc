"""A constraint of one's own: ternary weights (Li & Liu 2016, arXiv:1605.04711).

python main.py --config configs/prune/quick.yml --plugin examples/ternary_constraint.py --conv-type Ternary
"""

from torch import Tensor

import featherweight as fw


@fw.register_constraint("Ternary", weights="−α, 0 or α; W trains")
class Ternary(fw.Constraint):
    """Weights of −α, 0 and α, where α is the mean of the magnitudes above the threshold.

    threshold: weights below this share of the mean magnitude become 0
    """

    def __init__(self, weight: Tensor, *, threshold: float = 0.7) -> None:
        super().__init__(weight)
        self.threshold = threshold

    def forward(self, weight: Tensor) -> Tensor:
        magnitude = weight.abs()
        kept = magnitude > self.threshold * magnitude.mean()
        alpha = (magnitude * kept).sum() / kept.sum().clamp(min=1)
        ternary = (alpha * weight.sign() * kept).detach()
        return ternary + (weight - weight.detach())  # exactly ternary, because the difference is 0; gradient: identity
