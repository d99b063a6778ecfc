"""Losses on logits."""

from torch import Tensor
from torch.nn import functional as F

JSD_WEIGHT = 12.0  # of AugMix (Hendrycks et al., ICLR 2020), as in BIPROP


def cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Return the mean cross-entropy of a batch of logits and labels.

    `logits` is (B, classes) in float32, and `labels` is (B,) in int64. With three augmented views per image, logits are
    (3 B, classes), view by view. The loss is then the cross-entropy of the first view + 12 · the Jensen–Shannon
    divergence of the three views.
    """
    clean = F.cross_entropy(logits[: len(labels)], labels, label_smoothing=label_smoothing)
    return clean if len(logits) == len(labels) else clean + JSD_WEIGHT * jensen_shannon(logits, len(labels))


def jensen_shannon(logits: Tensor, images: int) -> Tensor:
    """Return the Jensen–Shannon divergence between the predictions for three augmented views of every image.

    `logits` is (3 · images, classes): the first views of all images, then the second, then the third views. The
    divergence is the mean over images and views of KL(p_view || m), where m is the mean of the three predictions,
    clamped to [1e-7, 1] (Hendrycks et al., "AugMix", ICLR 2020, eq. 1-3).
    """
    # Log-probabilities: the gradient of p · log p is NaN at p = 0.
    views = logits.log_softmax(dim=1).view(3, images, -1)
    mixture = views.exp().mean(0).clamp(1e-7, 1).log()
    return F.kl_div(mixture.expand_as(views), views, reduction="sum", log_target=True) / len(logits)
