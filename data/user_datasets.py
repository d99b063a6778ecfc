"""Read a pair of torch Datasets that a user passes, as a data set with training and test images."""

import pickle
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from data.image_views import Image
from data.readers.class_names import CLASS_NAMES
from data.registry import IN_MEMORY, SETS, SetSpec
from data.types import AnySplit, DatasetSplit, ImageSet, Split
from data.user_images import pil_image, prepare, to_pixels
from data.user_items import Source, class_names, declared_labels, probe
from data.workers import START_METHOD
from utils.errors import RunFailed, UsageError
from utils.registry import lookup
from utils.text import escaped

MOST_BYTES = 2 * 10**9  # of images in memory per Dataset; larger Datasets are read in every epoch


def read_datasets(
    train: Any,
    test: Any,
    *,
    described_as: str = IN_MEMORY,
    image_size: int | None = None,
    pixels: str = "standard",
    workers: int = 0,
) -> ImageSet:
    """Read a pair of map-style Datasets of items (image, label).

    An image is anything that `data.user_images.to_pixels` accepts. The images of a Dataset are read once into memory,
    if all of them have one size, they need at most MOST_BYTES, and none changes between two readings. Otherwise they
    are read in every epoch.

    described_as: registered data set whose mean, standard deviation, augmentation and class names are used. By default
        mean and standard deviation are measured over the training images, or, if these are read in every epoch, those
        of ImageNet, and the images are not augmented.
    image_size: height and width to which all images are resized and cropped. Images of different sizes need it.
    pixels: scaling of the pixel values, a key of PIXELS. workers: number of loader processes.

    Raises UsageError for items of other kinds.
    """
    row = lookup(SETS, described_as, "set")
    sources = Source("training", train), Source("test", test)
    for source in sources:
        probe(source)
    channels = common_channels(sources)
    parts = [in_memory(source, channels) for source in sources]
    size, margin = common_size(sources, row, image_size)
    train_split, test_split = (part or read_anew(source, workers) for source, part in zip(sources, parts, strict=True))
    names = class_names(train)
    count = count_classes(sources, (train_split, test_split), names)
    spec = replace(row, in_shape=(channels, *size), num_classes=count, margin=margin)
    check_channels(spec, described_as, resized=margin is not None or None in parts)
    if described_as == IN_MEMORY:
        spec = with_statistics(spec, train_split)
    known = CLASS_NAMES.get(described_as, ())
    spec = replace(spec.pixels(pixels), classes=names or (known if len(known) == count else ()))
    return ImageSet(spec, train_split, test_split)


def in_memory(source: Source, channels: int) -> Split | None:
    """Read a whole Dataset, or return None if its images are random, large or of different sizes."""
    if source.is_random or len(source.sizes) > 1:
        return None
    ((height, width),), count = source.sizes, len(source)
    if count * height * width * channels > MOST_BYTES:
        return None
    spec = replace(SETS[IN_MEMORY], in_shape=(channels, height, width))
    images = np.empty((count, height, width, channels), np.uint8)
    labels = np.empty(count, np.int64)
    for row in range(count):
        pixels, labels[row] = source.item(row)
        if pixels.shape[:2] != (height, width):
            return None
        images[row] = prepare(pixels, spec)
    return Split(images, labels)


def common_size(
    sources: Sequence[Source], row: SetSpec, image_size: int | None
) -> tuple[tuple[int, int], float | None]:
    """Return (height, width) of the input images, and their margin, which is None if no image is resized.

    Raises UsageError if the images have different sizes and no size was chosen.
    """
    sizes = {size for source in sources for size in source.sizes}
    if row.margin is not None:
        return (image_size or row.in_shape[1], image_size or row.in_shape[2]), row.margin
    if image_size is not None and sizes != {(image_size, image_size)}:
        return (image_size, image_size), SETS["ImageNet"].margin
    if len(sizes) > 1:
        listed = ", ".join(f"{height}x{width}" for height, width in sorted(sizes)[:4])
        raise UsageError(
            f"data: the images have different sizes ({listed}); pass image_size=…, to which they are cropped"
        )
    return sizes.pop(), None


def read_anew(source: Source, workers: int) -> DatasetSplit:
    """Return a split whose images are read in every epoch.

    The labels are those of `dataset.targets`, as in torchvision, if PROBES of them agree with the items. Otherwise all
    items are read. Raises UsageError if loader processes need a copy of the Dataset and it cannot be pickled.
    """
    if workers and START_METHOD == "spawn":
        try:
            pickle.dumps(source.dataset)
        except Exception as error:  # pickling runs code of the Dataset
            reason = escaped(str(error).partition("\n")[0], 200)
            copied = f"workers: loader processes copy the {source.name} Dataset, which cannot be pickled"
            raise UsageError(f"{copied}: {reason}; pass workers=0") from error
    count = len(source)
    labels = declared_labels(source)
    if labels is None:
        labels = np.array([source.item(row)[1] for row in range(count)], np.int64)
    return DatasetSplit(source.dataset, np.arange(count), labels)


def common_channels(sources: Sequence[Source]) -> int:
    """Return the number of channels of all images, 3 if grey and coloured images are mixed."""
    found = {channels for source in sources for channels in source.channels}
    if len(found) > 1 and not found <= {1, 3, 4}:
        raise UsageError(f"data: the images have different numbers of channels: {sorted(found)}")
    return 3 if len(found) > 1 else found.pop()


def check_channels(spec: SetSpec, described_as: str, *, resized: bool) -> None:
    """Raise UsageError if images cannot be prepared with the number of channels that `spec` has.

    `resized` is True if PIL images are made of them, which have 1 or 3 channels.
    """
    channels = spec.in_shape[0]
    if channels != len(spec.mean) and described_as != IN_MEMORY:
        described = f"{described_as} has {len(spec.mean)} channels, the images passed have {channels}"
        raise UsageError(f"set: {described}; leave out set")
    if channels not in (1, 3) and resized:
        found = f"images of {channels} channels must have one size, stay the same in every epoch and fit into memory"
        raise UsageError(f"data: {found}")


def count_classes(sources: Sequence[Source], splits: Sequence[AnySplit], names: Sequence[str]) -> int:
    """Return the number of classes: of the class names, or the largest label plus 1.

    Raises UsageError if a label has no name.
    """
    largest = [int(split.labels.max()) for split in splits]
    for source, label in zip(sources, largest, strict=True):
        if names and label >= len(names):
            raise UsageError(f"data: the {source.name} Dataset has the label {label}, but only {len(names)} classes")
    return len(names) or max(largest) + 1


def with_statistics(spec: SetSpec, train: AnySplit) -> SetSpec:
    """Return a description with the mean and standard deviation of the training images in memory.

    If they are not in memory, the values are those of ImageNet. Grey images get their mean over the channels.
    """
    if not isinstance(train, Split):
        mean, std = SETS["ImageNet"].mean, SETS["ImageNet"].std
        grey = replace(spec, mean=(sum(mean) / len(mean),), std=(sum(std) / len(std),))
        return grey if spec.in_shape[0] == 1 else spec
    values, means, deviations = np.arange(256) / 255, [], []
    for channel in range(spec.in_shape[0]):
        counts = np.zeros(256, np.int64)
        for part in np.array_split(train.images[..., channel], 64):  # bincount copies its argument to int64
            counts += np.bincount(part.ravel(), minlength=256)
        shares = counts / counts.sum()
        means.append(float(values @ shares))
        deviations.append(max(float(np.sqrt((values - means[-1]) ** 2 @ shares)), 1 / 255))  # 0 for a constant channel
    return replace(spec, mean=tuple(means), std=tuple(deviations))


def read_image(split: DatasetSplit, row: int, spec: SetSpec) -> Image:
    """Read the image in `row` of a split from its Dataset, in the mode of a data set, grey or RGB.

    Raises RunFailed if the image has another size than all before.
    """
    index = int(split.rows[row])
    try:
        pixels = to_pixels(split.dataset[index][0])
        if spec.margin is None and pixels.shape[:2] != spec.in_shape[1:]:
            found, (height, width) = pixels.shape, spec.in_shape[1:]
            raise UsageError(f"it has {found[0]}x{found[1]} pixels, others {height}x{width}; pass image_size=…")
        return pil_image(pixels).convert("L" if spec.in_shape[0] == 1 else "RGB")
    except UsageError as error:
        raise RunFailed(f"data: item {index} of a Dataset: {error}") from error
