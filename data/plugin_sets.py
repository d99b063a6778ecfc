"""Convert what the reader of a plug-in's data set returns to splits that fit the description of the set."""

from typing import Any

import numpy as np

from data.registry import SetSpec
from data.types import AnySplit, ImageSet, Split
from data.user_datasets import in_memory, read_anew, with_statistics
from data.user_items import Source, probe
from utils.errors import UsageError


def fitted(parts: Any, name: str, spec: SetSpec) -> ImageSet:
    """Return what the reader of a plug-in's data set has returned, as splits.

    parts: the training and the test part. Each is a split, a map-style Dataset, or a pair of arrays (images, labels).
    name, spec: the name of the data set, and its description. Without mean and standard deviation, those of the
        training images are measured.

    Raises UsageError if the images or labels do not fit the description.
    """
    if not isinstance(parts, tuple | list) or len(parts) != 2:
        raise UsageError(
            f"set {name}: its reader returned a {type(parts).__name__}; a training and a test part expected"
        )
    train, test = (
        _fitted_part(part, name, which, spec) for part, which in zip(parts, ("training", "test"), strict=True)
    )
    return ImageSet(spec if spec.mean else with_statistics(spec, train), train, test)


def _fitted_part(part: Any, name: str, which: str, spec: SetSpec) -> AnySplit:
    """Return the training or the test part of a data set as a split. `which` is "training" or "test"."""
    title = f"set {name}, {which} part"
    if isinstance(part, tuple | list) and len(part) == 2:
        part = Split(np.asarray(part[0]), np.asarray(part[1]))
    elif not isinstance(part, AnySplit):
        source = Source(which, part)
        probe(source)
        channels, height, width = spec.in_shape
        if spec.margin is None and source.sizes != {(height, width)}:
            found = ", ".join(f"{rows}x{columns}" for rows, columns in sorted(source.sizes)[:4])
            raise UsageError(f"{title}: the images are {found}, but in_shape is {spec.in_shape}")
        part = in_memory(source, channels) or read_anew(source, 0)
    split: AnySplit = _checked_arrays(part, title, spec) if isinstance(part, Split) else part
    lowest, largest = (int(split.labels.min()), int(split.labels.max())) if len(split) else (0, -1)
    if lowest < 0 or not 0 <= largest < spec.num_classes:
        found = f"labels from {lowest} to {largest}" if len(split) else "no images"
        raise UsageError(f"{title}: it has {found}; labels from 0 to {spec.num_classes - 1} expected")
    return split


def _checked_arrays(split: Split, title: str, spec: SetSpec) -> Split:
    """Return a split in memory with int64 labels. Raises UsageError if its arrays have other shapes or types."""
    images, labels, (channels, height, width) = split.images, split.labels, spec.in_shape
    is_fixed = spec.margin is None
    if images.ndim != 4 or images.shape[3] != channels or (is_fixed and images.shape[1:3] != (height, width)):
        expected = f"(n, {height}, {width}, {channels})" if is_fixed else f"(n, height, width, {channels})"
        raise UsageError(f"{title}: the images have the shape {images.shape}; {expected} expected")
    if images.dtype != np.uint8 or labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]:
        found = f"{images.dtype} images, {labels.dtype} labels of shape {labels.shape}"
        raise UsageError(f"{title}: {found}; uint8 images and one integer per image expected")
    return Split(np.ascontiguousarray(images), labels.astype(np.int64))
