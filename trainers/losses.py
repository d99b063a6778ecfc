"""Losses on logits."""

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
    views = logits.log_softmax(dim=1).view(3, count, -1)  # logarithms: a probability of 0 has no gradient but NaN
    mixture = views.exp().mean(0).clamp(1e-7, 1).log()
    return F.kl_div(mixture.expand_as(views), views, reduction="sum", log_target=True) / len(logits)
