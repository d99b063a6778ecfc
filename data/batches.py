"""Batches of a set that lies on the device as one uint8 tensor: shuffle, crop, flip and normalise there, per batch."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from data import SetSpec, Split
from data.augment import affine, crop_flip, draw_crops, normalise


def epoch_generator(seed: int, epoch: int) -> torch.Generator:
    """A CPU generator that depends on (seed, epoch) alone; different pairs give unrelated streams."""
    # spawn_key, not entropy [seed, epoch]: there a seed of 2**32 in epoch 0 would equal seed 0 in epoch 1
    mixed = np.random.SeedSequence(seed, spawn_key=(epoch,)).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(mixed))


@dataclass(frozen=True)
class Draws:
    """One epoch's order int64 (n,) and, where augmented, per image in that order: offsets (n, 2) and flips (n,)."""

    order: Tensor
    crops: tuple[Tensor, Tensor] | None

    @classmethod
    def of_epoch(cls, count: int, augment: bool, generator: torch.Generator, device: torch.device) -> "Draws":
        """Drawn on the CPU for the whole epoch, so that it is the same on every device and from every start."""
        order = torch.randperm(count, generator=generator).to(device)
        if not augment:
            return cls(order, None)
        offsets, flips = draw_crops(count, generator)
        return cls(order, (offsets.to(device), flips.to(device)))


class DeviceBatches:
    """An iterable over one split.

    train=True: shuffled, and augmented where the set's spec says so, as a function of (seed, epoch) alone.
    train=False: in the order of the split, unchanged. limit: at most that many batches. The last batch may be smaller.
    """

    def __init__(
        self,
        split: Split,
        spec: SetSpec,
        *,
        device: torch.device | str,
        batch_size: int,
        seed: int | None,
        train: bool,
        limit: int | None = None,
    ) -> None:
        if batch_size < 1 or (limit is not None and limit < 1):
            raise ValueError(f"batch_size {batch_size} and limit {limit} must be at least 1")
        if train and seed is None:
            raise ValueError("seed: training batches need one, their order depends on it")
        self.images = torch.from_numpy(split.images).to(device)  # on the CPU: the split's own memory, not a copy
        self.labels = torch.from_numpy(split.labels).to(device)
        self.device = self.images.device
        self.batch_size, self.seed, self.augment = batch_size, seed if train else None, train and spec.augment
        self.samples = len(split) if limit is None else min(len(split), limit * batch_size)
        self.scale, self.shift = (values.to(device) for values in affine(spec.mean, spec.std, spec.in_shape[2]))

    def __len__(self) -> int:
        """Batches per epoch."""
        return math.ceil(self.samples / self.batch_size)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """(images float32 (batch, channels, height, width) in channels_last memory, normalised; labels int64 (batch,))

        from batch number `start` on: exactly the batches that a full pass gives after its first `start`.
        """
        draws = None
        if self.seed is not None:
            generator = epoch_generator(self.seed, epoch)
            draws = Draws.of_epoch(len(self.labels), self.augment, generator, self.device)
        for first in range(start * self.batch_size, self.samples, self.batch_size):
            images, labels = self.gather(slice(first, first + self.batch_size), draws)
            yield normalise(images, self.scale, self.shift), labels

    def gather(self, rows: slice, draws: Draws | None) -> tuple[Tensor, Tensor]:
        """(uint8 images (batch, height, width, channels), labels) of these positions of the epoch."""
        if draws is None:
            return self.images[rows], self.labels[rows]
        index = draws.order[rows]
        images, labels = self.images.index_select(0, index), self.labels.index_select(0, index)
        if draws.crops is not None:
            offsets, flips = draws.crops
            images = crop_flip(images, offsets[rows], flips[rows])
        return images, labels
