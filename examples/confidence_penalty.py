"""A training method of one's own: a penalty on confident outputs (Pereyra et al. 2017, arXiv:1701.06548).

python main.py --config configs/quickstart.yml --plugin examples/confidence_penalty.py --trainer confidence_penalty \
    --conv-type DenseConv --no-freeze-weights
"""

from typing import Any

import torch
from torch import Tensor

import featherweight as fw


@fw.register_trainer("confidence_penalty")
class ConfidencePenalty(fw.Method):
    """Ordinary training whose loss rewards a large entropy of the outputs.

    entropy_weight: factor of the entropy in the loss
    """

    def __init__(self, *, entropy_weight: float = 0.1, **usual: Any) -> None:
        super().__init__(**usual)
        self.entropy_weight = entropy_weight

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the mean cross-entropy minus the weighted mean entropy of the outputs, in training only."""
        loss = super().loss(logits, labels)
        if not torch.is_grad_enabled():  # in evaluation
            return loss
        entropy = -(logits.softmax(1) * logits.log_softmax(1)).sum(1).mean()
        return loss - self.entropy_weight * entropy
