"""Data sets: `spec` describes a data set, `load` reads it, and `make_batches` divides a split into batches.

Importing this package imports neither torch nor numpy.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from data.registry import IN_MEMORY, PIXELS, SETS, SetSpec
from data.types import NO_AUGMENTATION, AnySplit, Augmentation, BatchOptions, DatasetSplit, FileSplit, ImageSet, Split
from utils.errors import UsageError
from utils.paths import expanded
from utils.registry import lookup
from utils.text import shown

if TYPE_CHECKING:
    from data.device_batches import Batches

__all__ = ["PIXELS", "SETS", "AnySplit", "Augmentation", "FileSplit", "ImageSet", "SetSpec", "Split"]


def spec(
    name: str, root: str | Path, *, image_size: int | None = None, pixels: str = "standard", augment: bool = True
) -> SetSpec:
    """Return the description of the data set `name`, without reading any images.

    image_size: height and width of the images, or None for the data set's own size. pixels: scaling
    of the pixel values, a key of PIXELS. augment: False if training images are not to be cropped and flipped at random.
    Raises UsageError for a size that the data set cannot have and for an ImageFolder without classes, ValueError for an
    unknown name.
    """
    found = lookup(SETS, name, "set").pixels(pixels)
    if not augment:
        found = replace(found, augment=False)
    if name == IN_MEMORY:
        found.read(Path(root), False)  # raises UsageError
    channels, height, _ = found.in_shape
    if image_size not in (None, height):
        if found.margin is None:
            raise UsageError(f"image_size: {image_size} given, but the images of {name} are {height}x{height}")
        if image_size < 1:
            raise UsageError(f"image_size: {image_size} given, at least 1 expected")
        found = replace(found, in_shape=(channels, image_size, image_size))
    if not found.num_classes:
        from data.readers.folders import count_classes  # only here: it imports numpy

        with _data_folder(name, root) as folder:
            found = replace(found, num_classes=count_classes(name, folder))
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
    augment: bool = True,
) -> ImageSet:
    """Read and verify the files of a data set, and return its splits.

    The files are searched for below `root`.
    val_split: share of the training images that is held out for validation. low_data: share of the remaining training
    images that is kept. Raises UsageError for a missing or damaged file, ValueError for an unknown name.
    """
    description = spec(name, root, image_size=image_size, pixels=pixels, augment=augment)
    with _data_folder(name, root) as folder:
        parts = description.read(folder, download)
    if isinstance(description.reader, str):
        image_set = ImageSet(description, *parts)
    else:
        from data.plugin_sets import fitted  # only here: it imports torch

        image_set = fitted(parts, name, description)
    return divided(image_set, val_split=val_split, low_data=low_data)


def divided(image_set: ImageSet, *, val_split: float = 0.0, low_data: float = 1.0) -> ImageSet:
    """Return a data set with a validation split and fewer training images.

    The arguments are those of `load`. The arrays of `image_set` are reused, so it must not be used afterwards.
    """
    from data.splits import hold_out, reduced  # only here: they import numpy

    train, val = image_set.train, None
    if val_split:
        train, val = hold_out(train, val_split)
    return replace(image_set, train=reduced(train, low_data), val=val)


@contextmanager
def _data_folder(name: str, root: str | Path) -> Iterator[Path]:
    """Context manager that expands ~ in `root` and converts an OSError into a UsageError."""
    try:
        folder = Path(expanded(str(root)))
    except UsageError as error:
        raise UsageError(f"data: {shown(str(root))}: {error}") from error
    try:
        yield folder
    except OSError as error:
        raise UsageError(f"data: {name} cannot be read under {str(root)[:200]}: {error.strerror or error}") from error


def make_batches(split: AnySplit, spec: SetSpec, *, workers: int = 0, **options: Unpack[BatchOptions]) -> Batches:
    """Return an iterator over the batches of a split.

    `spec` is the description of the data set. The device prepares batches of images that are in memory, have the same
    size and are not transformed one by one. Loader processes prepare all other batches, or this process without
    `workers`.
    options: the arguments of `data.device_batches.Batches`.
    """
    from data.device_batches import DeviceBatches

    mixes = options["train"] and options.get("augmentation", NO_AUGMENTATION).augmix
    if isinstance(split, FileSplit | DatasetSplit) or spec.margin is not None or mixes:
        from data.worker_batches import WorkerBatches  # only here: it imports PIL, which is slow to import

        return WorkerBatches(split, spec, workers=workers, **options)
    return DeviceBatches(split, spec, **options)
