"""What several families share: normalisations by name and by rank, and the rules of widths and image sizes."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from utils.registry import lookup
from utils.torch_compat import AnyBatchNorm

# AffineBatchNorm and LearnedBatchNorm are one layer: BIPROP told them apart by class only.
BN_TYPES = {"LearnedBatchNorm": True, "AffineBatchNorm": True, "NonAffineBatchNorm": False}


class SingleValueBatchNorm(AnyBatchNorm):
    """Batch normalisation that also trains on one value a channel (a batch of one behind the pools): no variance there.

    The running statistics are used then, as in evaluation, and left as they are. With `by_batch` an evaluation uses the
    batch's own statistics, as training does, and leaves the running ones as they are too.
    """

    by_batch = False

    def forward(self, input: Tensor) -> Tensor:
        if input.numel() == input.shape[1] or (self.by_batch and not self.training):
            several = input.numel() > input.shape[1]
            running = (None, None) if several else (self.running_mean, self.running_var)
            return F.batch_norm(input, *running, self.weight, self.bias, training=several, eps=self.eps)
        return super().forward(input)


class BatchNorm1d(SingleValueBatchNorm, nn.BatchNorm1d):
    """Over (B, C)."""


class BatchNorm2d(SingleValueBatchNorm, nn.BatchNorm2d):
    """Over (B, C, H, W)."""


def use_batch_statistics(model: nn.Module) -> None:
    """Let every batch norm of `model` use a batch's own statistics in evaluation too."""
    for module in model.modules():
        if isinstance(module, SingleValueBatchNorm):
            module.by_batch = True


class HardInvert(nn.Module):
    """1 − x, any shape (Agrawal & Karlupia, "Learning Digital Circuits", arXiv 1909.00052)."""

    def forward(self, x: Tensor) -> Tensor:
        return 1 - x


class SoftInvert(nn.Module):
    """x(1 − v) + (1 − x)v, any shape; one learned scalar v, initially U(0, 1), clamped to [0, 1] before every use."""

    def __init__(self) -> None:
        super().__init__()
        self.v = nn.Parameter(torch.rand(()))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.v.clamp_(0, 1)
        return x + self.v * (1 - 2 * x)


def batch_norm(kind: str, channels: int, *, spatial: bool) -> nn.Module:
    """BatchNorm over (B, channels, H, W) when spatial, else (B, channels); `kind` says whether it has weight and bias.

    Raises ValueError for an unknown kind.
    """
    layer = BatchNorm2d if spatial else BatchNorm1d
    return layer(channels, affine=lookup(BN_TYPES, kind, "bn_type"))


def scaled(width: int, factor: float) -> int:
    """int(width · factor): BIPROP truncates. Raises ValueError where no channel is left."""
    if int(width * factor) < 1:
        raise ValueError(f"width_mult: {factor} leaves no channel of {width}; at least {1 / width:g} is needed")
    return int(width * factor)


def require_size(in_shape: tuple[int, int, int], halvings: int, what: str) -> None:
    """Raise ValueError for (channels, height, width) images that cannot be halved so often; `what` halves them."""
    _, height, width = in_shape
    if min(height, width) < 2**halvings:
        least = f"at least {2**halvings}x{2**halvings} is needed"
        raise ValueError(f"a {height}x{width} image is too small for {halvings} {what}: {least}")
