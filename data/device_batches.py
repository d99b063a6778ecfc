"""Batches of a split, their order and augmentation. `DeviceBatches` prepares them on the training device."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Unpack

import numpy as np
import torch
from torch import Tensor

from data.registry import SetSpec
from data.transforms import add_noise, crop_flip, draw_crops, normalise, scale_and_shift
from data.types import NO_AUGMENTATION, Augmentation, BatchOptions, Split
from utils.distributed.batch_slice import BatchSlice


def derived_seed(seed: int, *key: int) -> int:
    """Derive a 64-bit seed for torch from a seed and a key of integers.

    Different arguments give independent streams of random numbers.
    """
    # spawn_key instead of entropy [seed, epoch], with which seed 2**32 in epoch 0 equals seed 0 in epoch 1
    return int(np.random.SeedSequence(seed, spawn_key=key).generate_state(1, np.uint64)[0])


def epoch_generator(seed: int, epoch: int) -> torch.Generator:
    """Return a CPU generator whose random numbers depend only on `seed` and `epoch`."""
    return torch.Generator().manual_seed(derived_seed(seed, epoch))


@dataclass(frozen=True)
class EpochPlan:
    """Random image order, crops and flips of one training epoch.

    order: int64 (n,), image indices. crops: offsets, int64 (n, 2), and flips, bool (n,), of the images in this order,
    or None without augmentation.
    """

    order: Tensor
    crops: tuple[Tensor, Tensor] | None

    def to(self, device: torch.device) -> "EpochPlan":
        """Return a copy of this EpochPlan with its tensors on `device`."""
        crops = None if self.crops is None else (self.crops[0].to(device), self.crops[1].to(device))
        return EpochPlan(self.order.to(device), crops)


class Batches(ABC):
    """Base class of iterators over the batches of one split.

    batch_size: images per global batch. The last batch of an epoch may be smaller.
    train: training shuffles and augments the images. Evaluation keeps the order of the split and does not augment.
    seed: order and augmentation depend only on the seed and the epoch. Gaussian noise also depends on the device type
        and the batch size.
    limit: maximum number of batches per epoch.
    one_batch: train on the first batch of epoch 0 in every epoch, to test whether the network can overfit it.
    part: (rank, number of ranks). In training, each rank gets a slice of every global batch. In evaluation, the ranks
        get whole batches in turn, so that every image is evaluated once.

    Raises ValueError for a batch_size or limit below 1 and for training without a seed.
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
            raise ValueError("seed: none given; the order of training batches depends on it")
        self.count, self.spec, self.device, self.batch_size = count, spec, torch.device(device), batch_size
        self.seed = seed if train else None
        self.augment = train and spec.augment
        self.augmentation = augmentation if train else NO_AUGMENTATION
        self.one_batch, self.train, self.part = train and one_batch, train, part
        batches = 1 if self.one_batch else limit
        self.samples = count if batches is None else min(count, batches * batch_size)
        self.scale, self.shift = (v.to(device) for v in scale_and_shift(spec.mean, spec.std, spec.in_shape[2]))

    def __len__(self) -> int:
        """Return the number of global batches per epoch."""
        return math.ceil(self.samples / self.batch_size)

    def prepare(self) -> None:  # noqa: B027 (most subclasses need nothing)
        """Start the loader processes and allocate their memory.

        A shortage then ends the run before training.
        """

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the normalised images and the labels of each batch of this rank in an epoch.

        The first `start` global batches are skipped.
        images: normalised, float32 (batch, channels, height, width) in channels_last memory. labels: int64 (batch,).
        With augmentation.jsd there are 3 * batch images: the clean batch, then two augmented views of the batch.
        """
        for number, (images, labels) in enumerate(self.uint8_batches(epoch, start), start):
            if self.augmentation.gaussian and self.seed is not None:
                images = self.noisy_views(images, derived_seed(self.seed, epoch, number, 0), self.share(number))
            if self.spec.binary:
                images = images.ge(127.5)
            yield normalise(images, self.scale, self.shift), labels

    @abstractmethod
    def uint8_batches(self, epoch: int, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the uint8 images and the labels of each batch of this rank.

        The first `start` global batches of the epoch are skipped.
        images: uint8 (batch, height, width, channels), cropped and flipped. labels: int64 (batch,). Both are on the
        device.
        """

    def epoch_plan(self, epoch: int) -> EpochPlan | None:
        """Sample the random image order, crops and flips of a training epoch.

        The CPU samples the whole epoch at once. The result is therefore the same on every device and after a resume.
        Returns None for evaluation.
        """
        if self.seed is None:
            return None
        generator = epoch_generator(self.seed, epoch)
        order = torch.randperm(self.count, generator=generator)
        crops = draw_crops(self.count, generator) if self.augment else None
        if self.one_batch:
            order = torch.randperm(self.count, generator=epoch_generator(self.seed, 0))
        return EpochPlan(order, crops)

    def share(self, number: int) -> BatchSlice:
        """Return the slice of a global training batch that this rank processes.

        `number` is the position of the batch in the epoch (from 0).
        """
        total = min(self.batch_size, self.samples - number * self.batch_size)
        return BatchSlice.of(total, *self.part)

    def batch_slices(self, start: int) -> Iterator[slice]:
        """Yield the positions of each batch of this rank in the epoch's image order.

        The first `start` global batches are skipped.
        """
        rank, ranks = self.part
        for batch in range(start, len(self)):
            first = batch * self.batch_size
            if self.train:
                rows = self.share(batch).rows
                yield slice(first + rows.start, first + rows.stop)
            elif batch % ranks == rank:
                yield slice(first, min(first + self.batch_size, self.samples))

    def noisy_views(self, images: Tensor, seed: int, batch_slice: BatchSlice) -> Tensor:
        """Return the images of a batch with Gaussian noise.

        `images` are the rows `batch_slice` of a global batch. The result is float32 in 0..255. With augmentation.jsd,
        return the clean batch, followed by two noisy views of the batch.
        """
        generator = torch.Generator(self.device).manual_seed(seed)
        a = self.augmentation
        views = [
            add_noise(images, std=a.std_gauss, p_clean=a.p_clean, generator=generator, batch_slice=batch_slice)
            for _ in range(2 if a.jsd else 1)
        ]
        return torch.cat([images.float(), *views]) if a.jsd else views[0]


class DeviceBatches(Batches):
    """Batches of a split that is kept on the device as one tensor.

    The device shuffles, crops and flips the images. Raises ValueError for AugMix, which transforms images one by one.
    """

    def __init__(self, split: Split, spec: SetSpec, **options: Unpack[BatchOptions]) -> None:
        super().__init__(len(split), spec, **options)
        if self.augmentation.augmix:
            raise ValueError("augmix: WorkerBatches transforms images one by one; DeviceBatches does not")
        self.images = torch.from_numpy(split.images).to(self.device)  # on the CPU this is no copy
        self.labels = torch.from_numpy(split.labels).to(self.device)
        self.device = self.images.device

    def uint8_batches(self, epoch: int, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the uint8 images and the labels of each batch of this rank.

        The first `start` global batches of the epoch are skipped. The device selects, crops and flips the images.
        """
        plan = self.epoch_plan(epoch)
        if plan is not None:
            plan = plan.to(self.device)
        for positions in self.batch_slices(start):
            yield self.gather(positions, plan)

    def gather(self, positions: slice, plan: EpochPlan | None) -> tuple[Tensor, Tensor]:
        """Return the images and labels of one batch of an epoch.

        The batch is at `positions` in the image order of `plan`, with the crops of `plan`. Without a plan (evaluation),
        the order is the order of the split.
        images: uint8 (batch, height, width, channels). labels: int64 (batch,).
        """
        if plan is None:
            return self.images[positions], self.labels[positions]
        index = plan.order[positions]
        images, labels = self.images.index_select(0, index), self.labels.index_select(0, index)
        if plan.crops is not None:
            offsets, flips = plan.crops
            images = crop_flip(images, offsets[positions], flips[positions])
        return images, labels
