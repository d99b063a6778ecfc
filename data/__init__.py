"""Data sets: `spec` gives the facts of one, `load` reads it, `make_batches` makes the batches that training runs over.

Importing this package imports neither torch nor numpy.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.registry import PIXELS, SETS, SetSpec
from data.types import NO_AUGMENTATION, AnySplit, Augmentation, FileSplit, ImageSet, Split
from utils.errors import UsageError
from utils.paths import expanded
from utils.registry import load_object, lookup
from utils.text import shown

if TYPE_CHECKING:
    import torch

    from data.device_batches import Batches

__all__ = ["PIXELS", "SETS", "AnySplit", "Augmentation", "FileSplit", "ImageSet", "SetSpec", "Split"]


def spec(name: str, root: str | Path, *, image_size: int | None = None, pixels: str = "standard") -> SetSpec:
    """The facts of the set `name`, with image_size x image_size pixels scaled as PIXELS says; no image is read.

    Raises UsageError for a size that the set cannot have and for an ImageFolder without classes, ValueError for an
    unknown name.
    """
    found = lookup(SETS, name, "set").pixels(pixels)
    channels, height, _ = found.in_shape
    if image_size not in (None, height):
        if found.margin is None:
            raise UsageError(f"image_size: {image_size} given, but the images of {name} are {height}x{height}")
        if image_size < 1:
            raise UsageError(f"image_size: {image_size} given, at least 1 expected")
        found = replace(found, in_shape=(channels, image_size, image_size))
    if not found.num_classes:
        with _found_under(name, root) as folder:
            found = replace(found, num_classes=load_object("data.readers.folders:count_classes")(folder))
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
        train, test = facts.read(folder, download)
    from data.splits import hold_out, reduced  # numpy

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
