"""What every reader of a set shares: splits, where files are looked for, downloads, faults; and the smaller readers.

Every fault of a file (missing, truncated, of another format, labels out of range) is a UsageError that names it, raised
here and never in the middle of training. One function reads each format; none keeps a second copy of a set.
"""

import gzip
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from args import UsageError
from utils.files import check_regular

DIGITS_FILE = Path(__file__).with_name("digits.npz")


@dataclass(frozen=True)
class Split:
    """Images in memory: uint8 (n, height, width, channels); labels: int64 (n,)."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def copied(self, rows: NDArray[np.intp]) -> "Split":
        return Split(self.images[rows], self.labels[rows])

    def kept(self, rows: NDArray[np.intp]) -> "Split":
        """These rows, ascending, alone; the arrays of this split are reused and it is not to be used any more."""
        return Split(compact(self.images, rows), compact(self.labels, rows))


@dataclass(frozen=True)
class FileSplit:
    """Images in files. paths: bytes (n,), one array, so that worker processes share its memory; labels: int64 (n,)."""

    paths: NDArray[np.bytes_]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, row: int) -> str:
        return os.fsdecode(self.paths[row])

    def copied(self, rows: NDArray[np.intp]) -> "FileSplit":
        return FileSplit(self.paths[rows], self.labels[rows])

    kept = copied


AnySplit = Split | FileSplit


def compact(array: NDArray[Any], rows: NDArray[np.intp], chunk: int = 4096) -> NDArray[Any]:
    """array[rows] for ascending rows, in place: a training set is too large to be held twice."""
    for start in range(0, len(rows), chunk):
        part = rows[start : start + chunk]  # part[i] >= start + i: reading never falls behind writing
        array[start : start + len(part)] = array[part]
    return array[: len(rows)]


@dataclass(frozen=True)
class Place:
    """A folder that may hold a set, and the files it then has; `suffixes` may be appended to each name."""

    folder: Path
    files: tuple[str, ...]
    suffixes: tuple[str, ...] = ("",)

    def path(self, file: str) -> Path | None:
        return next((path for end in self.suffixes if (path := self.folder / (file + end)).exists()), None)

    def paths(self) -> list[Path]:
        """The files that are there, in the order of `files`."""
        return [path for file in self.files if (path := self.path(file)) is not None]

    def missing(self) -> list[str]:
        return [file for file in self.files if self.path(file) is None]


def complete(places: Sequence[Place]) -> list[Path] | None:
    """The files of the first place that has all of them."""
    return next((place.paths() for place in places if not place.missing()), None)


def locate(name: str, root: Path, places: Sequence[Place], download: bool, *, fetchable: bool = True) -> list[Path]:
    """The files of the set, downloaded into `root` where asked and needed. Raises UsageError: missing or partial."""
    paths = complete(places)
    if paths is None and download and fetchable:
        fetch(name, root)
        paths = complete(places)
    if paths is None:
        hint = ", or add --download" if fetchable else "; it has no download"
        raise UsageError(describe_missing(name, root, places, hint))
    return paths


def describe_missing(name: str, root: Path, places: Sequence[Place], hint: str) -> str:
    partial = next((place for place in places if place.paths()), None)
    if partial is not None:
        return f"{name} in {partial.folder} is not complete: {', '.join(partial.missing())} not found"
    wanted: dict[tuple[str, ...], list[str]] = {}
    for place in places:
        wanted.setdefault(place.files, []).append(str(place.folder))
    looked = "; or ".join(f"{', '.join(files)} in {' or '.join(folders)}" for files, folders in wanted.items())
    return f"{name} was not found under {root}. Looked for {looked}. Give its folder with --data{hint}"


def fetch(name: str, root: Path) -> None:
    """Download a set with torchvision, which checks the digests. Raises UsageError with one line."""
    from utils.vision import import_torchvision  # only here: torchvision takes a second to import

    try:
        # train=False: the constructor also reads the set, of which the test part is the smaller one
        parts = [{"split": "train"}, {"split": "test"}] if name == "SVHN" else [{"train": False}]
        for part in parts:
            getattr(import_torchvision().datasets, name)(str(root), download=True, **part)
    except (OSError, RuntimeError, ImportError, EOFError, zlib.error) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(f"{name}: the download into {root} failed: {reason}") from error


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what a damaged or unreadable file raises into a UsageError naming it."""
    check_regular(path, or_folder=True)
    try:
        yield
    except (OSError, EOFError, zlib.error, MemoryError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UsageError(f"{path}: cannot be read: {reason}") from error


def check_labels(path: Path, labels: NDArray[Any], classes: int) -> NDArray[np.int64]:
    if labels.min() < 0 or labels.max() >= classes:
        worst = labels.max() if labels.max() >= classes else labels.min()
        raise UsageError(f"{path}: label {worst} is out of range, 0 to {classes - 1} expected")
    return labels.astype(np.int64)


# --- MNIST and its relatives: idx files (http://yann.lecun.com/exdb/mnist: magic, big-endian sizes, bytes)


def idx_places(name: str, root: Path) -> list[Place]:
    files = tuple(f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))
    folders = (root / name / "raw", root / name.lower() / name / "raw", root / name.lower())
    return [Place(folder, files, suffixes=("", ".gz")) for folder in folders]


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
        array = np.empty(shape, np.uint8)
        held = file.readinto(array.data.cast("B"))
        if held < array.size or file.read(1):
            found = f"only {held}" if held < array.size else "more"
            raise UsageError(f"{path}: its header promises {array.size} bytes of data, it holds {found}")
    return array


def open_maybe_gzip(path: Path) -> BufferedIOBase:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


# --- The bundled digits


def read_digits(_root: Path, _download: bool) -> tuple[Split, Split]:
    """(train, test) of the 1,797 digits beside this file, 8x8x1, values 0..16 spread over 0..255. See DIGITS.md."""
    with reading(DIGITS_FILE), np.load(DIGITS_FILE, allow_pickle=False) as file:
        images, labels, test = file["images"], file["labels"].astype(np.int64), file["test"]
    images = ((images.astype(np.uint16) * 255 + 8) // 16).astype(np.uint8)[..., np.newaxis]
    train = np.setdiff1d(np.arange(len(images)), test)
    return Split(images[train], labels[train]), Split(images[test], labels[test])


# --- SVHN, cropped digits (http://ufldl.stanford.edu/housenumbers): MATLAB files with X (32, 32, 3, n) and y (n, 1)


def read_svhn(root: Path, download: bool) -> tuple[Split, Split]:
    """(train, test) of SVHN, 32x32x3."""
    files = ("train_32x32.mat", "test_32x32.mat")
    places = [Place(folder, files) for folder in (root, root / "svhn", root / "SVHN")]
    train, test = locate("SVHN", root, places, download)
    return read_svhn_split(train), read_svhn_split(test)


def read_svhn_split(path: Path) -> Split:
    try:
        from scipy.io import loadmat  # only here: no other set needs scipy
    except ImportError as error:
        raise UsageError("SVHN: scipy reads its MATLAB files and is not installed; pip install scipy") from error
    with reading(path), path.open("rb") as file:
        try:
            held = loadmat(file, variable_names=("X", "y"))
        except Exception as error:  # loadmat has no list of what it raises for a damaged file: seven kinds were seen
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UsageError(f"{path}: not a MATLAB file that can be read: {reason}") from error
    images, digits = held.get("X"), held.get("y")
    right = all(isinstance(array, np.ndarray) and array.dtype == np.uint8 for array in (images, digits))
    if not right or images.shape[:3] != (32, 32, 3) or digits.shape != (images.shape[3], 1) or not digits.size:
        raise UsageError(f"{path}: bytes X of shape (32, 32, 3, n) and y of shape (n, 1) expected")
    if digits.min() < 1 or digits.max() > 10:
        raise UsageError(f"{path}: labels from {digits.min()} to {digits.max()}, 1 to 10 expected")
    return Split(rows_first(images), digits[:, 0].astype(np.int64) % 10)  # 10 stands for the digit 0


def rows_first(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(height, width, channels, n), columns first as MATLAB stores it -> (n, height, width, channels), in place."""
    height, width, channels, count = images.shape
    stored = np.ascontiguousarray(images.T)  # (n, channels, width, height): no copy, this is how the bytes lie
    rows = stored.reshape(count, height, width, channels)
    for start in range(0, count, 4096):
        part = slice(start, start + 4096)
        rows[part] = stored[part].transpose(0, 3, 2, 1).copy()
    return rows
