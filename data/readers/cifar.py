"""CIFAR-10 and CIFAR-100 (https://www.cs.toronto.edu/~kriz/cifar.html) in both official forms, binary and pickled."""

import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.readers.files import Location, check_labels, locate, reading
from data.types import Split
from utils.errors import UsageError
from utils.python_compat import PythonUnpickler
from utils.text import escaped

ROWS = 10_000  # images in the test file and in each file of CIFAR-10's training part; CIFAR-100 has one file of five
PIXELS = 3 * 32 * 32  # of an image: planes of R, G and B
Piece = tuple[NDArray[Any], NDArray[Any]]  # (planes uint8 (n, 3072), labels)


@dataclass(frozen=True)
class Form:
    """One of the two sets. label_bytes: before each binary image, the class last; key: that of the pickled classes."""

    name: str
    classes: int
    train: tuple[str, ...]
    test: str
    folders: tuple[str, str]  # binary, pickled
    label_bytes: int
    key: str

    def places(self, root: Path) -> list[Location]:
        """All binary places before all pickled ones: those are read without unpickling, and in half the time.

        `root` may be the innermost folder itself; `train` and `test` in it may be the folders of another set.
        """
        names = (*self.train, self.test)
        binary = tuple(f"{name}.bin" for name in names)
        roots = (root, root / self.name.lower())
        places = [*(Location(folder / self.folders[0], binary) for folder in roots), Location(root, binary)]
        places += [Location(folder / self.folders[1], names) for folder in roots]
        return places + [Location(root, names)] * (root / names[0]).is_file()


BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))
CIFAR10 = Form(
    "CIFAR10", 10, BATCHES, "test_batch", ("cifar-10-batches-bin", "cifar-10-batches-py"), label_bytes=1, key="labels"
)
CIFAR100 = Form(
    "CIFAR100", 100, ("train",), "test", ("cifar-100-binary", "cifar-100-python"), label_bytes=2, key="fine_labels"
)


def read_cifar(form: Form, root: Path, download: bool) -> tuple[Split, Split]:
    """(train, test), 32x32x3, from whichever form is there."""
    *train, test = locate(form.name, root, form.places(root), download)
    return join(form, train, 5 * ROWS), join(form, [test], ROWS)


def join(form: Form, paths: list[Path], rows: int) -> Split:
    """The files one after another; no more than one piece is held beside the final array (a pickle comes in one)."""
    images = np.empty((rows, 32, 32, 3), np.uint8)
    labels = np.empty(rows, np.int64)
    start = 0
    for path in paths:
        read = read_binary if path.suffix == ".bin" else read_pickle
        for planes, piece_labels in read(form, path, rows // len(paths)):
            part = slice(start, start + len(planes))
            start += len(planes)
            labels[part] = check_labels(path, piece_labels, form.classes)
            for channel, plane in enumerate(np.split(planes, 3, axis=1)):  # half the time of one transpose
                images[part, :, :, channel] = plane.reshape(-1, 32, 32)
    return Split(images, labels)


def read_binary(form: Form, path: Path, rows: int) -> Iterator[Piece]:
    """One .bin file: rows of one or two label bytes and 3,072 pixels, `ROWS` at a time."""
    width = form.label_bytes + PIXELS
    with reading(path):
        held = path.stat().st_size
    if held != rows * width and path.is_file():
        raise UsageError(f"{path}: {held} bytes, {rows * width} expected")
    for start in range(0, rows, ROWS):
        with reading(path):
            data = np.fromfile(path, np.uint8, ROWS * width, offset=start * width).reshape(ROWS, width)
        yield data[:, form.label_bytes :], data[:, form.label_bytes - 1]


def read_pickle(form: Form, path: Path, rows: int) -> Iterator[Piece]:
    """One file of the Python form: a dict with the array `data` and a list of labels."""
    what = f"{path}: not a {form.name} file"
    with reading(path), path.open("rb") as file:
        try:
            batch = Unpickler(file, encoding="bytes").load()
        except Exception as error:  # "including but not necessarily limited to", says pickle of what load() raises
            raise UsageError(f"{what}: {escaped(error, 300) or type(error).__name__}") from error
    if not isinstance(batch, dict):
        raise UsageError(f"{what}: holds a {type(batch).__name__}, a dict expected")
    data, labels = (batch.get(key.encode(), batch.get(key)) for key in ("data", form.key))
    if not isinstance(data, PickledArray) or not isinstance(labels, list) or {type(i) for i in labels} != {int}:
        raise UsageError(f"{what}: an array 'data' and a list '{form.key}' of integers expected")
    planes = data.uint8((rows, PIXELS))
    if planes is None or len(labels) != rows:
        raise UsageError(f"{path}: {len(labels)} labels and an array {data}; {rows} of each expected")
    yield planes, np.array(labels)


class PickledArray:
    """Stands in for numpy.ndarray while unpickling: keeps what the file says, runs nothing of numpy's."""

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


class Unpickler(PythonUnpickler):
    """Builds the plain types, and stand-ins for the few names the official files refer to; refuses all others.

    Neither numpy's reconstruction nor any other code of the environment is reachable from a file. The unpickler in
    Python: that in C takes 16 bytes for each number that a memo may have, and a file may say 2^32.
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


read_cifar10 = partial(read_cifar, CIFAR10)
read_cifar100 = partial(read_cifar, CIFAR100)
