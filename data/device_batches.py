"""Batches of a split: which images, in which order, how they are drawn. `DeviceBatches` prepares them on the device."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.registry import SetSpec
from data.transforms import add_noise, affine, crop_flip, draw_crops, normalise
from data.types import NO_AUGMENTATION, Augmentation, Split
from utils.distributed.batch_slice import BatchSlice


def derived_seed(seed: int, *key: int) -> int:
    """A seed for torch that depends on all of (seed, *key); different ones give unrelated streams."""
    # spawn_key, not entropy [seed, epoch]: there a seed of 2**32 in epoch 0 would equal seed 0 in epoch 1
    return int(np.random.SeedSequence(seed, spawn_key=key).generate_state(1, np.uint64)[0])


def epoch_generator(seed: int, epoch: int) -> torch.Generator:
    """A CPU generator that depends on (seed, epoch) alone."""
    return torch.Generator().manual_seed(derived_seed(seed, epoch))


@dataclass(frozen=True)
class Draws:
    """One epoch's order int64 (n,) and, where augmented, per image in that order: offsets (n, 2) and flips (n,)."""

    order: Tensor
    crops: tuple[Tensor, Tensor] | None

    @classmethod
    def of_epoch(cls, count: int, augment: bool, generator: torch.Generator) -> "Draws":
        """Drawn on the CPU for the whole epoch, so that it is the same on every device and from every start."""
        order = torch.randperm(count, generator=generator)
        return cls(order, draw_crops(count, generator) if augment else None)

    def to(self, device: torch.device) -> "Draws":
        crops = None if self.crops is None else (self.crops[0].to(device), self.crops[1].to(device))
        return Draws(self.order.to(device), crops)


class Batches(ABC):
    """An iterable over one split.

    train=True: shuffled, and augmented as the set's spec and `augmentation` say, as a function of (seed, epoch) alone,
    but for Gaussian noise, which also depends on the kind of device and on the batch size.
    train=False: in the order of the split, unchanged. limit: at most that many batches. The last batch may be smaller.
    part: (number, of): that of `of` processes. In training it has its slice of every batch, in evaluation whole batches
    in turn: all together have what one process alone has, every image once.
    one_batch: training runs over the first batch of epoch 0 alone, in every epoch: can the network learn it by heart?
    """

    def __init__(
        self,
        count: int,
        spec: SetSpec,
        *,
        device: torch.device | str,
        batch_size: int,
        seed: int | None,
        train: bool,
        limit: int | None = None,
        augmentation: Augmentation = NO_AUGMENTATION,
        one_batch: bool = False,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        if batch_size < 1 or (limit is not None and limit < 1):
            raise ValueError(f"batch_size {batch_size} and limit {limit} must be at least 1")
        if train and seed is None:
            raise ValueError("seed: training batches need one, their order depends on it")
        self.count, self.spec, self.device, self.batch_size = count, spec, torch.device(device), batch_size
        self.seed = seed if train else None
        self.augment = train and spec.augment
        self.augmentation = augmentation if train else NO_AUGMENTATION
        self.one_batch, self.train, self.part = train and one_batch, train, part
        batches = 1 if self.one_batch else limit
        self.samples = count if batches is None else min(count, batches * batch_size)
        self.scale, self.shift = (v.to(device) for v in affine(spec.mean, spec.std, spec.in_shape[2]))

    def __len__(self) -> int:
        """Batches per epoch."""
        return math.ceil(self.samples / self.batch_size)

    def prepare(self) -> None:  # noqa: B027 (most need nothing)
        """Take what every epoch needs, so that a lack of it ends a run before training."""

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """(images float32 (batch, channels, height, width) in channels_last memory, normalised; labels int64 (batch,))

        from batch number `start` on: exactly the batches that a full pass gives after its first `start`. With
        augmentation.jsd (3 batch, ...) images: all clean ones, then two augmented views of each, in the same order.
        """
        for number, (images, labels) in enumerate(self.pixels(epoch, start), start):
            if self.augmentation.gaussian and self.seed is not None:
                images = self.noisy(images, derived_seed(self.seed, epoch, number, 0), self.share(number))
            if self.spec.binary:
                images = images.ge(127.5)
            yield normalise(images, self.scale, self.shift), labels

    @abstractmethod
    def pixels(self, epoch: int, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        """(uint8 images (batch, height, width, channels), labels (batch,)) on the device, from batch `start` on."""

    def draws(self, epoch: int) -> Draws | None:
        """What an epoch of training draws, on the CPU; None for evaluation."""
        if self.seed is None:
            return None
        draws = Draws.of_epoch(self.count, self.augment, epoch_generator(self.seed, epoch))
        if not self.one_batch:
            return draws
        return Draws(Draws.of_epoch(self.count, False, epoch_generator(self.seed, 0)).order, draws.crops)

    def share(self, number: int) -> BatchSlice:
        """What this process has of a batch of training: its rows among those of all."""
        total = min(self.batch_size, self.samples - number * self.batch_size)
        return BatchSlice.of(total, *self.part)

    def slices(self, start: int) -> Iterator[slice]:
        """The positions in the epoch of what this process has of each batch from number `start` on."""
        number, of = self.part
        for batch in range(start, len(self)):
            first = batch * self.batch_size
            if self.train:
                rows = self.share(batch).rows
                yield slice(first + rows.start, first + rows.stop)
            elif batch % of == number:
                yield slice(first, min(first + self.batch_size, self.samples))

    def noisy(self, images: Tensor, seed: int, share: BatchSlice) -> Tensor:
        """The images with Gaussian noise; with jsd the images and two noisy views of each."""
        generator = torch.Generator(self.device).manual_seed(seed)
        a = self.augmentation
        views = [
            add_noise(images, std=a.std_gauss, p_clean=a.p_clean, generator=generator, share=share)
            for _ in range(1 + a.jsd)
        ]
        return torch.cat([images.float(), *views]) if a.jsd else views[0]


class DeviceBatches(Batches):
    """A split that lies on the device as one uint8 tensor: shuffled, cropped and flipped there, per batch."""

    def __init__(self, split: Split, spec: SetSpec, **options: Any) -> None:
        super().__init__(len(split), spec, **options)
        if self.augmentation.augmix:
            raise ValueError("augmix: it works image by image, in LoaderBatches")
        self.images = torch.from_numpy(split.images).to(self.device)  # on the CPU: the split's own memory, not a copy
        self.labels = torch.from_numpy(split.labels).to(self.device)
        self.device = self.images.device

    def pixels(self, epoch: int, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        draws = self.draws(epoch)
        if draws is not None:
            draws = draws.to(self.device)
        for rows in self.slices(start):
            yield self.gather(rows, draws)

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
