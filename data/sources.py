"""Read image sets from disk, verify them, and hand them on as uint8 arrays in NHWC order.

Every fault of a file (missing, truncated, of another format, labels out of range) is a UsageError that names it, raised
here and never in the middle of training. One function reads each format; none keeps a second copy of a set.
"""

import gzip
import pickle
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from args import UsageError

CIFAR_ROWS = 10_000  # images in each of the six files, in both official forms
CIFAR_PIXELS = 3 * 32 * 32
DIGITS_FILE = Path(__file__).with_name("digits.npz")


@dataclass(frozen=True)
class Split:
    """images: uint8 (n, height, width, channels); labels: int64 (n,)."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Place:
    """A folder that may hold a set, and the files it then has; `suffixes` may be appended to each name."""

    folder: Path
    files: tuple[str, ...]
    suffixes: tuple[str, ...] = ("",)

    def path(self, file: str) -> Path | None:
        candidates = (self.folder / (file + suffix) for suffix in self.suffixes)
        return next((path for path in candidates if path.exists()), None)

    def paths(self) -> list[Path]:
        """The files that are there, in the order of `files`."""
        return [path for file in self.files if (path := self.path(file)) is not None]

    def missing(self) -> list[str]:
        return [file for file in self.files if self.path(file) is None]


def complete(places: Sequence[Place]) -> list[Path] | None:
    """The files of the first place that has all of them."""
    return next((place.paths() for place in places if not place.missing()), None)


def locate(name: str, root: Path, places: Sequence[Place], download: bool) -> list[Path]:
    """The files of the set, downloaded into `root` where asked and needed. Raises UsageError: missing or partial."""
    paths = complete(places)
    if paths is None and download:
        fetch(name, root)
        paths = complete(places)
    if paths is None:
        raise UsageError(describe_missing(name, root, places))
    return paths


def describe_missing(name: str, root: Path, places: Sequence[Place]) -> str:
    partial = next((place for place in places if place.paths()), None)
    if partial is not None:
        return f"{name} in {partial.folder} is not complete: {', '.join(partial.missing())} not found"
    wanted: dict[tuple[str, ...], list[str]] = {}
    for place in places:
        wanted.setdefault(place.files, []).append(str(place.folder))
    looked = "; or ".join(f"{', '.join(files)} in {' or '.join(folders)}" for files, folders in wanted.items())
    return f"{name} was not found under {root}. Looked for {looked}. Give its folder with --data, or add --download"


def fetch(name: str, root: Path) -> None:
    """Download a set with torchvision, which checks the digests. Raises UsageError with one line."""
    from utils.vision import import_torchvision  # only here: torchvision takes a second to import

    try:
        # train=False: the constructor also reads the set, of which the test part is the smaller one
        getattr(import_torchvision().datasets, name)(str(root), train=False, download=True)
    except (OSError, RuntimeError, ImportError, EOFError, zlib.error) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(f"{name}: the download into {root} failed: {reason}") from error


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what a damaged or unreadable file raises into a UsageError naming it."""
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


# --- CIFAR-10 (https://www.cs.toronto.edu/~kriz/cifar.html): six files of 10,000 images, planes of R, G and B


def cifar_places(root: Path) -> list[Place]:
    names = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
    folders = (root, root / "cifar10")
    binary = [Place(folder / "cifar-10-batches-bin", tuple(f"{name}.bin" for name in names)) for folder in folders]
    return [*binary, *(Place(folder / "cifar-10-batches-py", names) for folder in folders)]


def read_cifar10(root: Path, download: bool) -> tuple[Split, Split]:
    """(train, test) of CIFAR-10, 32x32x3, from either official form."""
    paths = locate("CIFAR10", root, cifar_places(root), download)
    read = read_cifar_binary if paths[0].suffix == ".bin" else read_cifar_pickle
    return join_cifar(paths[:5], read), join_cifar(paths[5:], read)


def join_cifar(paths: Sequence[Path], read: Callable[[Path], tuple[NDArray[Any], NDArray[Any]]]) -> Split:
    """The files one after another; only one of them is held beside the final array."""
    images = np.empty((len(paths) * CIFAR_ROWS, 32, 32, 3), np.uint8)
    labels = np.empty(len(images), np.int64)
    for i, path in enumerate(paths):
        rows = slice(i * CIFAR_ROWS, (i + 1) * CIFAR_ROWS)
        planes, file_labels = read(path)
        labels[rows] = check_labels(path, file_labels, classes=10)
        for channel, plane in enumerate(
            np.split(planes, 3, axis=1)
        ):  # a channel at a time: half the time of a transpose
            images[rows, :, :, channel] = plane.reshape(-1, 32, 32)
        del planes, plane
    return Split(images, labels)


def read_cifar_binary(path: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    """(planes uint8 (n, 3072), labels) of one .bin file: rows of one label byte and 3,072 pixels."""
    size = CIFAR_ROWS * (1 + CIFAR_PIXELS)
    with reading(path):
        data = np.fromfile(path, np.uint8, count=size + 1)
        held = path.stat().st_size
    if held != size:
        raise UsageError(f"{path}: {held} bytes, {size} expected")
    rows = data[:size].reshape(CIFAR_ROWS, -1)
    return rows[:, 1:], rows[:, 0]


def read_cifar_pickle(path: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    """(planes uint8 (n, 3072), labels) of one file of the Python form."""
    with reading(path), path.open("rb") as file:
        try:
            batch = CifarUnpickler(file, encoding="bytes").load()
        except Exception as error:  # "including but not necessarily limited to", says pickle of what load() raises
            raise UsageError(f"{path}: not a CIFAR-10 batch: {error or type(error).__name__}") from error
    if not isinstance(batch, dict):
        raise UsageError(f"{path}: not a CIFAR-10 batch: holds a {type(batch).__name__}, a dict expected")
    data, labels = (batch.get(key.encode(), batch.get(key)) for key in ("data", "labels"))
    if not isinstance(data, PickledArray) or not isinstance(labels, list) or {type(i) for i in labels} != {int}:
        raise UsageError(f"{path}: not a CIFAR-10 batch: an array 'data' and a list 'labels' of integers expected")
    planes = data.uint8((CIFAR_ROWS, CIFAR_PIXELS))
    if planes is None or len(labels) != CIFAR_ROWS:
        raise UsageError(f"{path}: {len(labels)} labels and an array {data}; {CIFAR_ROWS} of each expected")
    return planes, np.array(labels)


class PickledArray:
    """Stands in for numpy.ndarray while unpickling: keeps what the file says, runs nothing of numpy's."""

    shape: Any = None
    dtype: Any = None
    fortran: Any = None
    raw: Any = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, self.shape, self.dtype, self.fortran, self.raw = state

    def __str__(self) -> str:
        return f"of shape {self.shape} and dtype {getattr(self.dtype, 'code', None)}"

    def uint8(self, shape: tuple[int, ...]) -> NDArray[np.uint8] | None:
        """The array, sharing the bytes read; None when it is not a C-ordered uint8 array of that shape."""
        right = self.shape == shape and getattr(self.dtype, "code", None) in ("u1", b"u1") and not self.fortran
        if not right or not isinstance(self.raw, bytes) or len(self.raw) != int(np.prod(shape)):
            return None
        return np.frombuffer(self.raw, np.uint8).reshape(shape)


class PickledDtype:
    def __init__(self, code: Any, *_: Any) -> None:
        self.code = code

    def __setstate__(self, state: Any) -> None:
        """Byte order and the like: of no meaning for single bytes."""


def latin1(text: str, encoding: str) -> bytes:
    """_codecs.encode as Python 3 pickles bytes in the old protocols; any other codec is refused."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"codec {encoding!r} refused")
    return text.encode("latin1")


class CifarUnpickler(pickle.Unpickler):
    """Builds the plain types, and stand-ins for the few names the official files refer to; refuses all others.

    Neither numpy's reconstruction nor any other code of the environment is reachable from a file.
    """

    names: dict[tuple[str, str], Callable[..., Any]] = {  # noqa: RUF012 (a table, not a default)
        ("numpy", "ndarray"): PickledArray,
        ("numpy", "dtype"): PickledDtype,
        ("numpy.core.multiarray", "_reconstruct"): lambda *_: PickledArray(),
        ("numpy._core.multiarray", "_reconstruct"): lambda *_: PickledArray(),
        ("_codecs", "encode"): latin1,
    }

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        if (module, name) not in self.names:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}, which no such file does; nothing was run")
        return self.names[module, name]


# --- The bundled digits


def read_digits(_root: Path, _download: bool) -> tuple[Split, Split]:
    """(train, test) of the 1,797 digits beside this file, 8x8x1, values 0..16 spread over 0..255. See DIGITS.md."""
    with reading(DIGITS_FILE), np.load(DIGITS_FILE, allow_pickle=False) as file:
        images, labels, test = file["images"], file["labels"].astype(np.int64), file["test"]
    images = ((images.astype(np.uint16) * 255 + 8) // 16).astype(np.uint8)[..., np.newaxis]
    train = np.setdiff1d(np.arange(len(images)), test)
    return Split(images[train], labels[train]), Split(images[test], labels[test])
