"""The reader of MNIST and its relatives: idx files (yann.lecun.com/exdb/mnist: magic, big-endian sizes, bytes)."""

import gzip
import math
from functools import partial
from io import BufferedIOBase
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.readers.files import Location, check_labels, locate, reading
from data.types import Split
from utils import declared_sizes
from utils.errors import UsageError

IDX_SETS = {"mnist", "fashionmnist", "kmnist", "emnist", "qmnist"}


def idx_places(name: str, root: Path) -> list[Location]:
    """Return the folders where torchvision and others put the files of a set.

    `root` itself is among them, unless it is named after another set of the kind, whose files have the same names.
    """
    files = tuple(f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))
    folders = [root / name / "raw", root / name.lower() / name / "raw", root / name.lower(), root / name]
    if not IDX_SETS & {part.lower().replace("-", "") for part in root.resolve().parts[-2:]} - {name.lower()}:
        folders += [root / "raw", root]
    return [Location(folder, files, ("", ".gz"), dashed_or_dotted) for folder in folders]


def dashed_or_dotted(file: str) -> tuple[str, str]:
    return file, file.replace("-idx", ".idx")


def read_idx_set(name: str, root: Path, download: bool) -> tuple[Split, Split]:
    """(train, test) of MNIST or FashionMNIST, 28x28x1."""
    paths = locate(name, root, idx_places(name, root), download)
    return read_idx_split(paths[0], paths[1]), read_idx_split(paths[2], paths[3])


def read_idx_split(image_path: Path, label_path: Path, size: tuple[int, int] = (28, 28), classes: int = 10) -> Split:
    images, labels = read_idx(image_path, 3), read_idx(label_path, 1)
    if images.shape[1:] != size:
        raise UsageError(f"{image_path}: images of {images.shape[1]}x{images.shape[2]}, {size[0]}x{size[1]} expected")
    if len(images) != len(labels):
        raise UsageError(f"{image_path} holds {len(images)} images, but {label_path} {len(labels)} labels")
    return Split(images[..., np.newaxis], check_labels(label_path, labels, classes))


def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """One idx file of unsigned bytes, plain or gzipped, with exactly `dimensions` dimensions."""
    with reading(path), open_maybe_gzip(path) as file:
        header = file.read(4 + 4 * dimensions)
        magic = bytes((0, 0, 8, dimensions))  # 8: unsigned byte
        if header[:4] != magic:
            raise UsageError(f"{path}: starts with {header[:4].hex()}, an idx{dimensions} file with {magic.hex()}")
        shape = np.frombuffer(header[4:].ljust(4 * dimensions, b"\0"), ">u4").tolist()
        if min(shape) == 0:
            raise UsageError(f"{path}: holds nothing: its header ends early or counts {shape}")
        promised = math.prod(shape)
        declared_sizes.check(path, promised)
        array = np.empty(shape, np.uint8)
        held = file.readinto(array.data.cast("B"))
        if held < promised or file.read(1):
            found = f"only {held}" if held < promised else "more"
            raise UsageError(f"{path}: its header promises {promised} bytes of data, it holds {found}")
    return array


def open_maybe_gzip(path: Path) -> BufferedIOBase:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


read_mnist = partial(read_idx_set, "MNIST")
read_fashion_mnist = partial(read_idx_set, "FashionMNIST")
