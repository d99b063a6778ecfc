"""Registry of data sets and of the scales of their pixels. Importable without torch and numpy.

To add a data set, add a reader in data/readers, a row in SETS and a case in tests/cases.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from utils.registry import accepted, load_object, lookup

# Scaling -> (mean, std) of pixels in [0, 1]; None stands for mean and std of the set
PIXELS: dict[str, tuple[float, float] | None] = {
    "standard": None,
    "unit": (0.0, 1.0),
    "signed": (0.5, 0.5),
    "binary": (0.0, 1 / 255),  # leaves 0 and 1 unchanged, because normalisation divides pixels by 255
}


@dataclass(frozen=True)
class SetSpec:
    """Shapes, pixel statistics and reader of a data set, a row of the registry SETS.

    in_shape: shape of an input image, (channels, height, width).
    num_classes: number of classes; 0 if the reader counts the folders of the set.
    mean, std: of each channel, for pixels in [0, 1]; empty if they are measured on the training images.
    augment: training images are randomly cropped and flipped.
    reader: path "package.module:function" of a function (root, download) -> (training split, test split), or the
        function of a plug-in.
    margin: None if all images have the size in_shape. Otherwise images have any size: training resizes a random part
        of each to in_shape, and evaluation resizes the shorter side to `margin` times in_shape and crops the centre.
    downloads: --download can download the set.
    binary: before mean and std are applied, pixels become 1 from half of full brightness on, else 0.
    bundled: the project contains the images, so that the option `data` has no effect.
    classes: names of the classes; empty if data/readers/class_names.py has them.
    """

    in_shape: tuple[int, int, int]
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: bool
    reader: str | Callable[..., Any]
    margin: float | None = None
    downloads: bool = True
    binary: bool = False
    bundled: bool = False
    classes: tuple[str, ...] = ()

    def read(self, root: Path, download: bool) -> Any:
        """Read the data set below `root`, and return its training and test part."""
        reader = load_object(self.reader)
        if isinstance(self.reader, str):
            return reader(root, download)
        return reader(**accepted(reader, {"root": root, "download": download}))

    def pixels(self, kind: str) -> SetSpec:
        """Return a copy of this description with another scaling of the pixel values.

        `kind` is "standard", "unit", "signed" or "binary". The scaling is the (mean, std) of `kind` in PIXELS, which
        replaces the data set's own. Raises ValueError if `kind` is unknown.
        """
        scale = lookup(PIXELS, kind, "pixels")
        if scale is None:
            return self
        channels = self.in_shape[0]
        return replace(self, mean=(scale[0],) * channels, std=(scale[1],) * channels, binary=kind == "binary")


CIFAR = SetSpec((3, 32, 32), 10, (0.491, 0.482, 0.447), (0.247, 0.243, 0.262), True, "data.readers.cifar:read_cifar10")
IMAGENET = SetSpec(
    (3, 224, 224),
    1000,
    (0.485, 0.456, 0.406),
    (0.229, 0.224, 0.225),
    True,
    "data.readers.folders:read_imagenet",
    margin=256 / 224,
    downloads=False,
)
IN_MEMORY = "in_memory"  # the set of a run whose data sets are passed to featherweight.train
SETS: dict[str, SetSpec] = {
    # Mean and std of digits are computed over all pixels of the training split.
    "digits": SetSpec(
        (1, 8, 8),
        10,
        (0.30588,),
        (0.37622,),
        False,
        "data.readers.digits:read_digits",
        downloads=False,
        bundled=True,
    ),
    "MNIST": SetSpec((1, 28, 28), 10, (0.1307,), (0.3081,), False, "data.readers.idx:read_mnist"),
    "FashionMNIST": SetSpec((1, 28, 28), 10, (0.2860,), (0.3530,), False, "data.readers.idx:read_fashion_mnist"),
    "CIFAR10": CIFAR,
    # Mean and std of CIFAR100 and SVHN are those of all pixels of the training split, as commonly published.
    "CIFAR100": SetSpec(
        (3, 32, 32), 100, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762), True, "data.readers.cifar:read_cifar100"
    ),
    "SVHN": SetSpec(
        (3, 32, 32), 10, (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970), False, "data.readers.svhn:read_svhn"
    ),
    "BigCIFAR10": replace(
        IMAGENET, in_shape=(3, 128, 128), num_classes=10, reader=CIFAR.reader, margin=1.0, downloads=True
    ),
    "ImageNet": IMAGENET,
    "TinyImageNet": replace(
        IMAGENET, in_shape=(3, 64, 64), num_classes=200, reader="data.readers.folders:read_tiny_imagenet"
    ),
    "ImageFolder": replace(IMAGENET, num_classes=0, reader="data.readers.folders:read_image_folder"),
    # Shape, classes, mean and std are those of the images passed. This row has the values of images without statistics.
    IN_MEMORY: replace(
        IMAGENET, num_classes=0, augment=False, reader="data.readers.in_memory:read_in_memory", margin=None
    ),
}
