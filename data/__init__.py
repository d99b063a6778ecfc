"""The table of data sets; `spec`, their static facts; `load`, their images; `make_batches`, what training runs over.

Torch is imported where batches are made, not before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from data.readers import cifar, digits, folders, idx, svhn
from data.types import AnySplit, FileSplit, Split, compact
from utils.errors import UsageError
from utils.paths import expanded
from utils.registry import lookup
from utils.text import shown

if TYPE_CHECKING:
    import torch

    from data.device_batches import Batches

__all__ = ["AnySplit", "FileSplit", "Split", "compact"]

HOLD_OUT_SEED = 20_210_317  # fixed, so that runs of different seeds are compared on the same images


@dataclass(frozen=True)
class SetSpec:
    """Static facts of a set. in_shape: (channels, height, width); mean and std: per channel, of pixels in [0, 1];
    augment: crop and flip in training; load: (root, download) -> (train, test).

    margin: images come in any size. In training a random part of each is resized to in_shape; in evaluation the
    shorter side is resized to `margin` times that and the centre cropped. None: images have the size of in_shape.
    """

    in_shape: tuple[int, int, int]
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: bool
    load: Callable[[Path, bool], tuple[AnySplit, AnySplit]]
    margin: float | None = None
    binary: bool = False  # pixels become 1 from a half of full brightness on, else 0, before mean and std

    def pixels(self, kind: str) -> SetSpec:
        """The same set with its pixels scaled as PIXELS says. Raises ValueError for an unknown kind."""
        scale = lookup(PIXELS, kind, "pixels")
        if scale is None:
            return self
        channels = self.in_shape[0]
        return replace(self, mean=(scale[0],) * channels, std=(scale[1],) * channels, binary=kind == "binary")


PIXELS: dict[str, tuple[float, float] | None] = {  # (mean, std) of pixels in [0, 1]; None: the set's own
    "standard": None,
    "unit": (0.0, 1.0),
    "signed": (0.5, 0.5),
    "binary": (0.0, 1 / 255),  # of 0 and 1 in 0..255
}


@dataclass(frozen=True)
class ImageSet:
    spec: SetSpec
    train: AnySplit
    test: AnySplit
    val: AnySplit | None = None


@dataclass(frozen=True)
class Augmentation:
    """What is done to training images beyond crop and flip. Raises UsageError for what contradicts itself.

    gaussian: with probability 1 - p_clean, noise of standard deviation std_gauss on pixels in [0, 1].
    augmix: AugMix (arXiv:1912.02781) of `width` chains of `depth` operators (< 1: 1 to 3 at random).
    jsd: three views of each image, the first one clean, for the Jensen-Shannon term of the loss.
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
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IMAGENET = SetSpec(
    (3, 224, 224), 1000, IMAGENET_MEAN, IMAGENET_STD, True, folders.READERS["ImageNet"], margin=256 / 224
)
SPECS: dict[str, SetSpec] = {
    # digits: mean and std of the training part, over pixels
    "digits": SetSpec((1, 8, 8), 10, (0.30588,), (0.37622,), False, digits.read_digits),
    "MNIST": SetSpec((1, 28, 28), 10, (0.1307,), (0.3081,), False, partial(idx.read_idx_set, "MNIST")),
    "FashionMNIST": SetSpec((1, 28, 28), 10, (0.2860,), (0.3530,), False, partial(idx.read_idx_set, "FashionMNIST")),
    "CIFAR10": SetSpec(
        (3, 32, 32), 10, (0.491, 0.482, 0.447), (0.247, 0.243, 0.262), True, partial(cifar.read_cifar, cifar.CIFAR10)
    ),
    # CIFAR100, SVHN: over all pixels of the training part, as commonly published to four digits
    "CIFAR100": SetSpec(
        (3, 32, 32),
        100,
        (0.5071, 0.4865, 0.4409),
        (0.2673, 0.2564, 0.2762),
        True,
        partial(cifar.read_cifar, cifar.CIFAR100),
    ),
    "SVHN": SetSpec((3, 32, 32), 10, (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970), False, svhn.read_svhn),
    "BigCIFAR10": replace(
        IMAGENET, in_shape=(3, 128, 128), num_classes=10, load=partial(cifar.read_cifar, cifar.CIFAR10), margin=1.0
    ),
    "ImageNet": IMAGENET,
    # TinyImageNet: 64 is its own size
    "TinyImageNet": replace(IMAGENET, in_shape=(3, 64, 64), num_classes=200, load=folders.READERS["TinyImageNet"]),
    # ImageFolder: `spec` counts the classes
    "ImageFolder": replace(IMAGENET, num_classes=0, load=folders.READERS["ImageFolder"]),
}


def spec(name: str, root: str | Path, *, image_size: int | None = None, pixels: str = "standard") -> SetSpec:
    """The facts of the set `name`, with image_size x image_size pixels scaled as PIXELS says; no image is read.

    Raises UsageError for a size that the set cannot have and for an ImageFolder without classes, ValueError for an
    unknown name.
    """
    found = lookup(SPECS, name, "set").pixels(pixels)
    channels, height, _ = found.in_shape
    if image_size not in (None, height):
        if found.margin is None:
            raise UsageError(f"image_size: {image_size} given, but the images of {name} are {height}x{height}")
        if image_size < 1:
            raise UsageError(f"image_size: {image_size} given, at least 1 expected")
        found = replace(found, in_shape=(channels, image_size, image_size))
    if not found.num_classes:
        with _found_under(name, root) as folder:
            found = replace(found, num_classes=folders.count_classes(folder))
    return found


def load(
    name: str,
    root: str | Path,
    *,
    download: bool = False,
    val_split: float = 0.0,
    low_data: float = 1.0,
    image_size: int | None = None,
    pixels: str = "standard",
) -> ImageSet:
    """Read and verify the set `name` from under `root`, holding out the share `val_split` of its training images and
    keeping the share `low_data` of the rest.

    Raises UsageError for a missing or damaged file, ValueError for an unknown name.
    """
    facts = spec(name, root, image_size=image_size, pixels=pixels)
    with _found_under(name, root) as folder:
        train, test = facts.load(folder, download)
    val = None
    if val_split:
        train, val = hold_out(train, val_split)
    return ImageSet(facts, reduced(train, low_data), test, val)


@contextmanager
def _found_under(name: str, root: str | Path) -> Iterator[Path]:
    """The folder `root`; what cannot be read there becomes a UsageError."""
    try:
        folder = Path(expanded(str(root)))
    except UsageError as error:
        raise UsageError(f"data: {shown(str(root))}: {error}") from error
    try:
        yield folder
    except OSError as error:
        raise UsageError(f"data: {name} cannot be read under {str(root)[:200]}: {error.strerror or error}") from error


def hold_out(split: AnySplit, fraction: float) -> tuple[AnySplit, AnySplit]:
    """(kept, held out): round(fraction n) images, by class in proportion. Reuses the arrays of `split`."""
    count = round(fraction * len(split)) if 0 <= fraction <= 1 else -1
    if not 0 < count < len(split):
        raise UsageError(
            f"val_split: {fraction} of {len(split)} training images must leave at least one image on both sides"
        )
    chosen = stratified(split.labels, count, HOLD_OUT_SEED)
    val = split.copied(chosen)
    return split.kept(np.setdiff1d(np.arange(len(split)), chosen)), val


def reduced(split: AnySplit, fraction: float) -> AnySplit:
    """round(fraction n) of the images, by class in proportion; a smaller share is part of every larger one."""
    count = round(fraction * len(split)) if 0 < fraction <= 1 else 0
    if not count:
        raise UsageError(f"low_data: {fraction} of {len(split)} training images leaves none; > 0 and <= 1 expected")
    return split if count == len(split) else split.kept(stratified(split.labels, count, HOLD_OUT_SEED))


def make_batches(
    split: AnySplit,
    spec: SetSpec,
    *,
    device: torch.device | str,
    batch_size: int,
    seed: int | None,
    train: bool,
    limit: int | None = None,
    workers: int = 0,
    augmentation: Augmentation = NO_AUGMENTATION,
    one_batch: bool = False,
    part: tuple[int, int] = (0, 1),
) -> Batches:
    """The split in batches: prepared on the device where it is one array and no image needs work of its own, else by
    `workers` loader processes. See `data.device_batches.Batches` for the arguments."""
    from data.device_batches import DeviceBatches

    shared: dict[str, Any] = {"device": device, "batch_size": batch_size, "seed": seed, "train": train, "limit": limit}
    shared |= {"augmentation": augmentation, "one_batch": one_batch, "part": part}
    if isinstance(split, FileSplit) or spec.margin is not None or (train and augmentation.augmix):
        from data.worker_batches import WorkerBatches  # it needs PIL, which takes as long to import as all else here

        return WorkerBatches(split, spec, workers=workers, **shared)
    return DeviceBatches(split, spec, **shared)


def stratified(labels: NDArray[np.int64], count: int, seed: int) -> NDArray[np.intp]:
    """Indices, ascending, of `count` random images that keep the classes' proportions.

    Each image gets its class-wise random rank scaled to 0..1, and the lowest win: every class of two or more gives its
    first image before any gives its second, and its last one last. RandomState: numpy froze its stream (NEP 19).
    """
    shuffled = np.random.RandomState(seed).permutation(len(labels))
    rank = np.empty(len(labels))
    for label in np.unique(labels):
        members = shuffled[labels[shuffled] == label]
        rank[members] = np.arange(len(members)) / (len(members) - 1) if len(members) > 1 else 1.0
    return np.sort(np.argsort(rank, kind="stable")[:count])
