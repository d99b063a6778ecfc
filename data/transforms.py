"""Transforms of image batches in the layout (batch, height, width, channels)."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from utils.distributed.batch_slice import BatchSlice

CROP_PAD = 4  # pixels on each side, as is usual for CIFAR-10 (arXiv:1512.03385, section 4.2)


def draw_crops(count: int, generator: torch.Generator, pad: int = CROP_PAD) -> tuple[Tensor, Tensor]:
    """Draw the crops of `count` images uniformly.

    Returns offsets, int64 (count, 2), row and column in 0..2 pad, and flips, bool (count,).
    """
    offsets = torch.randint(0, 2 * pad + 1, (count, 2), generator=generator)
    return offsets, torch.randint(0, 2, (count,), generator=generator).bool()


def crop_flip(images: Tensor, offsets: Tensor, flips: Tensor, pad: int = CROP_PAD) -> Tensor:
    """Return the images padded by `pad` zero pixels, cropped back to size at `offsets`, and mirrored where `flips`.

    images: uint8 (batch, height, width, channels). offsets: (batch, 2), row and column of the crop. flips: (batch,).
    Equals torchvision's RandomCrop followed by RandomHorizontalFlip. One gather does all: the mirror only changes the
    column indices.
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


def scale_and_shift(mean: Sequence[float], std: Sequence[float], width: int) -> tuple[Tensor, Tensor]:
    """Return (scale, shift), each (width * channels,), with scale * x + shift = (x / 255 - mean) / std.

    mean, std: per channel, of pixels in [0, 1]. The values are repeated along an image row, so that `normalise` reads
    long contiguous rows instead of three channels at a time.
    """
    scale = np.tile(1 / (255 * np.asarray(std)), width)
    shift = np.tile(-np.asarray(mean) / np.asarray(std), width)
    return torch.from_numpy(scale).float(), torch.from_numpy(shift).float()


def normalise(images: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Return scale * images + shift as float32 (batch, channels, height, width) in channels_last memory.

    images: pixels in 0..255 (batch, height, width, channels). scale, shift: from `scale_and_shift`.
    """
    batch, height, width, channels = images.shape
    values = torch.addcmul(shift, images.reshape(batch, height, width * channels).float(), scale)
    return values.view(batch, height, width, channels).permute(0, 3, 1, 2)


def add_noise(
    images: Tensor, *, std: float, p_clean: float, generator: torch.Generator, share: BatchSlice | None = None
) -> Tensor:
    """Return the images with Gaussian noise, clamped to 0..255, as float32.

    Each image stays without noise with probability `p_clean`.
    images: uint8 (batch, height, width, channels). std: of pixels in [0, 1].
    share: the rows of a larger batch that `images` are. The noise is drawn for the larger batch, so that the result
    does not depend on the number of ranks.
    """
    share = share or BatchSlice.of(len(images), 0, 1)
    shape = share.total, *images.shape[1:]
    clean = torch.rand(share.total, 1, 1, 1, generator=generator, device=images.device) < p_clean
    noise = torch.randn(shape, generator=generator, device=images.device)[share.rows]
    noise.mul_(255 * std).masked_fill_(clean[share.rows], 0)
    return noise.add_(images).clamp_(0, 255)
