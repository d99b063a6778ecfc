"""Loss and accuracy, summed over batches on the device and divided by the number of images on the host."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Metrics:
    """Mean loss, top-1 accuracy (%) and top-5 accuracy (%) over a split."""

    loss: float
    top1: float
    top5: float

    def as_dict(self) -> dict[str, float]:
        """Return the metrics by their names in logs, tables and checkpoints.

        The names are loss, acc@1 and acc@5.
        """
        return {"loss": self.loss, "acc@1": self.top1, "acc@5": self.top5}


def add_batch(sums: Tensor, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
    """Add the loss and correct predictions of a batch to the running sums.

    `sums` holds [loss, top-1 hits, top-5 hits, images] in float64. It is changed in place, without waiting for the
    device. `loss` is the mean over the batch. With several views per image, logits are (views · B, classes), and only
    the first view counts.
    """
    hits = logits[: len(labels)].topk(min(5, logits.shape[1])).indices.eq(labels[:, None])
    sums += torch.stack([loss * len(labels), hits[:, 0].sum(), hits.sum(), loss.new_full((), len(labels))])


def metrics_of(sums: list[float]) -> Metrics:
    """Return the mean loss and accuracies (%), given the sums over a split.

    `sums` holds [loss, top-1 hits, top-5 hits, images].
    """
    loss, top1, top5, images = sums
    return Metrics(loss / images, 100 * top1 / images, 100 * top5 / images)
