"""Loss and accuracy: summed per batch on the device, averaged over a split on the host."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Metrics:
    """Mean loss, top-1 and top-5 accuracy (%) over a split."""

    loss: float
    top1: float
    top5: float

    def as_dict(self) -> dict[str, float]:
        """Return the metrics under their names in logs, tables and checkpoints."""
        return {"loss": self.loss, "acc@1": self.top1, "acc@5": self.top5}


def add_batch(sums: Tensor, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
    """Add a batch to `sums`, in place, without a transfer from the device.

    `sums` holds [loss, top-1 hits, top-5 hits, images] in float64. `loss` is the mean over the batch. Of several views
    per image, (views · B, classes) logits, the first B rows count.
    """
    hits = logits[: len(labels)].topk(min(5, logits.shape[1])).indices.eq(labels[:, None])
    sums += torch.stack([loss * len(labels), hits[:, 0].sum(), hits.sum(), loss.new_full((), len(labels))])


def metrics_of(sums: list[float]) -> Metrics:
    """Return the metrics of [loss, top-1 hits, top-5 hits, images] summed over the images of all processes."""
    loss, top1, top5, images = sums
    return Metrics(loss / images, 100 * top1 / images, 100 * top5 / images)
