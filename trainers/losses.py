"""Losses on logits."""

import torch
from torch import Tensor
from torch.nn import functional as F

JSD_WEIGHT = 12.0


def cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Mean over (B, classes) float32 logits and (B,) int64 labels; with (3 B, classes) logits see `jensen_shannon`."""
    clean = F.cross_entropy(logits[: len(labels)], labels, label_smoothing=label_smoothing)
    return clean if len(logits) == len(labels) else clean + JSD_WEIGHT * jensen_shannon(logits, len(labels))


def jensen_shannon(logits: Tensor, count: int) -> Tensor:
    """Divergence of the predictions for three views: logits (3 count, classes), the views one after another.

    Mean over images and views of KL(p_view || m), m the mean of the three, clamped to [1e-7, 1] (Hendrycks et al.,
    AugMix, ICLR 2020, eq. 1-3).
    """
    views = [F.softmax(view, dim=1) for view in logits.split(count)]
    mixture = torch.stack(views).mean(0).clamp(1e-7, 1).log()
    return torch.stack([F.kl_div(mixture, view, reduction="batchmean") for view in views]).mean()
