"""Batches of images that worker processes decode, resize or augment one by one, ahead of use."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import cached_property
from typing import Unpack

import numpy as np
import PIL.Image
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.device_batches import Batches, derived_seed
from data.image_views import Image, decode, views_transform
from data.registry import SetSpec
from data.types import AnySplit, Augmentation, BatchOptions, DatasetSplit, FileSplit
from data.user_datasets import read_image
from data.workers import Workers
from utils.random_state import preserved_generators, seed_on_cpu

BatchKey = tuple[int, NDArray[np.intp]]  # (epoch, rows of the split)


class ViewBatches:
    """Callable that decodes and augments the images of a batch in a worker process.

    The batch is given by an epoch and rows of the split. The views of an image depend only on seed, epoch and row, not
    on the number of workers or the batch size.
    """

    def __init__(self, split: AnySplit, spec: SetSpec, augmentation: Augmentation, seed: int | None) -> None:
        self.split, self.spec, self.augmentation, self.seed = split, spec, augmentation, seed

    @cached_property
    def transform(self) -> Callable[[Image], Tensor]:
        """Transform from an image to its views (augmented versions).

        The transform is built at its first use in a worker process. A worker that is started by spawn must import
        torchvision through utils.torch_compat. Unpickling the transform would import torchvision directly.
        """
        return views_transform(self.spec, self.augmentation, train=self.seed is not None)

    def __call__(self, key: BatchKey) -> Tensor:
        """Return the views (augmented versions) of the images of a batch.

        `key` is (epoch, rows of the split). All first views precede all second views. Shape: uint8 (views * batch,
        height, width, channels). Raises RunFailed if a file cannot be decoded.
        """
        epoch, rows = key
        with preserved_generators() if isinstance(self.split, DatasetSplit) else nullcontext():
            return torch.stack([self.views(epoch, int(row)) for row in rows], dim=1).flatten(0, 1)

    def views(self, epoch: int, row: int) -> Tensor:
        """Return the views (augmented versions) of the image in `row` of the split.

        The shape is uint8 (views, height, width, channels). Training views are random, with a seed that depends on
        `epoch` and `row`.
        """
        if isinstance(self.split, DatasetSplit):  # its own random transforms may use any generator
            seed_on_cpu(derived_seed(self.seed or 0, epoch, row))
            return self.transform(self.image(row))
        image = self.image(row)
        if self.seed is None:
            return self.transform(image)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derived_seed(self.seed, epoch, row))
            return self.transform(image)

    def image(self, row: int) -> Image:
        """Return the image in `row` of the split.

        The image is RGB from a file, and grey or RGB from an array.
        """
        if isinstance(self.split, FileSplit):
            return decode(self.split.path(row))
        if isinstance(self.split, DatasetSplit):
            return read_image(self.split, row, self.spec)
        pixels = self.split.images[row]
        return PIL.Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


class WorkerBatches(Batches):
    """Batches whose images are decoded and augmented one by one, in worker processes.

    There are `workers` processes. If `workers` is 0, this process prepares the batches. The processes are kept for all
    epochs. Starting an epoch ends the iteration over the previous one. Iterating raises RunFailed if a file cannot be
    decoded, or if a worker process cannot be started or dies.
    """

    def __init__(self, split: AnySplit, spec: SetSpec, *, workers: int = 0, **options: Unpack[BatchOptions]) -> None:
        super().__init__(len(split), spec, **options)
        self.augment = False  # ViewBatches crops each image, so the epoch plan has no crops
        self.labels = torch.from_numpy(split.labels)
        self.view_batches = ViewBatches(split, spec, self.augmentation, self.seed)
        self.worker_count = workers

    def prepare(self) -> None:
        """Start the worker processes."""
        if self.worker_count and any(self.batch_slices(0)):
            self.workers  # noqa: B018 (the property starts them)

    @cached_property
    def workers(self) -> Workers:
        """Worker processes, started on first use.

        There is at most one process per batch.
        """
        sizes = [rows.stop - rows.start for rows in self.batch_slices(0)]
        views = 3 if self.augmentation.augmix and self.augmentation.jsd else 1
        channels, height, width = self.spec.in_shape
        shape = (views * max(sizes), height, width, channels)
        return Workers(self.view_batches, shape, min(self.worker_count, len(sizes)))

    def uint8_batches(self, epoch: int, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the uint8 images and the labels of each batch of this rank.

        The first `start` global batches of the epoch are skipped. A batch is yielded as soon as a worker has prepared
        it and all earlier ones.
        """
        plan = self.epoch_plan(epoch)
        order = np.arange(self.count) if plan is None else plan.order.numpy()
        keys = [(epoch, order[positions]) for positions in self.batch_slices(start)]
        batches = self.workers.batches(keys) if self.worker_count and keys else map(self.view_batches, keys)
        for images, (_, rows) in zip(batches, keys, strict=False):  # another epoch may end `batches` early
            yield self.to_device(images), self.to_device(self.labels[rows])

    def to_device(self, values: Tensor) -> Tensor:
        """Return `values` on the device. A copy to a GPU is asynchronous and uses page-locked memory."""
        if self.device.type == "cuda":
            values = values.pin_memory()
        return values.to(self.device, non_blocking=True)
