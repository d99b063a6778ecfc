"""Items (image, label) of a torch Dataset that a user passes."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.user_images import Pixels, to_pixels
from utils.errors import UsageError
from utils.text import escaped

PROBES = 512  # items that are read twice, to see whether the Dataset transforms its images at random


@dataclass
class Source:
    """One Dataset of the pair, with what is known of its images.

    name: "training" or "test", for messages. sizes: (height, width) of the images read. channels: their numbers of
    channels. is_random: two readings of an item differ.
    """

    name: str
    dataset: Any
    sizes: set[tuple[int, int]] = field(default_factory=set)
    channels: set[int] = field(default_factory=set)
    is_random: bool = False

    def item(self, row: int) -> tuple[Pixels, int]:
        """Read the item `row`, and return its pixels, uint8 (height, width, channels), and its label.

        Raises UsageError if it is no pair of an image and a label.
        """
        item = self.dataset[row]
        where = f"data: item {row} of the {self.name} Dataset"
        if not isinstance(item, Sequence) or len(item) != 2:
            raise UsageError(f"{where} is a {type(item).__name__}; an (image, label) pair expected")
        try:
            pixels = to_pixels(item[0])
        except UsageError as error:
            raise UsageError(f"{where}: {error}") from error
        self.sizes.add((pixels.shape[0], pixels.shape[1]))
        self.channels.add(pixels.shape[2])
        return pixels, as_label(item[1], where)

    def __len__(self) -> int:
        if not all(hasattr(self.dataset, method) for method in ("__len__", "__getitem__")):
            kind = f"a {type(self.dataset).__name__}, which lacks __len__ or __getitem__"
            raise UsageError(f"data: the {self.name} Dataset is {kind}; a map-style Dataset expected")
        count = len(self.dataset)
        if not count:
            raise UsageError(f"data: the {self.name} Dataset has no items")
        return count


def as_label(label: Any, where: str) -> int:
    """Return a label as an int. Raises UsageError, which begins with `where`, for anything but an int >= 0."""
    value = label.item() if getattr(label, "ndim", None) == 0 else label
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise UsageError(f"{where}: its label is {escaped(value)}; an int from 0 on expected")
    return value


def probe_rows(count: int) -> list[int]:
    """Return up to PROBES indices of items, evenly spaced."""
    rows: list[int] = np.unique(np.linspace(0, count - 1, PROBES, dtype=np.int64)).tolist()
    return rows


def probe(source: Source) -> None:
    """Read up to PROBES items of a Dataset twice, and set `is_random` if a reading differs."""
    for row in probe_rows(len(source)):
        first, second = source.item(row), source.item(row)
        source.is_random = source.is_random or first[1] != second[1] or not np.array_equal(first[0], second[0])


def declared_labels(source: Source) -> NDArray[np.int64] | None:
    """Return `dataset.targets`, or None if there are none or they are not the labels of the items."""
    try:
        labels = np.asarray(source.dataset.targets)
    except (AttributeError, TypeError, ValueError):
        return None
    if labels.shape != (len(source),) or labels.dtype.kind not in "iu":
        return None
    agree = all(source.item(row)[1] == labels[row] for row in probe_rows(len(source)))
    return labels.astype(np.int64) if agree else None


def class_names(dataset: Any) -> tuple[str, ...]:
    """Return the class names that a Dataset, or the one that a Subset wraps, lists as `classes`, or ()."""
    while dataset is not None:
        names = getattr(dataset, "classes", None)
        if isinstance(names, list | tuple) and names and all(isinstance(name, str) for name in names):
            return tuple(names)
        dataset = getattr(dataset, "dataset", None)
    return ()
