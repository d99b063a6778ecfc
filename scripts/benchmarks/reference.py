"""Reference of scripts/bench.py: a reimplementation of BIPROP's network and training step.

The weights, scores and arithmetic equal those of this program (`convert`), but the costs are those of the original:

- float32 in contiguous memory, with linear layers as 1×1 convolutions
- a full sort of |scores| in every forward pass, also in evaluation mode, and a mask written through `flatten()`
- α and sign(W) recomputed in every forward pass
- anomaly detection in training, and three `.item()` calls per step
- images transformed one by one

The reference is faster than the original in one respect: the transforms work on uint8 arrays, while BIPROP decodes
and crops PIL images (12–17 ms per batch of 128).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data import SetSpec, Split
from models.activations import BinarySign, Sign

PAD = 4  # pixels, for the random crop


class AlphaMask(torch.autograd.Function):
    """BIPROP's scaled mask α·M of a layer, from the scores' magnitudes |s|, the weight W and the density k.

    forward:  M = 0 for the int((1 − k)·n) smallest |s|, else 1; α = Σ|W|·M / int(k·n)
    backward: dL/d|s| = dL/d(αM) · |W| (straight-through estimator)
    """

    @staticmethod
    def forward(ctx: Any, magnitude: Tensor, weight: Tensor, density: float) -> Tensor:
        ctx.save_for_backward(weight)
        mask = magnitude.clone()
        order = magnitude.flatten().sort().indices
        pruned = int((1 - density) * weight.numel())
        flat = mask.flatten()  # a view, because the tensor is contiguous
        flat[order[:pruned]] = 0
        flat[order[pruned:]] = 1
        alpha = (weight.abs() * mask).sum() / int(density * weight.numel())
        return alpha * mask

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return grad * weight.abs(), None, None


class ReferenceConv(nn.Module):
    """Stride-1 convolution with the effective weight sign(W)·α·M, recomputed in every call.

    `weight` and `scores` have the shape (out, in, k, k).
    """

    def __init__(self, weight: Tensor, scores: Tensor, density: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.scores = nn.Parameter(scores)
        self.density = density

    def effective_weight(self) -> Tensor:
        """Return the effective weight sign(W)·α·M. Gradients flow through it to the scores."""
        magnitude = self.scores.abs()
        scale: Tensor = AlphaMask.apply(magnitude, self.weight, self.density)  # type: ignore[no-untyped-call, unused-ignore]
        return torch.sign(self.weight) * scale

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.effective_weight(), padding=self.weight.shape[-1] // 2)


class Binarize(BinarySign):
    """Sign activation whose backward pass has the same operations as in BIPROP.

    backward: dL/dx = dL/dy · (2 − 2|x|) where |x| ≤ 1, else 0
    """

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        slope = 2 - 2 * torch.abs(x)
        slope[torch.abs(x) > 1] = 0
        return grad * slope


class BinaryActivation(nn.Module):
    """Layer that applies the sign activation `Binarize`."""

    def forward(self, x: Tensor) -> Tensor:
        return Binarize.apply(x)


class ReferenceNet(nn.Module):
    """ConvNet whose linear layers are 1×1 convolutions. Maps images (B, C, H, W) to logits (B, classes)."""

    def __init__(self, convs: nn.Sequential, linear: nn.Sequential) -> None:
        super().__init__()
        self.convs, self.linear = convs, linear

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.convs(x).flatten(1)[:, :, None, None])
        return logits.flatten(1)


def convert(model: nn.Module) -> ReferenceNet:
    """Convert one of our ConvNets to the reference, with copies of its tensors. Every layer must be a SubnetConv."""
    convs, linear = ([_layer(layer) for layer in getattr(model, part)] for part in ("convs", "linear"))
    return ReferenceNet(nn.Sequential(*convs), nn.Sequential(*linear))


def _layer(layer: nn.Module) -> nn.Module:
    match layer:
        case nn.Conv2d() | nn.Linear():
            constraint: Any = layer.constraint
            shape = (*layer.weight.shape, 1, 1)[:4]
            weight, scores = (t.detach().clone().reshape(shape).contiguous() for t in (layer.weight, constraint.scores))
            return ReferenceConv(weight, scores, constraint.density)
        case nn.BatchNorm1d() | nn.BatchNorm2d():
            return nn.BatchNorm2d(layer.num_features, affine=layer.affine).to(next(iter(layer.buffers())).dtype)
        case Sign():
            return BinaryActivation()
        case nn.ReLU():
            return nn.ReLU()
        case nn.MaxPool2d():
            return nn.MaxPool2d(layer.kernel_size)
    raise AssertionError(f"the reference has no {type(layer).__name__}")


def image_by_image(split: Split, spec: SetSpec, batch: int, *, train: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of float32 images (B, C, H, W) and labels endlessly. Images are transformed one by one."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (spec.mean, spec.std))
    while True:
        order = torch.randperm(len(split)) if train else torch.arange(len(split))
        for rows in order.split(batch):
            images = [_transform(split.images[i], mean, std, augment=train and spec.augment) for i in rows.tolist()]
            yield torch.stack(images), torch.tensor([int(split.labels[i]) for i in rows.tolist()])


def _transform(image: np.ndarray[Any, Any], mean: Tensor, std: Tensor, *, augment: bool) -> Tensor:
    if augment:
        height, width, channels = image.shape
        padded = np.zeros((height + 2 * PAD, width + 2 * PAD, channels), np.uint8)
        padded[PAD : PAD + height, PAD : PAD + width] = image
        row, column = torch.randint(0, 2 * PAD + 1, (2,)).tolist()
        image = padded[row : row + height, column : column + width]
        if torch.rand(1) < 0.5:
            image = image[:, ::-1]
    chw = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
    return chw.float().div(255).sub(mean).div(std)


@dataclass
class ReferenceStep:
    """Training step and evaluation step of BIPROP. Each reads its next batch and returns [loss, top-1, top-5]."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    train_batches: Iterator[tuple[Tensor, Tensor]]
    test_batches: Iterator[tuple[Tensor, Tensor]]
    device: torch.device

    def train(self) -> list[float]:
        """Train on the next training batch."""
        with torch.autograd.set_detect_anomaly(True):
            self.model.train()
            images, labels = (t.to(self.device) for t in next(self.train_batches))
            logits = self.model(images)
            loss = F.cross_entropy(logits, labels)
            values = _measures(loss, logits, labels)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        return values

    @torch.no_grad()
    def evaluate(self) -> list[float]:
        """Evaluate the next test batch."""
        self.model.eval()
        images, labels = (t.to(self.device) for t in next(self.test_batches))
        logits = self.model(images)
        return _measures(F.cross_entropy(logits, labels), logits, labels)


def _measures(loss: Tensor, logits: Tensor, labels: Tensor) -> list[float]:
    """Return [loss, top-1 (%), top-5 (%)]. Each `.item()` waits for the device, as in BIPROP."""
    hits = logits.topk(5).indices.eq(labels[:, None])
    top1, top5 = (hits[:, :k].float().sum() * (100 / len(labels)) for k in (1, 5))
    return [loss.item(), top1.item(), top5.item()]


def make_optimizer(name: str, model: nn.Module, lr: float) -> torch.optim.Optimizer:
    """Return the optimizer `name`: `sgd` (momentum 0.9, weight decay 1e-4, also on scores) or `adam`."""
    learned = [p for p in model.parameters() if p.requires_grad]
    if name == "adam":
        return torch.optim.Adam(learned, lr)
    return torch.optim.SGD(learned, lr, momentum=0.9, weight_decay=1e-4)
