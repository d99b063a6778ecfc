"""Reader of CIFAR-10 and CIFAR-100 (https://www.cs.toronto.edu/~kriz/cifar.html), binary and pickled archives."""

import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.readers.set_files import Location, check_labels, find_set_files, report_parse_errors, report_read_errors
from data.registry import SETS
from data.types import Split
from utils.errors import UsageError
from utils.python_compat import PythonUnpickler
from utils.text import escaped

# Images in the test file and in each training file of CIFAR-10. CIFAR-100 has one training file, five times as large.
IMAGES_PER_FILE = 10_000
IMAGE_BYTES = 3 * 32 * 32  # planes of R, G and B
Chunk = tuple[NDArray[Any], NDArray[Any]]  # (planes uint8 (n, 3072), labels (n,))


@dataclass(frozen=True)
class CifarSet:
    """File names and file layout of CIFAR-10 or CIFAR-100.

    folders: names of the folders in the binary and in the pickled archive. label_bytes: number of bytes before each
    binary image, of which the last is the class. label_key: key of the classes in a pickled file.
    """

    name: str
    train: tuple[str, ...]
    test: str
    folders: tuple[str, str]
    label_bytes: int
    label_key: str

    def locations(self, root: Path) -> list[Location]:
        """Return the folders that may contain the data set, in search order.

        They are `root` and folders below it. Binary archives come first, because reading them takes half the time and
        no unpickling.
        """
        pickled = (*self.train, self.test)
        binary = tuple(f"{name}.bin" for name in pickled)
        parents = (root, root / self.name.lower())
        locations = [*(Location(parent / self.folders[0], binary) for parent in parents), Location(root, binary)]
        locations += [Location(parent / self.folders[1], pickled) for parent in parents]
        if (root / pickled[0]).is_file():  # as folders, `train` and `test` belong to another data set
            locations.append(Location(root, pickled))
        return locations


BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))
CIFAR10_FOLDERS = ("cifar-10-batches-bin", "cifar-10-batches-py")
CIFAR100_FOLDERS = ("cifar-100-binary", "cifar-100-python")
CIFAR10 = CifarSet("CIFAR10", BATCHES, "test_batch", CIFAR10_FOLDERS, label_bytes=1, label_key="labels")
CIFAR100 = CifarSet("CIFAR100", ("train",), "test", CIFAR100_FOLDERS, label_bytes=2, label_key="fine_labels")


def read_cifar(cifar: CifarSet, root: Path, download: bool) -> tuple[Split, Split]:
    """Read CIFAR-10 or CIFAR-100, and return the splits (train, test) with images of 32x32x3.

    Raises UsageError for a missing or damaged file.
    """
    *train, test = find_set_files(cifar.name, root, cifar.locations(root), download)
    return read_files(cifar, train, 5 * IMAGES_PER_FILE), read_files(cifar, [test], IMAGES_PER_FILE)


def read_files(cifar: CifarSet, paths: list[Path], count: int) -> Split:
    """Read several CIFAR files as one split.

    The files `paths` have `count` images in total. `cifar` is their layout.
    Besides the final array, only one chunk is in memory: 10,000 images of a binary file, or all images of a pickled
    file.
    """
    images = np.empty((count, 32, 32, 3), np.uint8)
    labels = np.empty(count, np.int64)
    start = 0
    for path in paths:
        read = read_binary if path.suffix == ".bin" else read_pickle
        for planes, chunk_labels in read(cifar, path, count // len(paths)):
            rows = slice(start, start + len(planes))
            start += len(planes)
            labels[rows] = check_labels(path, chunk_labels, SETS[cifar.name].num_classes)
            for channel, plane in enumerate(np.split(planes, 3, axis=1)):  # takes half the time of one transpose
                images[rows, :, :, channel] = plane.reshape(-1, 32, 32)
    return Split(images, labels)


def read_binary(cifar: CifarSet, path: Path, count: int) -> Iterator[Chunk]:
    """Yield the images and labels of a binary CIFAR file, in chunks of 10,000 images.

    The file `path` (.bin) has `count` images. Raises UsageError if the file does not have the size of `count` images.
    """
    row_bytes = cifar.label_bytes + IMAGE_BYTES
    with report_read_errors(path):
        size = path.stat().st_size
        if size != count * row_bytes and path.is_file():
            raise UsageError(f"{path}: {size} bytes, {count * row_bytes} expected")
        for start in range(0, count, IMAGES_PER_FILE):
            rows = np.fromfile(path, np.uint8, IMAGES_PER_FILE * row_bytes, offset=start * row_bytes)
            rows = rows.reshape(IMAGES_PER_FILE, row_bytes)
            yield rows[:, cifar.label_bytes :], rows[:, cifar.label_bytes - 1]


def read_pickle(cifar: CifarSet, path: Path, count: int) -> Iterator[Chunk]:
    """Yield the images and labels of a pickled CIFAR file, as one chunk.

    The file `path` has `count` images. The file must be a dict with the array `data` and a list of labels. Raises
    UsageError for any other content.
    """
    kind = f"{cifar.name} file"
    with report_read_errors(path), path.open("rb") as file, report_parse_errors(path, kind):
        batch = Unpickler(file, encoding="bytes").load()
    if not isinstance(batch, dict):
        raise UsageError(f"{path}: not a {kind}: holds a {type(batch).__name__}, a dict expected")
    data, labels = (batch.get(key.encode(), batch.get(key)) for key in ("data", cifar.label_key))
    if not isinstance(data, PickledArray) or not isinstance(labels, list) or {type(i) for i in labels} != {int}:
        expected = f"an array 'data' and a list '{cifar.label_key}' of integers expected"
        raise UsageError(f"{path}: not a {kind}: {expected}")
    planes = data.as_uint8((count, IMAGE_BYTES))
    if planes is None or len(labels) != count:
        wanted = f"{count} labels and shape {(count, IMAGE_BYTES)} of dtype u1 expected"
        raise UsageError(f"{path}: {len(labels)} labels and an array {data}; {wanted}")
    yield planes, np.array(labels)


class PickledArray:
    """Replacement for numpy.ndarray during unpickling, which runs no code of numpy.

    It stores the pickled state.
    """

    shape: Any = None
    dtype: Any = None
    fortran: Any = None
    raw: Any = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, self.shape, self.dtype, self.fortran, self.raw = state

    def __str__(self) -> str:
        sizes = self.shape if isinstance(self.shape, tuple) else ()
        code = getattr(self.dtype, "code", None)
        shape = ", ".join(map(escaped, sizes[:5]))
        return f"of shape ({shape}) and dtype {escaped(code.decode('latin1') if isinstance(code, bytes) else code)}"

    def as_uint8(self, shape: tuple[int, ...]) -> NDArray[np.uint8] | None:
        """Return the pickled array as uint8, or None if its type or shape is another.

        None means that the pickled array is not uint8, not C-ordered or not of `shape`. The bytes are not copied.
        """
        is_uint8 = getattr(self.dtype, "code", None) in ("u1", b"u1")
        if self.shape != shape or not is_uint8 or self.fortran or not isinstance(self.raw, bytes):
            return None
        return np.frombuffer(self.raw, np.uint8).reshape(shape) if len(self.raw) == int(np.prod(shape)) else None


class PickledDtype:
    """Replacement for numpy.dtype during unpickling.

    `code` is numpy's type code, such as "u1".
    """

    def __init__(self, code: Any, *_: Any) -> None:
        self.code = code

    def __setstate__(self, state: Any) -> None:
        """Ignore the pickled byte order and alignment, which do not matter for single bytes."""


def encode_latin1(text: str, encoding: str) -> bytes:
    """Replacement for _codecs.encode, which old pickles call to restore bytes.

    Pickles of protocols 0 to 2 call _codecs.encode. Raises UnpicklingError for other codecs than latin1.
    """
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"codec {encoding!r} refused")
    return text.encode("latin1")


class Unpickler(PythonUnpickler):
    """Unpickler of plain types and arrays only, so that a file cannot run code.

    Arrays are unpickled as PickledArray. All other types are refused.

    The base class is implemented in Python. The implementation in C allocates 16 bytes per memo entry that a file
    declares, and a file may declare 2**32 entries.
    """

    stand_ins: dict[tuple[str, str], Callable[..., Any]] = {  # noqa: RUF012 (a table, not a default)
        ("numpy", "ndarray"): PickledArray,
        ("numpy", "dtype"): PickledDtype,
        ("numpy.core.multiarray", "_reconstruct"): lambda *_: PickledArray(),
        ("numpy._core.multiarray", "_reconstruct"): lambda *_: PickledArray(),
        ("_codecs", "encode"): encode_latin1,
    }

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        """Return the harmless replacement for a class or function that the pickle refers to.

        The pickle names it `module.name`. Raises UnpicklingError for a name that the official CIFAR files do not use.
        """
        if (module, name) not in self.stand_ins:
            raise pickle.UnpicklingError(f"refers to {module}.{name}, which official files do not; nothing was run")
        return self.stand_ins[module, name]


read_cifar10 = partial(read_cifar, CIFAR10)
read_cifar100 = partial(read_cifar, CIFAR100)
