"""Types that readers, batches and trainers share: splits of a data set, and its augmentation. Imports no numpy."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Required, TypedDict

from data.registry import SetSpec
from utils.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Split:
    """Images and labels of a part of a data set, in memory.

    The part is, for example, the training images.
    images: uint8 (n, height, width, channels). labels: int64 (n,).
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def copied(self, rows: NDArray[np.intp]) -> Split:
        """Return a split with a copy of the given rows."""
        return Split(self.images[rows], self.labels[rows])

    def kept(self, rows: NDArray[np.intp]) -> Split:
        """Return a split with only the given rows, which reuses the memory of this split.

        `rows` is ascending. The arrays are compacted in place, so this split must not be used afterwards.
        """
        return Split(compact(self.images, rows), compact(self.labels, rows))


@dataclass(frozen=True)
class FileSplit:
    """Image paths and labels of a part of a data set whose images stay on disk.

    paths: bytes (n,), one array, so that worker processes share its memory. labels: int64 (n,).
    """

    paths: NDArray[np.bytes_]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, row: int) -> str:
        """Return the path of the image in `row`."""
        return os.fsdecode(self.paths[row])

    def copied(self, rows: NDArray[np.intp]) -> FileSplit:
        """Return a split with a copy of the given rows."""
        return FileSplit(self.paths[rows], self.labels[rows])

    kept = copied


@dataclass(frozen=True)
class DatasetSplit:
    """Rows and labels of a part of a torch Dataset, whose images are read anew in every epoch.

    dataset: map-style Dataset of items (image, label). rows: int64 (n,), indices of its items. labels: int64 (n,).
    """

    dataset: Any
    rows: NDArray[np.int64]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def copied(self, rows: NDArray[np.intp]) -> DatasetSplit:
        """Return a split with a copy of the given rows."""
        return DatasetSplit(self.dataset, self.rows[rows], self.labels[rows])

    kept = copied


AnySplit = Split | FileSplit | DatasetSplit


def compact(array: NDArray[Any], rows: NDArray[np.intp], chunk: int = 4096) -> NDArray[Any]:
    """Move the given rows of `array` to its beginning, and return a view of them.

    `rows` is ascending. Other rows are lost. At most `chunk` rows are copied at a time. A full copy would need the
    memory of a training set twice.
    """
    for start in range(0, len(rows), chunk):
        part = rows[start : start + chunk]  # part[i] >= start + i, so no row is overwritten before it is read
        array[start : start + len(part)] = array[part]
    return array[: len(rows)]


@dataclass(frozen=True)
class ImageSet:
    """Description of a data set, with its training, test and validation splits.

    `val` is held out of the training images. It is None without a validation split.
    """

    spec: SetSpec
    train: AnySplit
    test: AnySplit
    val: AnySplit | None = None


@dataclass(frozen=True)
class Augmentation:
    """Augmentation of training images besides crops and flips.

    Raises UsageError if the values contradict each other.

    gaussian: Gaussian noise of standard deviation std_gauss (pixels in [0, 1]), with probability 1 - p_clean per image.
    augmix: AugMix (arXiv:1912.02781) with `width` chains of `depth` operators (< 1: 1 to 3 at random).
    all_ops, severity: operators and strength of AugMix, see `data.image_views.augmix_transform`.
    jsd: three views of each image, one clean and two augmented, for the Jensen-Shannon term of the loss.
    """

    gaussian: bool = False
    std_gauss: float = 0.1
    p_clean: float = 1.0
    augmix: bool = False
    all_ops: bool = False
    width: int = 3
    depth: int = -1
    severity: int = 3
    jsd: bool = False

    def __post_init__(self) -> None:
        if self.jsd and not (self.gaussian or self.augmix):
            raise UsageError("jsd: it compares augmented views; it needs gaussian_aug or augmix")
        if self.gaussian and self.augmix:
            raise UsageError("augmix: it contradicts gaussian_aug; leave out one of the two")
        if not 1 <= self.severity <= 10:
            raise UsageError(f"aug_severity: {self.severity} given, 1 to 10 expected")
        if self.width < 1:
            raise UsageError(f"mixture_width: {self.width} given, at least 1 expected")


NO_AUGMENTATION = Augmentation()


class BatchOptions(TypedDict, total=False):
    """Keyword arguments of all batch iterators, which `data.device_batches.Batches` explains."""

    device: Required[torch.device | str]
    batch_size: Required[int]
    seed: Required[int | None]
    train: Required[bool]
    limit: int | None
    augmentation: Augmentation
    one_batch: bool
    part: tuple[int, int]
