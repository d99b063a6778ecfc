"""SVHN, cropped digits (http://ufldl.stanford.edu/housenumbers): MATLAB files with X (32, 32, 3, n) and y (n, 1)."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.readers.files import Location, locate, reading
from data.types import Split
from utils import declared_sizes
from utils.errors import UsageError
from utils.text import escaped


def read_svhn(root: Path, download: bool) -> tuple[Split, Split]:
    """(train, test) of SVHN, 32x32x3."""
    files = ("train_32x32.mat", "test_32x32.mat")
    places = [Location(folder, files) for folder in (root, root / "svhn", root / "SVHN")]
    train, test = locate("SVHN", root, places, download)
    return read_svhn_split(train), read_svhn_split(test)


def read_svhn_split(path: Path) -> Split:
    try:
        from scipy.io import loadmat  # only here: no other set needs scipy
    except ImportError as error:
        raise UsageError("SVHN: scipy reads its MATLAB files and is not installed; pip install scipy") from error
    with reading(path), path.open("rb") as file:
        try:
            declared_sizes.check(path, declared_sizes.matlab_size(file))
            held = loadmat(file, variable_names=("X", "y"))
        except UsageError:
            raise
        except Exception as error:  # loadmat has no list of what it raises for a damaged file: seven kinds were seen
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UsageError(f"{path}: not a MATLAB file that can be read: {escaped(reason, 300)}") from error
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
