"""Batch transforms on uint8 NHWC images: pure functions of the images and of draws made beforehand from a generator."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from utils.distributed.batch_slice import BatchSlice

CROP_PAD = 4


def draw_crops(count: int, generator: torch.Generator, pad: int = CROP_PAD) -> tuple[Tensor, Tensor]:
    """(offsets int64 (count, 2): row and column in 0..2 pad; flips bool (count,)), all uniform."""
    offsets = torch.randint(0, 2 * pad + 1, (count, 2), generator=generator)
    return offsets, torch.randint(0, 2, (count,), generator=generator).bool()


def crop_flip(images: Tensor, offsets: Tensor, flips: Tensor, pad: int = CROP_PAD) -> Tensor:
    """Pad by `pad` zero pixels, crop back to size at `offsets`, mirror the columns where `flips`.

    images: uint8 (batch, height, width, channels). The order is torchvision's RandomCrop, then RandomHorizontalFlip.
    The whole is one gather of pixels: the mirror is folded into the column index.
    """
    batch, height, width, channels = images.shape
    rows, columns = height + 2 * pad, width + 2 * pad
    padded = images.new_zeros(batch, rows, columns, channels)
    padded[:, pad : pad + height, pad : pad + width] = images
    step = torch.arange(max(height, width, batch), device=images.device)
    row = offsets[:, :1] + step[:height]
    column = offsets[:, 1:] + torch.where(flips[:, None], width - 1 - step[:width], step[:width])
    pixel = (row + rows * step[:batch, None])[:, :, None] * columns + column[:, None, :]
    return padded.view(-1, channels).index_select(0, pixel.view(-1)).view(images.shape)


def affine(mean: Sequence[float], std: Sequence[float], width: int) -> tuple[Tensor, Tensor]:
    """(scale, shift), each (width * channels,), with scale x + shift = (x / 255 - mean) / std for pixels x in 0..255.

    Repeated along an image row, so that `normalise` runs over long contiguous rows and not over three channels.
    """
    scale = np.tile(1 / (255 * np.asarray(std)), width)
    shift = np.tile(-np.asarray(mean) / np.asarray(std), width)
    return torch.from_numpy(scale).float(), torch.from_numpy(shift).float()


def normalise(images: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Pixels 0..255 (batch, height, width, channels) -> float32 (batch, channels, height, width), in channels_last."""
    batch, height, width, channels = images.shape
    values = torch.addcmul(shift, images.reshape(batch, height, width * channels).float(), scale)
    return values.view(batch, height, width, channels).permute(0, 3, 1, 2)


def add_noise(
    images: Tensor, *, std: float, p_clean: float, generator: torch.Generator, share: BatchSlice | None = None
) -> Tensor:
    """With probability 1 - p_clean per image: Gaussian noise on every element, then a clamp to the range of pixels.

    images: uint8 (batch, height, width, channels); std: of pixels in [0, 1]. Returns float32 in 0..255, not rounded.
    share: which rows of a larger batch the images are; it is drawn for all of that.
    """
    share = share or BatchSlice.of(len(images), 0, 1)
    shape = share.total, *images.shape[1:]
    clean = torch.rand(share.total, 1, 1, 1, generator=generator, device=images.device) < p_clean
    noise = torch.randn(shape, generator=generator, device=images.device)[share.rows]
    noise.mul_(255 * std).masked_fill_(clean[share.rows], 0)
    return noise.add_(images).clamp_(0, 255)
