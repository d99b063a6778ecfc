"""Transforms of image batches in the layout (batch, height, width, channels)."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from utils.distributed.batch_slice import BatchSlice

CROP_PAD = 4  # pixels on each side, as is usual for CIFAR-10 (arXiv:1512.03385, section 4.2)


def draw_crops(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw uniformly random crop offsets and flips for `count` images.

    offsets: int64 (count, 2), row and column in 0..2 CROP_PAD. flips: bool (count,).
    """
    offsets = torch.randint(0, 2 * CROP_PAD + 1, (count, 2), generator=generator)
    return offsets, torch.randint(0, 2, (count,), generator=generator).bool()


def crop_flip(images: Tensor, offsets: Tensor, flips: Tensor, pad: int = CROP_PAD) -> Tensor:
    """Pad the images with zeros, crop them back to their size, and mirror some of them.

    images: uint8 (batch, height, width, channels). pad: number of zero pixels on each side. offsets: (batch, 2), row
    and column of the crop. flips: (batch,), True for the images to mirror.
    The result equals that of torchvision's RandomCrop and RandomHorizontalFlip. A single gather is enough, because
    mirroring only changes the column indices.
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
    """Return the scale and shift that standardise pixels by a mean and a standard deviation.

    For a pixel x in 0..255, scale * x + shift equals (x / 255 - mean) / std.

    mean, std: per channel, of pixels in [0, 1]. scale, shift: (width * channels,). The values are repeated along an
    image row, so that `normalise` reads long contiguous rows instead of three channels at a time.
    """
    scale = np.tile(1 / (255 * np.asarray(std)), width)
    shift = np.tile(-np.asarray(mean) / np.asarray(std), width)
    return torch.from_numpy(scale).float(), torch.from_numpy(shift).float()


def normalise(images: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Return scale * images + shift, which standardises a batch of images.

    The result is float32 (batch, channels, height, width) in channels_last memory.
    images: pixels in 0..255 (batch, height, width, channels). scale, shift: from `scale_and_shift`.
    """
    batch, height, width, channels = images.shape
    values = torch.addcmul(shift, images.reshape(batch, height, width * channels).float(), scale)
    return values.view(batch, height, width, channels).permute(0, 3, 1, 2)


def add_noise(
    images: Tensor, *, std: float, p_clean: float, generator: torch.Generator, batch_slice: BatchSlice | None = None
) -> Tensor:
    """Add Gaussian noise to the images, clamp them to 0..255, and return them as float32.

    With probability `p_clean`, an image gets no noise.
    images: uint8 (batch, height, width, channels). std: of pixels in [0, 1].
    batch_slice: the rows of the global batch that `images` contains, or None for all. The noise is sampled for the
        global batch, so that the result does not depend on the number of ranks.
    """
    batch_slice = batch_slice or BatchSlice.of(len(images), 0, 1)
    shape = batch_slice.total, *images.shape[1:]
    clean = torch.rand(batch_slice.total, 1, 1, 1, generator=generator, device=images.device) < p_clean
    noise = torch.randn(shape, generator=generator, device=images.device)[batch_slice.rows]
    noise.mul_(255 * std).masked_fill_(clean[batch_slice.rows], 0)
    return noise.add_(images).clamp_(0, 255)
