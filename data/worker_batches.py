"""Batches of images that each need work of their own (decode, resize, mix): done in worker processes, ahead of use."""

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import numpy as np
import PIL.Image
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.device_batches import Batches, derived_seed
from data.image_views import Image, decode, make_views
from data.registry import SetSpec
from data.types import AnySplit, Augmentation, FileSplit
from data.workers import Workers

Key = tuple[int, NDArray[np.intp]]  # (epoch, rows of one batch)


class Items:
    """What a worker holds: `items(key)` is the images of one batch, on the CPU.

    The views of a row depend on (seed, epoch, row) alone, so that neither the number of workers nor the batch counts.
    """

    def __init__(self, split: AnySplit, spec: SetSpec, augmentation: Augmentation, seed: int | None) -> None:
        self.split, self.spec, self.augmentation, self.seed = split, spec, augmentation, seed

    @cached_property
    def make_views(self) -> Callable[[Image], Tensor]:
        """Built where it is used: a worker that does not start by fork has to import torchvision our way first."""
        return make_views(self.spec, self.augmentation, train=self.seed is not None)

    def __call__(self, key: Key) -> Tensor:
        """uint8 (views x batch, height, width, channels), view by view. Raises RunFailed naming a broken file."""
        epoch, rows = key
        return torch.stack([self.views(epoch, int(row)) for row in rows], dim=1).flatten(0, 1)

    def views(self, epoch: int, row: int) -> Tensor:
        """uint8 (views, height, width, channels) of one image."""
        image = self.image(row)
        if self.seed is None:
            return self.make_views(image)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derived_seed(self.seed, epoch, row))
            return self.make_views(image)

    def image(self, row: int) -> Image:
        if isinstance(self.split, FileSplit):
            return decode(self.split.path(row))
        pixels = self.split.images[row]
        return PIL.Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


class LoaderBatches(Batches):
    """A split whose images are prepared one by one, by `workers` processes (0: here), which stay from epoch to epoch.

    One epoch at a time: starting another ends the first. Raises RunFailed, while iterating, naming a file that cannot
    be decoded, or where workers cannot be had or have died.
    """

    def __init__(self, split: AnySplit, spec: SetSpec, *, workers: int = 0, **options: Any) -> None:
        super().__init__(len(split), spec, **options)
        self.augment = False  # crops are drawn image by image, not for the epoch
        self.labels = torch.from_numpy(split.labels)
        self.items = Items(split, spec, self.augmentation, self.seed)
        self.wanted = workers

    def prepare(self) -> None:
        if self.wanted and any(self.slices(0)):
            self.workers  # noqa: B018 (starts them)

    @cached_property
    def workers(self) -> Workers:
        """Started when first asked for, no more of them than batches."""
        sizes = [rows.stop - rows.start for rows in self.slices(0)]
        views = 3 if self.augmentation.augmix and self.augmentation.jsd else 1
        channels, height, width = self.spec.in_shape
        return Workers(self.items, (views * max(sizes), height, width, channels), min(self.wanted, len(sizes)))

    def pixels(self, epoch: int, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        draws = self.draws(epoch)
        order = np.arange(self.count) if draws is None else draws.order.numpy()
        keys = [(epoch, order[rows]) for rows in self.slices(start)]
        made = self.workers.batches(keys) if self.wanted and keys else map(self.items, keys)
        for images, (_, rows) in zip(made, keys, strict=False):
            yield self.moved(images), self.moved(self.labels[rows])

    def moved(self, values: Tensor) -> Tensor:
        """`values` on the device, by way of page-locked memory, from where a GPU fetches them while this process goes
        on."""
        if self.device.type == "cuda":
            values = values.pin_memory()
        return values.to(self.device, non_blocking=True)
