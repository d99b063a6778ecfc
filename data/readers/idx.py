"""Reader of MNIST and FashionMNIST, which are stored in the idx format.

An idx file has a magic number, big-endian sizes and the array's bytes (http://yann.lecun.com/exdb/mnist).
"""

import gzip
import math
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.readers.set_files import Location, check_labels, find_set_files, report_read_errors
from data.registry import SETS, SetSpec
from data.types import Split
from utils import declared_sizes
from utils.errors import UsageError

FILES = tuple(f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))
SAME_FILE_NAMES = {"mnist", "fashionmnist", "kmnist", "emnist", "qmnist"}  # sets that all use FILES


def idx_locations(name: str, root: Path) -> list[Location]:
    """Return the folders that may contain the files of MNIST or FashionMNIST.

    They are folders at and below `root` where torchvision, Kaggle and others put the files of data set `name`. `root`
    itself is left out if it lies in a folder that is named after another data set with the same file names.
    """
    folders = [root / name / "raw", root / name.lower() / name / "raw", root / name.lower(), root / name]
    parents = {part.lower().replace("-", "") for part in root.resolve().parts[-2:]}
    if not SAME_FILE_NAMES & parents - {name.lower()}:
        folders += [root / "raw", root]
    return [Location(path, FILES, idx_spellings) for path in folders]


def idx_spellings(name: str) -> tuple[str, ...]:
    """Return the names that an idx file may have, such as train-images.idx3-ubyte for train-images-idx3-ubyte."""
    dotted = name.replace("-idx", ".idx")
    return name, f"{name}.gz", dotted, f"{dotted}.gz"


def read_idx_set(name: str, root: Path, download: bool) -> tuple[Split, Split]:
    """Read MNIST or FashionMNIST, and return the splits (train, test) with images of 28x28x1.

    Raises UsageError for a missing or damaged file.
    """
    paths = find_set_files(name, root, idx_locations(name, root), download)
    return read_idx_split(SETS[name], *paths[:2]), read_idx_split(SETS[name], *paths[2:])


def read_idx_split(spec: SetSpec, image_path: Path, label_path: Path) -> Split:
    """Read a split from an idx file of images and an idx file of labels.

    Raises UsageError if the image size or a label is not one of the data set `spec`, or if the numbers of images and
    labels differ.
    """
    size = spec.in_shape[1:]
    images, labels = read_idx(image_path, 3), read_idx(label_path, 1)
    if images.shape[1:] != size:
        raise UsageError(f"{image_path}: images of {images.shape[1]}x{images.shape[2]}, {size[0]}x{size[1]} expected")
    if len(images) != len(labels):
        raise UsageError(f"{image_path} holds {len(images)} images, but {label_path} holds {len(labels)} labels")
    return Split(images[..., np.newaxis], check_labels(label_path, labels, spec.num_classes))


def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """Read an idx file as a uint8 array.

    The file `path` may be gzipped. The array has `dimensions` dimensions. Raises UsageError if the file is damaged, or
    has another type or number of dimensions.
    """
    with report_read_errors(path), gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        header = file.read(4 + 4 * dimensions)
        magic = bytes((0, 0, 8, dimensions))  # 8: unsigned byte
        if header[:4] != magic:
            raise UsageError(f"{path}: starts with {header[:4].hex()}, but idx{dimensions} files with {magic.hex()}")
        shape = np.frombuffer(header[4:].ljust(4 * dimensions, b"\0"), ">u4").tolist()
        if min(shape) == 0:
            raise UsageError(f"{path}: holds no data: its header ends early or has the shape {shape}")
        declared = math.prod(shape)
        declared_sizes.check(path, declared)
        array = np.empty(shape, np.uint8)
        count = file.readinto(array.data.cast("B"))
        if count < declared or file.read(1):
            actual = f"only {count}" if count < declared else "more"
            raise UsageError(f"{path}: its header declares {declared} bytes of data, the file holds {actual}")
    return array


read_mnist = partial(read_idx_set, "MNIST")
read_fashion_mnist = partial(read_idx_set, "FashionMNIST")
