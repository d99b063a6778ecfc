"""Layers that several families of networks share, and checks of their widths and image sizes."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.registry import BN_TYPES
from utils.registry import lookup
from utils.torch_compat import AnyBatchNorm


class SingleValueBatchNorm(AnyBatchNorm):
    """Batch normalisation that can also train on a single value per channel.

    One image has a single value per channel after the last pool. One value has no variance, and torch's batch norm
    raises ValueError. This class then normalises with the running statistics, as in evaluation mode, and does not
    update them.

    If `uses_batch_statistics` is set, evaluation mode normalises with the statistics of the batch, as training does,
    and does not update the running statistics.
    """

    uses_batch_statistics = False

    def forward(self, input: Tensor) -> Tensor:
        if input.numel() == input.shape[1] or (self.uses_batch_statistics and not self.training):
            several = input.numel() > input.shape[1]
            running = (None, None) if several else (self.running_mean, self.running_var)
            return F.batch_norm(input, *running, self.weight, self.bias, training=several, eps=self.eps)
        return super().forward(input)


class BatchNorm1d(SingleValueBatchNorm, nn.BatchNorm1d):
    """Batch normalisation of (B, C) tensors. Also trains on a single value per channel."""


class BatchNorm2d(SingleValueBatchNorm, nn.BatchNorm2d):
    """Batch normalisation of (B, C, H, W) tensors. Also trains on a single value per channel."""


def use_batch_statistics(model: nn.Module) -> None:
    """Make every batch norm of a network use batch statistics in evaluation mode too.

    `model` is modified in place.
    """
    for module in model.modules():
        if isinstance(module, SingleValueBatchNorm):
            module.uses_batch_statistics = True


class HardInvert(nn.Module):
    """Inversion layer, which returns 1 − x for inputs of any shape.

    Source: Agrawal & Karlupia, "Learning Digital Circuits", arXiv 1909.00052.
    """

    def forward(self, x: Tensor) -> Tensor:
        return 1 - x


class SoftInvert(nn.Module):
    """Inversion layer with one learned parameter v, which returns x(1 − v) + (1 − x)v.

    Inputs have any shape. v is drawn from U(0, 1) and clamped to [0, 1] in every forward pass. Source: as `HardInvert`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.v = nn.Parameter(torch.rand(()))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.v.clamp_(0, 1)
        return x + self.v * (1 - 2 * x)


def batch_norm(kind: str, channels: int, *, spatial: bool) -> nn.Module:
    """Return a new batch-norm layer of the given kind.

    The layer is for tensors (B, channels, H, W) if `spatial` is true, else for (B, channels). `kind` is a key of
    models.registry.BN_TYPES, which has True for a kind with weight and bias. Raises ValueError if the kind is unknown.
    """
    layer = BatchNorm2d if spatial else BatchNorm1d
    return layer(channels, affine=lookup(BN_TYPES, kind, "bn_type"))


def batch_norm_1d(bn_type: str, width: int) -> nn.Module:
    """Return a batch-norm layer for tensors (B, width), for an MLP with norm=batch_norm."""
    return batch_norm(bn_type, width, spatial=False)


def hard_invert(_bn_type: str, _width: int) -> nn.Module:
    """Return a HardInvert layer, for an MLP with norm=hard_invert. The arguments are ignored."""
    return HardInvert()


def soft_invert(_bn_type: str, _width: int) -> nn.Module:
    """Return a SoftInvert layer, for an MLP with norm=soft_invert. The arguments are ignored."""
    return SoftInvert()


def scaled(width: int, factor: float) -> int:
    """Return a layer's width multiplied by `factor`, rounded down. Raises ValueError if the result is below 1."""
    if int(width * factor) < 1:
        raise ValueError(f"width_mult: {factor} leaves no channel of {width}; at least {1 / width:g} is needed")
    return int(width * factor)


def require_size(in_shape: tuple[int, int, int], halvings: int, halving_layers: str) -> None:
    """Raise ValueError if images are too small to be halved `halvings` times.

    in_shape: (channels, height, width). halving_layers: name of the layers that halve height and width, for the
    message, such as "2x2 pools".
    """
    _, height, width = in_shape
    if min(height, width) < 2**halvings:
        least = f"at least {2**halvings}x{2**halvings} is needed"
        raise ValueError(f"a {height}x{width} image is too small for {halvings} {halving_layers}: {least}")
